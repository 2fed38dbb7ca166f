#!/usr/bin/env python3
"""Times the cases of `cargo bench --bench speed` in PyTorch: a JSON line a case, by the same names.

Modes: `eager` is f32 with TF32 matrix products where the device has them; `amp` is bf16 autocast
with images channels-last; `compile` is amp through torch.compile with CUDA graphs, training steps
only. First come the device's own rates, as the best libraries reach them: a copy, and matrix
products of 8192. A training step is forward, loss, backward and the optimizer's update.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

RUN = 0.05  # a run repeats its step until it has taken this long, in seconds


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, the input (or its 1x1 projection) added, relu."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, to 4 d and back with GELU, a scale."""

    def __init__(self, d):
        super().__init__()
        self.dwconv = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)
        self.gamma = nn.Parameter(torch.full((d,), 1e-6))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def three_layer():
    return nn.Sequential(
        *[nn.Conv2d(3, 32, 7, padding=3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
        *[nn.Linear(32 * 16 * 16, 100), nn.ReLU(), nn.Linear(100, 10)],
    )


def deeper():
    return nn.Sequential(
        *[nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()],
        *[nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Linear(64 * 16 * 16, 256), nn.BatchNorm1d(256), nn.ReLU()],
        nn.Linear(256, 10),
    )


def resnet18():
    """With CIFAR's 3x3 stem."""
    net = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        net += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def convnext_stage():
    """The first stage, with its patch stem and a classifier."""
    blocks = [ConvNeXtBlock(96) for _ in range(3)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 200)]
    return nn.Sequential(nn.Conv2d(3, 96, 4, 4), *blocks, *head)


class Bench:
    def __init__(self, args):
        self.device, self.mode, self.only = torch.device(args.device), args.mode, args.only
        self.repeats = args.repeats
        self.amp = args.mode != "eager"
        self.format = torch.channels_last if self.amp else torch.contiguous_format

    def wanted(self, case):
        return self.only in case

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def seconds(self, f):
        """The times of one call of `f`, each the mean over a run, sorted."""
        for _ in range(3):
            f()
        self.wait()
        inner, times = 1, []
        while len(times) < self.repeats:
            start = time.perf_counter()
            for _ in range(inner):
                f()
            self.wait()
            took = time.perf_counter() - start
            if not times and took < RUN and inner < 10000:
                inner = int(inner * min(100, RUN / took * 1.2)) + 1
            else:
                times.append(took / inner)
        return sorted(times)

    def time(self, case, f):
        ms = [1e3 * s for s in self.seconds(f)]
        row = {"case": case, "median_ms": statistics.median(ms), "min_ms": ms[0], "max_ms": ms[-1]}
        row = {k: round(v, 4) if k != "case" else v for k, v in row.items()}
        self.print(row | {"device": str(self.device), "mode": self.mode})

    def print(self, row):
        print(json.dumps({"peer": "pytorch"} | row), flush=True)

    def rates(self):
        """GB/s read and written by a copy; TFLOP/s of f32, TF32 and bf16 matrix products."""
        n = 1 << 28 if self.device.type == "cuda" else 1 << 24
        a = torch.zeros(n, device=self.device)
        b = torch.empty_like(a)
        row = {"copy_gbs": 2 * 4 * n / self.seconds(lambda: b.copy_(a))[0] / 1e9}
        n = 8192 if self.device.type == "cuda" else 512
        for name in ["f32", "tf32", "bf16"]:
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            # random numbers: a card draws less power on zeros, and runs faster
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            x = torch.randn(n, n, device=self.device, dtype=dtype)
            row[f"{name}_tflops"] = 2 * n**3 / self.seconds(lambda x=x: x @ x)[0] / 1e12
        self.print({"rates": {k: round(v, 2) for k, v in row.items()}})

    def train(self, case, model, shape, classes, optimizer):
        if not self.wanted(case):
            return
        torch.manual_seed(0)
        model = model().to(self.device, memory_format=self.format).train()
        update = optimizer(model.parameters())
        x = torch.randn(*shape, device=self.device).to(memory_format=self.format)
        y = torch.randint(0, classes, shape[:1], device=self.device)
        forward = torch.compile(model, mode="reduce-overhead") if self.mode == "compile" else model

        def step():
            update.zero_grad()
            with self.autocast():
                loss = F.cross_entropy(forward(x), y)
            loss.backward()
            update.step()

        self.time(case, step)

    def op(self, case, f, *shapes):
        if self.mode == "compile" or not (self.wanted(case) or self.wanted(case + "/fwd+bwd")):
            return
        dtype = torch.bfloat16 if self.amp else torch.float32
        inputs = [torch.randn(*shape, device=self.device, dtype=dtype) for shape in shapes]
        inputs = [x.to(memory_format=self.format) if x.dim() == 4 else x for x in inputs]
        with torch.no_grad():
            self.time(case + "/fwd", lambda: f(*inputs))
        leaves = [x.requires_grad_() for x in inputs]
        dy = torch.randn_like(f(*leaves))

        def both():
            for x in leaves:
                x.grad = None
            f(*leaves).backward(dy)

        self.time(case + "/fwd+bwd", both)


def train_cases(b):
    fused = {"fused": b.device.type == "cuda"}

    def adam(p):
        return torch.optim.Adam(p, 1e-3, **fused)

    def sgd(p):
        return torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, **fused)

    def adamw(p):
        return torch.optim.AdamW(p, 4e-3, **fused)

    return [
        ("train/three_layer/b100", three_layer, (100, 3, 32, 32), 10, adam),
        ("train/deeper/b100", deeper, (100, 3, 32, 32), 10, adam),
        ("train/resnet18/b32", resnet18, (32, 3, 32, 32), 10, adam),
        ("train/resnet18/b128", resnet18, (128, 3, 32, 32), 10, sgd),
        ("train/convnext_stage/b16x96x16", convnext_stage, (16, 3, 64, 64), 200, adamw),
    ]


def op_cases(b):
    zeros = torch.zeros(4096, dtype=torch.long, device=b.device)

    def conv(kernel, groups=1):
        return lambda x, w: F.conv2d(x, w, padding=kernel // 2, groups=groups)

    def layer_norm(x, w, b):
        return F.layer_norm(x, (384,), w, b)

    def batch_norm(x, w, b):
        return F.batch_norm(x, None, None, w, b, True)

    return [
        ("matmul/1024", torch.matmul, (1024, 1024), (1024, 1024)),
        ("bmm/64x128", torch.matmul, (64, 128, 128), (64, 128, 128)),
        ("conv3x3/n32c64h32", conv(3), (32, 64, 32, 32), (64, 64, 3, 3)),
        ("conv3x3/n32c256h8", conv(3), (32, 256, 8, 8), (256, 256, 3, 3)),
        ("conv1x1/n32c128h16", conv(1), (32, 128, 16, 16), (128, 128, 1, 1)),
        ("dwconv7x7/n16c96h32", conv(7, 96), (16, 96, 32, 32), (96, 1, 7, 7)),
        ("layernorm/8192x384", layer_norm, (8192, 384), (384,), (384,)),
        ("gelu/4M", F.gelu, (4096, 1024)),
        ("batchnorm/n32c64h32", batch_norm, (32, 64, 32, 32), (64,), (64,)),
        ("maxpool2/n32c64h32", lambda x: F.max_pool2d(x, 2), (32, 64, 32, 32)),
        ("softmax_ce/4096x200", lambda x: F.cross_entropy(x, zeros), (4096, 200)),
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", choices=["eager", "amp", "compile"], default="eager")
    parser.add_argument("--only", default="", metavar="SUBSTR")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="on the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    bench = Bench(args)
    if args.mode == "eager" and not args.only:
        bench.rates()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    jobs = [(bench.train, case) for case in train_cases(bench)]
    jobs += [(bench.op, case) for case in op_cases(bench)]
    for job, case in jobs:
        try:
            job(*case)
        except Exception as error:  # the other cases are still worth their time
            print(f"{case[0]}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
