"""The laws of whole networks: fast kernels train as the reference does in float64, gradients and losses alike."""

import numpy as np
import pytest
from kernel_cases import fresh

from dsgd_mpi import kernels
from dsgd_mpi.errors import UsageError
from dsgd_mpi.nn.resnet import resnet
from dsgd_mpi.sgd import LocalSgd

CASES = [("resnet8", (16, 16, 1), 8), ("resnet20", (16, 16, 3), 8), ("resnet18", (48, 48, 3), 4)]
print_ = print


def pair(name, image, batch, seed):
    """The same network on the kernels under test and on the oracle."""
    try:
        fast = kernels.load("onednn")
    except UsageError as reason:
        pytest.skip(str(reason))
    return [resnet(name, 10, image, batch, k, seed=seed) for k in (fast, kernels.load("reference", "float64"))]


def examples(rng, image, batch):
    return rng.standard_normal((batch, *image)).astype("float32"), rng.integers(0, 10, batch)


@pytest.mark.parametrize(("name", "image", "batch"), CASES)
def test_g(name, image, batch):
    for i in range(20):
        rng = np.random.default_rng(i)
        a, b = pair(name, image, batch, i)
        im, l = examples(rng, image, batch)
        la, lb = a.loss_and_gradient(im, l), b.loss_and_gradient(im, l)
        err = {n: np.abs(a.gradient[n]-b.gradient[n]).max()/np.abs(b.gradient[n]).max() for n in a.gradient}
        n = max(err, key=err.get)
        d = np.linalg.norm(a.flat_gradient - b.flat_gradient)/np.linalg.norm(b.flat_gradient)
        print_(name, i, la-lb, n, err[n], np.abs(a.flat_gradient-b.flat_gradient).max()/np.abs(b.flat_gradient).max(), d)
        A, B = [], []
        for m, out in ((a, A), (b, B)):
            s = LocalSgd(m.parameters, 0.9, 1e-4, m.kernels.nesterov, dtype=m.flat.dtype.name)
            for _ in range(10):
                out.append(m.loss_and_gradient(im, l)); s.update(m.flat, m.flat_gradient, 0.01)
        print_(np.abs(np.subtract(A, B)).max(), B[0], B[-1])
