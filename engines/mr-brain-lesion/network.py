"""The engine's network and its export to one self-contained ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; instance norm makes it indifferent to contrast."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_a = nn.InstanceNorm2d(outputs, affine=True)
        self.norm_b = nn.InstanceNorm2d(outputs, affine=True)
        self.short = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.leaky_relu(self.norm_a(self.first(x)), 0.01)
        return nnf.leaky_relu(self.norm_b(self.second(y)) + self.short(x), 0.01)


class UNet(nn.Module):
    """Five levels, strided convolutions down, transposed convolutions up; returns logits."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.stem = Block(3, widths[0])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.encode = nn.ModuleList(Block(b, b) for _, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.decode = nn.ModuleList(Block(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.stem(x)]
        for down, encode in zip(self.down, self.encode, strict=True):
            kept.append(encode(down(kept[-1])))
        y = kept.pop()
        for up, decode in zip(reversed(self.up), reversed(self.decode), strict=True):
            y = decode(torch.cat([kept.pop(), up(y)], dim=1))
        return self.head(y)


class Exported(nn.Module):
    """The network with its sigmoid: the graph's output is a probability."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.net(image))


def export(net: UNet, path: Path, size: int = 128) -> None:
    sample = torch.zeros(2, 3, size, size)
    axes = {"image": {0: "batch"}, "probability": {0: "batch"}}
    torch.onnx.export(
        Exported(net).eval(), (sample,), str(path), opset_version=18, dynamo=False,
        input_names=["image"], output_names=["probability"], dynamic_axes=axes,
    )  # fmt: skip
