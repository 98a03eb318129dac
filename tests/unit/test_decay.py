"""Whether batch norm's parameters and biases decay is a choice of every optimizer that decays, by the same name."""

import numpy as np
import pytest

from dsgd_mpi import algorithms, optim
from dsgd_mpi.arrays.flat import Layout
from dsgd_mpi.train import command
from dsgd_mpi.training.build import optimizer_of

LAYOUT = Layout({"conv.weight": (4, 3), "norm.weight": (5,), "norm.bias": (5,), "fc.weight": (2, 5), "fc.bias": (2,)})
CHOICES = [(name, ("decay=all",), True) for name in optim.names()]
CHOICES += [(name, ("decay=weights",), False) for name in optim.names()]
CHOICES += [(name, (f"adapt={adapt}", *decay), all_decay) for name in ("lars", "lamb") for adapt, decay, all_decay in (
    ("all", (), True), ("weights", (), False), ("all", ("decay=weights",), False), ("weights", ("decay=all",), True))]


@pytest.mark.parametrize(("name", "options", "all_decay"), CHOICES)
def test_what_is_no_weight_decays_where_it_is_asked_for(name, options, all_decay):
    """Where the gradient is zero, decay is all that moves. The options are those of the command line."""
    words = [word for option in options for word in ("--set-optimizer", option)]
    config = command.main(["--optimizer", name, "--weight-decay", "0.1", *words], standalone_mode=False)
    x = np.arange(1.0, LAYOUT.size + 1)
    before, layers = LAYOUT.views(x.copy()), LAYOUT.views(x)
    optimizer = optimizer_of(config, algorithms.build("allreduce", {})).start(LAYOUT, x)
    optimizer.update(x, np.zeros_like(x), 0.1)
    for key in LAYOUT.trained:
        moved = all_decay or layers[key].ndim > 1
        assert (layers[key] < before[key]).all() if moved else (layers[key] == before[key]).all(), key
