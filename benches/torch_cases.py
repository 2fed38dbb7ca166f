#!/usr/bin/env python3
"""Times the cases of `cargo bench --bench speed` in PyTorch: a JSON line a case, by the same names.

Modes: `eager` is f32 with TF32 matrix products where the device has them, with `--channels-last`
where images lie so; `amp` is bf16 autocast with images channels-last; `compile` is amp through
torch.compile with CUDA graphs, training steps only. First come the device's own rates, as the best
libraries reach them: a copy, and matrix products of 8192. A training step is forward, loss,
backward and the optimizer's update. Warm-up, runs and repeats are those of the bench.

`--memory` prints the peak of a training step instead, each case in a process of its own: how far
the process grew over what it held before the network was made (`resident_mb`), and on a CUDA device
what the allocator gave out (`allocated_mb`). `--list` names the training cases with their networks'
trained parameters, which are the bench's to the last one:

    three_layer 825,046      deeper 4,217,226        resnet18 11,173,962    convnext_stage 261,992
    deepconv 307,946         resnet9 6,573,120       vgg16_bn 14,724,042    densenet_bc 769,162
    convnext_t 27,973,928    autoencoder 258,723     airbench94 1,972,480
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

RUN = 0.05  # a run repeats its step until it has taken this long, in seconds
STATUS = pathlib.Path("/proc/self/status")


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


def conv_bn_relu(inputs, outputs, activation=nn.ReLU):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), activation()]


def deepconv():
    """Pairs of conv-bn-relu, each with a pool behind it."""
    net = []
    for inputs, outputs in [(3, 32), (32, 64), (64, 128)]:
        net += conv_bn_relu(inputs, outputs) + conv_bn_relu(outputs, outputs) + [nn.MaxPool2d(2)]
    return nn.Sequential(*net, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))


class Residual(nn.Module):
    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


def resnet9():
    """David Page's ResNet-9."""
    return nn.Sequential(
        *conv_bn_relu(3, 64),
        *[*conv_bn_relu(64, 128), nn.MaxPool2d(2)],
        Residual(*conv_bn_relu(128, 128), *conv_bn_relu(128, 128)),
        *[*conv_bn_relu(128, 256), nn.MaxPool2d(2)],
        *[*conv_bn_relu(256, 512), nn.MaxPool2d(2)],
        Residual(*conv_bn_relu(512, 512), *conv_bn_relu(512, 512)),
        *[nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10, bias=False)],
    )


def vgg16_bn():
    """For CIFAR: one linear layer."""
    net, inputs = [], 3
    for outputs, depth in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(depth):
            net += conv_bn_relu(inputs, outputs)
            inputs = outputs
        net.append(nn.MaxPool2d(2))
    return nn.Sequential(*net, nn.Flatten(), nn.Linear(512, 10))


class DenseLayer(nn.Module):
    """The input with k new channels behind it, made by way of 4 k."""

    def __init__(self, inputs, k):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * k, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * k)
        self.conv2 = nn.Conv2d(4 * k, k, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(y)))], 1)


def densenet_bc():
    """DenseNet-BC-100: three blocks of 16 layers, 12 channels each, halved between the blocks."""
    k, c = 12, 24
    net = [nn.Conv2d(3, c, 3, padding=1, bias=False)]
    for block in range(3):
        if block:
            half = nn.Conv2d(c, c // 2, 1, bias=False)
            net += [nn.BatchNorm2d(c), nn.ReLU(), half, nn.AvgPool2d(2)]
            c //= 2
        for _ in range(16):
            net.append(DenseLayer(c, k))
            c += k
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)]
    return nn.Sequential(*net, nn.BatchNorm2d(c), nn.ReLU(), *head)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of images."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext_t():
    """ConvNeXt-Tiny."""
    net, inputs = [nn.Conv2d(3, 96, 4, 4), LayerNorm2d(96, eps=1e-6)], 96
    for outputs, depth in [(96, 3), (192, 3), (384, 9), (768, 3)]:
        if outputs != inputs:
            net += [LayerNorm2d(inputs, eps=1e-6), nn.Conv2d(inputs, outputs, 2, 2)]
            inputs = outputs
        net += [ConvNeXtBlock(outputs) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(768, eps=1e-6)]
    return nn.Sequential(*net, *head, nn.Linear(768, 200))


def autoencoder():
    """Three halvings by 3x3 convolutions, three doublings by transposed 4x4 ones."""
    net = []
    for inputs, outputs in [(3, 32), (32, 64), (64, 128)]:
        net += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    for inputs, outputs in [(128, 64), (64, 32)]:
        net += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*net, nn.ConvTranspose2d(32, 3, 4, 2, 1))


def airbench94():
    """Keller Jordan's: frozen whitening filters, three groups of two convolutions."""
    whitening = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
    net, inputs = [whitening, nn.GELU()], 24
    for outputs in [64, 256, 256]:
        first, norm, activation = conv_bn_relu(inputs, outputs, nn.GELU)
        net += [first, nn.MaxPool2d(2), norm, activation]
        net += conv_bn_relu(outputs, outputs, nn.GELU)
        inputs = outputs
    return nn.Sequential(*net, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(256, 10, bias=False))


def resident(field):
    """What Linux counts of this process's memory, in bytes: `VmRSS` now, `VmHWM` at most."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


class Bench:
    def __init__(self, args):
        self.device, self.mode, self.only = torch.device(args.device), args.mode, args.only
        self.repeats = args.repeats
        self.amp = args.mode != "eager"
        self.channels_last = self.amp or args.channels_last
        self.format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.layout = {"channels_last": True} if args.channels_last else {}

    def wanted(self, case):
        return self.only in case

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def seconds(self, f):
        """The times of one call of `f`, each the mean over a run, sorted."""

        def run(calls):
            start = time.perf_counter()
            for _ in range(calls):
                f()
            self.wait()
            return (time.perf_counter() - start) / calls

        run(2)
        calls = max(1, int(RUN / max(run(1), 1e-6)))
        return sorted(run(calls) for _ in range(self.repeats))

    def time(self, case, f):
        ms = [1e3 * s for s in self.seconds(f)]
        row = {"case": case, "median_ms": statistics.median(ms), "min_ms": ms[0], "max_ms": ms[-1]}
        row = {k: round(v, 4) if k != "case" else v for k, v in row.items()}
        self.print(row | {"device": str(self.device), "mode": self.mode} | self.layout)

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

    def step(self, model, shape, classes, optimizer):
        """Of a network and its optimizer on random images; without classes they are the target."""
        torch.manual_seed(0)
        model = model().to(self.device, memory_format=self.format).train()
        update = optimizer([p for p in model.parameters() if p.requires_grad])
        x = torch.randn(*shape, device=self.device).to(memory_format=self.format)
        y = torch.randint(0, classes, shape[:1], device=self.device) if classes else None
        forward = torch.compile(model, mode="reduce-overhead") if self.mode == "compile" else model

        def step():
            update.zero_grad()
            with self.autocast():
                out = forward(x)
                loss = F.mse_loss(out, x) if y is None else F.cross_entropy(out, y)
            loss.backward()
            update.step()

        return step

    def train(self, case, *what):
        if self.wanted(case):
            self.time(case, self.step(*what))

    def memory(self, case, *what):
        """The peak of a step, in this process, which has done nothing else."""
        # threads and lazily loaded code are no part of the network: a step of a tiny one loads them
        tiny = nn.Sequential(*conv_bn_relu(3, 4), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(4, 2))
        self.step(lambda: tiny, (2, 3, 8, 8), 2, what[-1])()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS again
        before = resident("VmRSS")
        step = self.step(*what)
        for _ in range(3):
            step()
        self.wait()
        row = {"case": case, "resident_mb": round((resident("VmHWM") - before) / 1e6, 1)}
        if self.device.type == "cuda":
            row["allocated_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e6, 1)
        self.print(row | {"device": str(self.device), "mode": self.mode} | self.layout)

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

    def sgd(p, lr=0.1):
        return torch.optim.SGD(p, lr, momentum=0.9, weight_decay=5e-4, **fused)

    def slow_sgd(p):
        return sgd(p, 0.01)

    def adamw(p):
        return torch.optim.AdamW(p, 4e-3, **fused)

    return [
        ("train/three_layer/b100", three_layer, (100, 3, 32, 32), 10, adam),
        ("train/deeper/b100", deeper, (100, 3, 32, 32), 10, adam),
        ("train/resnet18/b32", resnet18, (32, 3, 32, 32), 10, adam),
        ("train/resnet18/b128", resnet18, (128, 3, 32, 32), 10, sgd),
        ("train/convnext_stage/b16x96x16", convnext_stage, (16, 3, 64, 64), 200, adamw),
        ("train/deepconv/b32", deepconv, (32, 3, 32, 32), 10, slow_sgd),
        ("train/resnet9/b32", resnet9, (32, 3, 32, 32), 10, slow_sgd),
        ("train/vgg16_bn/b32", vgg16_bn, (32, 3, 32, 32), 10, slow_sgd),
        ("train/densenet_bc/b32", densenet_bc, (32, 3, 32, 32), 10, slow_sgd),
        ("train/convnext_t/b32x64", convnext_t, (32, 3, 64, 64), 200, adamw),
        ("train/autoencoder/b32", autoencoder, (32, 3, 32, 32), 0, slow_sgd),
        ("train/airbench94/b32", airbench94, (32, 3, 32, 32), 10, slow_sgd),
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
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--only", default="", metavar="SUBSTR")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="on the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    bench = Bench(args)
    trainings = train_cases(bench)
    if args.list:
        for case, model, *_ in trainings:
            counts = [p.numel() for p in model().parameters() if p.requires_grad]
            if bench.wanted(case):
                bench.print({"case": case, "parameters": sum(counts)})
        return
    if args.memory:
        words = [word for word in sys.argv if word != "--memory"]
        for case, *_ in trainings:
            if bench.wanted(case):
                again = [sys.executable, *words, "--memory-of", "--only", case]
                subprocess.run(again, check=True)
        return
    if args.memory_of:
        bench.memory(*next(case for case in trainings if case[0] == args.only))
        return
    if args.mode == "eager" and not args.only:
        bench.rates()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    jobs = [(bench.train, case) for case in trainings]
    jobs += [(bench.op, case) for case in op_cases(bench)]
    for job, case in jobs:
        try:
            job(*case)
        except Exception as error:  # the other cases are still worth their time
            print(f"{case[0]}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
