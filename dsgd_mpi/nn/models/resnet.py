"""Residual networks (He et al. 2015, arXiv:1512.03385).

resnet8 ... 110: section 4.2, for small images: a 3x3 stem, three stages of 16, 32, 64 channels, shortcuts of option A
(every second pixel, padded with zeros: no parameters). resnet18 ... 152: section 4.1, with torchvision's names and its
"v1.5" change: a bottleneck's stride is on the 3x3 convolution, not on the first 1x1.
"""

from __future__ import annotations

from dsgd_mpi.arrays.flat import Shape
from dsgd_mpi.kernels.api import AveragePool, BatchNorm, Convolution, Linear, MaxPool, Subsample
from dsgd_mpi.nn.layers import Graph

SMALL = {f"resnet{6 * n + 2}": n for n in (1, 2, 3, 5, 7, 9, 18)}
LARGE = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3),
         "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")
NAMES = (*SMALL, *LARGE)


def graph(name: str, classes: int, image: Shape) -> Graph:
    graph = Graph(image)
    x = small(graph, SMALL[name]) if name in SMALL else large(graph, LARGE[name], name in BOTTLENECK)
    graph.add("fc", Linear(classes), graph.add("avgpool", AveragePool(), x))
    return graph


def usual(name: str) -> tuple[int, Shape]:
    """ImageNet's classes and images, or CIFAR-10's."""
    return (1000, (224, 224, 3)) if name in LARGE else (10, (32, 32, 3))


def small(graph: Graph, blocks: int) -> str:
    """The three stages for small images."""
    x = normed(graph, "bn1", convolution(graph, "conv1", "images", 16, 3))
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = basic(graph, name, x, channels, stride)
            shortcut = graph.add(f"{name}.shortcut", Subsample(channels), x) if stride > 1 else x
            x = normed(graph, f"{name}.bn2", y, add=shortcut)
    return x


def large(graph: Graph, blocks: tuple[int, ...], bottleneck: bool) -> str:
    """The four stages for large images."""
    x = normed(graph, "bn1", convolution(graph, "conv1", "images", 64, 7, stride=2))
    x = graph.add("maxpool", MaxPool(window=3, stride=2, pad=1), x)
    for stage, count in enumerate(blocks, start=1):
        channels = 32 << stage
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = narrow_wide(graph, name, x, channels, stride) if bottleneck else basic(graph, name, x, channels, stride)
            same = graph.shapes[x] == graph.shapes[y]
            shortcut = x if same else projection(graph, name, x, graph.shapes[y][-1], stride)
            x = normed(graph, f"{name}.bn{3 if bottleneck else 2}", y, add=shortcut)
    return x


def basic(graph: Graph, name: str, x: str, channels: int, stride: int) -> str:
    """Two 3x3 convolutions, up to the second's batch norm."""
    x = normed(graph, f"{name}.bn1", convolution(graph, f"{name}.conv1", x, channels, 3, stride))
    return convolution(graph, f"{name}.conv2", x, channels, 3)


def narrow_wide(graph: Graph, name: str, x: str, channels: int, stride: int) -> str:
    """A bottleneck: 1x1, 3x3, 1x1 to four times the channels, up to the last one's batch norm."""
    x = normed(graph, f"{name}.bn1", convolution(graph, f"{name}.conv1", x, channels, 1))
    x = normed(graph, f"{name}.bn2", convolution(graph, f"{name}.conv2", x, channels, 3, stride))
    return convolution(graph, f"{name}.conv3", x, 4 * channels, 1)


def projection(graph: Graph, name: str, x: str, channels: int, stride: int) -> str:
    """The shortcut of option B."""
    x = convolution(graph, f"{name}.downsample.0", x, channels, 1, stride)
    return graph.add(f"{name}.downsample.1", BatchNorm(relu=False), x)


def convolution(graph: Graph, name: str, x: str, channels: int, window: int, stride: int = 1) -> str:
    """Padded so that stride 1 keeps the size."""
    return graph.add(name, Convolution(channels, window, stride, window // 2), x)


def normed(graph: Graph, name: str, x: str, add: str | None = None) -> str:
    """Batch norm [+ the activation `add`], and ReLU."""
    return graph.add(name, BatchNorm(relu=True), x, add)
