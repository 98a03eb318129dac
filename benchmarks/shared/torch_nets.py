"""The same networks as PyTorch modules with the same names, so that weights can be loaded by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsgd_mpi.nn.models.resnet import BOTTLENECK, LARGE, SMALL


class OptionA(nn.Module):
    """Every second pixel, channels padded with zeros on both sides alike."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing // 2))


def convolution(channels: int, out: int, window: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, window, stride, window // 2, bias=False)


class Block(nn.Module):
    """Basic (two 3x3 convolutions) or bottleneck (1x1, 3x3, 1x1), as torchvision writes them."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, option_a: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        windows = ((channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)) if bottleneck else (
            (channels, width, 3, stride), (width, out, 3, 1))
        self.count = len(windows)
        for i, (before, after, window, step) in enumerate(windows, start=1):
            self.add_module(f"conv{i}", convolution(before, after, window, step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = OptionA(out - channels) if option_a else nn.Sequential(
                convolution(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y, inplace=True)
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """Any network of `dsgd_mpi.nn.models.resnet` by its name."""

    def __init__(self, name: str, classes: int, channels: int) -> None:
        super().__init__()
        self.large, bottleneck = name in LARGE, name in BOTTLENECK
        blocks = LARGE[name] if self.large else (SMALL[name],) * 3
        width = 64 if self.large else 16
        self.conv1 = convolution(channels, width, 7, 2) if self.large else convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        before = width
        for stage, count in enumerate(blocks):
            stack = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                stack.append(Block(before, width << stage, stride, bottleneck, not self.large))
                before = (width << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*stack))
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.large:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def loaded(name: str, classes: int, channels: int, state: dict[str, object]) -> ResNet:
    """The network with the weights and statistics given by name; every name must fit."""
    net = ResNet(name, classes, channels)
    missing, unexpected = net.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=False)
    assert not unexpected, unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return net
