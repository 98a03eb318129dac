"""What a training step moves through a GPU's memory, as `benchmarks.gpu.bytes` counts it."""

import re

import pytest
from click.testing import CliRunner

from benchmarks.gpu.bytes import ARRAYS, Counting, bytes_moved, counted, main, total
from dsgd_mpi.kernels.api import AveragePool, BatchNorm, Convolution, Linear, MaxPool
from dsgd_mpi.kernels.gpu.device import source
from dsgd_mpi.kernels.gpu.tools import FORMATS
from dsgd_mpi.nn import models
from dsgd_mpi.nn.layers import Graph

RESNET50_BYTES = 90_489_209_488             # a step of batch 256 in bfloat16; to be lowered, and never raised unawares
DECLARED = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(([^)]*)\)')


def test_a_step_of_resnet50_moves_so_many_bytes():
    _, moved = counted(models.graph("resnet50", 1000, (224, 224, 3)), 256, "bfloat16")
    assert total(moved) == RESNET50_BYTES


def small():
    """Every kind of layer of ResNet-50, on 2 images of 8 x 8 pixels with 3 channels."""
    graph = Graph((8, 8, 3))
    x = graph.add("n1", BatchNorm(relu=True), graph.add("c1", Convolution(16, 3, 1, 1), "images"))
    x = graph.add("pool", MaxPool(3, 2, 1), x)
    y = graph.add("c2", Convolution(16, 1), x)
    x = graph.add("n2", BatchNorm(relu=True), y, add=x)
    graph.add("fc", Linear(10), graph.add("mean", AveragePool(), x))
    return graph


def test_the_bytes_of_a_small_net_are_those_that_its_kernels_are_seen_to_move():
    """Written down from the kernels' descriptions: 2 bytes an activation, 4 a weight or a number per channel."""
    image, padded, large, little, pooled = (2 * pixels * c for pixels, c in (
        (64, 3), (64, 8), (64, 16), (16, 16), (1, 16)))     # elements, of 2 images
    c1, c2, fc = 16 * 9 * 3, 16 * 16, 10 * 16               # weights, and their copies with padded channels:
    own1, own2, own_fc = 16 * 9 * 8, 16 * 16, 16 * 16
    logits, wide_logits, row = 2 * 10, 2 * 16, 4 * 16       # a number per channel of 16
    scale = 4 * 4                           # of the loss, its inverse, two counters
    trained = c1 + c2 + fc + 10 + 4 * 16
    images_in = image + 2 * 4 * 3 + 2 * padded
    copied = 2 * 2 * (wide_logits + logits)                 # the logits, and their gradient
    products = {"c1": 2 * 2 * (padded + own1 + large), "c2": 3 * 2 * (little + own2 + little),
                "fc": 3 * 2 * (pooled + own_fc + wide_logits)}
    casts = sum(2 * (4 * ours + 2 * own) for ours, own in ((c1, own1), (c2, own2), (fc, own_fc))) + 3 * scale
    statistics = 3 * row + 5 * row + 2 * 2 * row + 2 * 4    # over one slab of rows, a group of 16 channels: 1 counter
    sums = 4 * row + 4 * row + 2 * 2 * row + 2 * 4 + scale
    n1 = (2 * large + statistics) + (3 * row + 2 * 2 * large) + (2 * 2 * large + sums) + (5 * row + 3 * 2 * large)
    signs = little // 4                     # a byte for four of them
    n2 = ((2 * little + statistics) + (3 * row + 3 * 2 * little + signs) + (3 * 2 * little + signs + sums)
          + (5 * row + 3 * 2 * little))
    pool = 2 * (2 * large + 3 * little) + 2 * little        # a byte tells where a maximum was; its y has two gradients
    mean = 2 * 2 * (little + pooled)
    bias = (4 * 10 + 2 * 2 * logits) + (2 * logits + scale + 4 * 10)
    loss = 2 * 2 * logits + 3 * 2 * 4 + scale + 2 * 4 + 2 * 4 + 4     # of each image two labels and a share
    update = 4 * (5 * trained + 3 * 4 * 16 + 1) + scale
    expected = (copied + sum(products.values()) + casts + n1 + n2 + pool + mean + bias + loss
                + update)
    assert bytes_moved(small(), 2, "bfloat16") == expected
    assert total(counted(small(), 2, "bfloat16")[1]) == expected + images_in


def test_every_kernel_says_which_of_its_arrays_it_reads_and_writes():
    """As its source does: what is read only is const there."""
    found = {}
    for name, parameters in DECLARED.findall(source()):
        pointers = [one for one in parameters.split(",") if "*" in one]
        found[name] = [("" if "const" in one else "=") + re.findall(r"\w+", one)[-1] for one in pointers]
    ours = {name: arrays for name, arrays in ARRAYS.items() if "," not in name}
    assert found == {name: [each.replace("+", "=") for each in arrays] for name, arrays in ours.items()}


def test_a_kernel_that_has_not_said_is_refused():
    with pytest.raises(ValueError, match=r"unheard: which of its arrays it reads and writes is unknown; add it to"):
        Counting(FORMATS["float32"]).kernel("unheard", 1, (1,), (1,))


def test_the_table_adds_up():
    done = CliRunner().invoke(main, ["--net", "resnet18", "--batch", "2", "--rate", "2"])
    assert done.exit_code == 0, done.output
    kernels, memory, last = done.output.strip().split("\n\n")
    sums = [sum(float(line.split()[-2]) for line in kernels.splitlines()[1:]),
            sum(float(number) for line in memory.splitlines()[1:] for number in line.split()[-2:])]
    said = float(last.split()[0])
    assert sums == pytest.approx([said, said], abs=0.02)
    assert float(last.split()[5]) == pytest.approx(said / 2, abs=0.01)
