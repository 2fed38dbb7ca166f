#!/usr/bin/env python3
"""Wall time of `cargo bench --bench to_accuracy`'s job in PyTorch: the same network, recipe and clock.

The clock starts when the images are in memory. Flips and crops are gathers of a whole batch, so that
PyTorch waits for no loader of single images.
"""

import argparse
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FILTERS, HIDDEN = (32, 32, 64, 64, 128, 128), 256
BATCH, PADDING, REG = 100, 4, 5e-4


def read(files):
    """CIFAR-10's binary records: a label, then 3 x 32 x 32 bytes."""
    raw = np.concatenate([np.fromfile(f, np.uint8).reshape(-1, 3073) for f in files])
    images = torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(raw[:, 0].astype(np.int64))


def network():
    """{conv3x3 - batch norm - ReLU} x 2 - max pool, three times; affine - batch norm - ReLU - affine."""
    layers, channels = [], 3
    for i, filters in enumerate(FILTERS):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
        channels = filters
    layers += [nn.Flatten(), nn.Linear(channels * 16, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(HIDDEN, 10))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):  # Kaiming's normal weights
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def augmented(padded, indices, generator):
    """Random crops of 32 x 32 and flips, one gather for the batch."""
    n = len(indices)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator)
    columns = torch.arange(32).expand(n, 32)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = left + torch.where(flip, 31 - columns, columns)
    rows = top + torch.arange(32)
    image = indices[:, None, None, None]
    return padded[image, torch.arange(3)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="CIFAR-10's folder (binary version)")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    images, labels = read(sorted(args.data.glob("data_batch_*.bin")))
    images, labels = images[:49000], labels[:49000]  # 1,000 are for validation
    test, truth = read([args.data / "test_batch.bin"])

    start = time.perf_counter()
    pixels = images.float().permute(1, 0, 2, 3).reshape(3, -1)
    mean, std = (f(pixels, 1).view(3, 1, 1) for f in (torch.mean, torch.std))
    images = F.pad((images.float() - mean) / std, [PADDING] * 4)
    test = (test.float() - mean) / std
    model = network().to(memory_format=layout)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": REG}, {"params": others}]
    optimizer = torch.optim.Adam(groups, 2e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    generator = torch.Generator().manual_seed(args.seed)
    found = []
    while len(found) < args.epochs and (not found or found[-1] < args.target):
        model.train()
        for indices in torch.randperm(len(images), generator=generator).split(BATCH):
            x = augmented(images, indices, generator).to(memory_format=layout)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels[indices]).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            scores = [model(x.to(memory_format=layout)) for x in test.split(BATCH)]
        found.append((torch.cat(scores).argmax(1) == truth).float().mean().item())
        print(f"epoch {len(found)}: {found[-1]:.4f} after {time.perf_counter() - start:.1f} s", flush=True)
    reached = "reached" if found[-1] >= args.target else "not reached"
    seconds = time.perf_counter() - start
    print(f"{100 * args.target:.0f} % {reached} after {len(found)} epochs and {seconds:.1f} s on {args.threads} threads")


if __name__ == "__main__":
    main()
