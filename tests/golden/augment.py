#!/usr/bin/env python3
"""Writes augment.json: what PyTorch makes of an image, for transforms with every setting fixed.

The formulas around PyTorch's own functions (grid_sample, interpolate, conv2d) are torchvision's;
the hue goes through Python's colorsys. All in float64.

One formula is deliberately not torchvision's: a bilinear rotation or affine map with a fill. There
torchvision has m * sum(w * x) + (1 - m) * fill, m the sum of the weights within the image, so that
the border is weighted by m twice. Here it is sum(w * x) + (1 - m) * fill.
"""

import colorsys
import json
import math
import pathlib

import torch
import torch.nn.functional as F


def image(shape):
    """The bytes of tests/augment.rs, from 0 to 1."""
    i = torch.arange(math.prod(shape), dtype=torch.int64)
    return ((i * 37 + i * i // 5) % 256).to(torch.float64).div(255).reshape(shape)


def inverse_affine(angle, scale, shear):
    rot, sx, sy = (math.radians(a) for a in (angle, *shear))
    a = math.cos(rot - sy) / math.cos(sy)
    b = -math.cos(rot - sy) * math.tan(sx) / math.cos(sy) - math.sin(rot)
    c = math.sin(rot - sy) / math.cos(sy)
    d = -math.sin(rot - sy) * math.tan(sx) / math.cos(sy) + math.cos(rot)
    return [x / scale for x in (d, -b, 0.0, -c, a, 0.0)]


def warp(x, matrix, mode):
    _, h, w = x.shape
    theta = torch.tensor(matrix, dtype=torch.float64).reshape(2, 3)
    # from pixels about the middle to -1..1
    theta = theta * torch.tensor([[1, h / w, 2 / w], [w / h, 1, 2 / h]], dtype=torch.float64)
    grid = F.affine_grid(theta[None], [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def grey(x):
    return (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]


def blend(x, other, factor):
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def hue(x, turn):
    pixels = x.reshape(3, -1).T.tolist()
    hsv = [colorsys.rgb_to_hsv(*p) for p in pixels]
    rgb = [colorsys.hsv_to_rgb((h + turn) % 1.0, s, v) for h, s, v in hsv]
    return torch.tensor(rgb, dtype=torch.float64).T.reshape(x.shape)


def blur(x, k, sigma):
    at = torch.linspace(-(k - 1) / 2, (k - 1) / 2, k, dtype=torch.float64)
    pdf = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = pdf / pdf.sum()
    kernel = torch.outer(kernel, kernel).expand(x.shape[0], 1, k, k)
    padded = F.pad(x[None], [k // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=x.shape[0])[0]


def cases():
    shape = (3, 9, 12)
    for name, mode in [("Nearest", "nearest"), ("Bilinear", "bilinear")]:
        fixed = {"interpolation": name, "fill": {"Value": [0.0]}}
        # a quarter of an odd by even image falls between pixels
        for angle, size in [(31, shape), (-77, shape), (90, (3, 8, 12)), (180, shape)]:
            settings = {"degrees": [angle, angle], **fixed}
            yield size, {"RandomRotation": settings}, lambda x: warp(x, inverse_affine(-angle, 1, [0, 0]), mode)
        for angle, scale, shear in [(21, 1.25, (11, 4)), (-140, 0.5, (-23, 0)), (0, 3, (0, 30))]:
            settings = {
                "degrees": [angle, angle],
                "translate": [0, 0],
                "scale": [scale, scale],
                "shear": [[s, s] for s in shear],
                **fixed,
            }
            yield shape, {"RandomAffine": settings}, lambda x: warp(x, inverse_affine(angle, scale, shear), mode)
    fill = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)[:, None, None]
    settings = {"degrees": [31, 31], "interpolation": "Bilinear", "fill": {"Value": fill.flatten().tolist()}}

    def filled(x):
        within = warp(torch.ones_like(x), inverse_affine(-31, 1, [0, 0]), "bilinear")
        return warp(x, inverse_affine(-31, 1, [0, 0]), "bilinear") + (1 - within) * fill

    yield shape, {"RandomRotation": settings}, filled
    for size in [(4, 5), (9, 25), (20, 3), (1, 1), (9, 12)]:
        for name, mode, antialias in [
            ("Nearest", "nearest", False),
            ("Bilinear", "bilinear", False),
            ("Bilinear", "bilinear", True),
        ]:
            settings = {"size": size, "interpolation": name, "antialias": antialias}
            yield shape, {"Resize": settings}, lambda x: F.interpolate(x[None], size, mode=mode, antialias=antialias)[0]
    one = {"brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": [0, 0]}
    for f in [0, 0.375, 1.75]:
        for name, other in [
            ("brightness", lambda x: 0),
            ("contrast", lambda x: grey(x).mean()),
            ("saturation", grey),
        ]:
            yield shape, {"ColorJitter": {**one, name: [f, f]}}, lambda x: blend(x, other(x), f)
    yield (1, 5, 7), {"ColorJitter": {**one, "contrast": [0.5, 0.5]}}, lambda x: blend(x, x.mean(), 0.5)
    for turn in [-0.5, -0.125, 0.25, 0.4375]:
        yield shape, {"ColorJitter": {**one, "hue": [turn, turn]}}, lambda x: hue(x, turn)
    yield shape, {"Grayscale": {"channels": 1}}, grey
    yield shape, {"Grayscale": {"channels": 3}}, lambda x: grey(x).expand(shape)
    for k, sigma in [(3, 0.5), (5, 1.25), (9, 4.0)]:
        yield shape, {"GaussianBlur": {"kernel_size": k, "sigma": [sigma, sigma]}}, lambda x: blur(x, k, sigma)
    mean, std = [0.5, 0.25, 0.125], [0.25, 0.5, 2]
    column = lambda v: torch.tensor(v, dtype=torch.float64)[:, None, None]
    yield shape, {"Normalize": {"mean": mean, "std": std}}, lambda x: (x - column(mean)) / column(std)


rows = []
for shape, transform, f in cases():
    y = f(image(shape))
    values = [round(v, 7) for v in y.flatten().tolist()]
    row = {"shape": shape, "transform": transform, "out": list(y.shape), "values": values}
    rows.append(json.dumps(row, separators=(",", ":")))
path = pathlib.Path(__file__).with_name("augment.json")
path.write_text("[\n" + ",\n".join(rows) + "\n]\n")
