"""Residual networks (He et al. 2015, arXiv:1512.03385).

resnet8 ... 110: section 4.2, for small images: a 3x3 stem, three stages of 16, 32, 64 channels, shortcuts of option A
(every second pixel, padded with zeros: no parameters). resnet18 ... 152: section 4.1, with torchvision's names and its
"v1.5" change: a bottleneck's stride is on the 3x3 convolution, not on the first 1x1.
"""

from __future__ import annotations

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Kernels
from dsgd_mpi.kernels.load import load
from dsgd_mpi.nn.layers import Network
from dsgd_mpi.nn.model import Model

SMALL = {f"resnet{6 * n + 2}": n for n in (1, 2, 3, 5, 7, 9, 18)}
LARGE = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3),
         "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")
NAMES = (*SMALL, *LARGE)


def resnet(name: str, classes: int, image: Shape, batch: int, kernels: Kernels | str = "auto",
           dtype: str = "float32", seed: int = 0, smoothing: float = 0.0) -> Model:
    """A network with its weights drawn from `seed`, for images (H, W, C) in batches of `batch`.

    `kernels`: those to compute with, or a name for `dsgd_mpi.kernels.load`. `dtype`: of activations. `smoothing`: of
    the labels. UsageError for a name that is not in `NAMES`, or images too small for the network.
    """
    if isinstance(kernels, str):
        kernels = load(kernels, dtype)
    return Model(network(name, classes, image), batch, kernels, seed, smoothing)


def network(name: str, classes: int, image: Shape) -> Network:
    """The layers alone."""
    if name not in NAMES:
        raise UsageError(f"unknown model {name!r}; the choices are {', '.join(NAMES)}")
    net = Network(image)
    x = small(net, SMALL[name]) if name in SMALL else large(net, LARGE[name], name in BOTTLENECK)
    net.linear("fc", net.average_pool("avgpool", x), classes)
    return net


def small(net: Network, blocks: int) -> str:
    """The three stages for small images."""
    x = net.batch_norm("bn1", net.convolution("conv1", "images", 16, 3), relu=True)
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = basic(net, name, x, channels, stride)
            shortcut = net.subsample(f"{name}.shortcut", x, channels) if stride > 1 else x
            x = net.batch_norm(f"{name}.bn2", y, relu=True, add=shortcut)
    return x


def large(net: Network, blocks: tuple[int, ...], bottleneck: bool) -> str:
    """The four stages for large images."""
    x = net.batch_norm("bn1", net.convolution("conv1", "images", 64, 7, stride=2), relu=True)
    x = net.max_pool("maxpool", x, window=3, stride=2, pad=1)
    for stage, count in enumerate(blocks, start=1):
        channels = 32 << stage
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = narrow_wide(net, name, x, channels, stride) if bottleneck else basic(net, name, x, channels, stride)
            shortcut = x if net.shapes[x] == net.shapes[y] else projection(net, name, x, net.shapes[y][-1], stride)
            x = net.batch_norm(f"{name}.bn{3 if bottleneck else 2}", y, relu=True, add=shortcut)
    return x


def basic(net: Network, name: str, x: str, channels: int, stride: int) -> str:
    """Two 3x3 convolutions, up to the second's batch norm."""
    x = net.convolution(f"{name}.conv1", x, channels, 3, stride)
    x = net.batch_norm(f"{name}.bn1", x, relu=True)
    return net.convolution(f"{name}.conv2", x, channels, 3)


def narrow_wide(net: Network, name: str, x: str, channels: int, stride: int) -> str:
    """A bottleneck: 1x1, 3x3, 1x1 to four times the channels, up to the last one's batch norm."""
    x = net.convolution(f"{name}.conv1", x, channels, 1)
    x = net.batch_norm(f"{name}.bn1", x, relu=True)
    x = net.convolution(f"{name}.conv2", x, channels, 3, stride)
    x = net.batch_norm(f"{name}.bn2", x, relu=True)
    return net.convolution(f"{name}.conv3", x, 4 * channels, 1)


def projection(net: Network, name: str, x: str, channels: int, stride: int) -> str:
    """The shortcut of option B."""
    x = net.convolution(f"{name}.downsample.0", x, channels, 1, stride)
    return net.batch_norm(f"{name}.downsample.1", x, relu=False)
