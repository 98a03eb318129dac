"""A small training put together by hand: resnet8 on few images, on a simulated rank."""

import numpy as np

from dsgd_mpi import algorithms
from dsgd_mpi.data import Batches, open_dataset
from dsgd_mpi.data.formats import Split
from dsgd_mpi.kernels.load import load
from dsgd_mpi.nn import resnet
from dsgd_mpi.optim.schedule import Schedule
from dsgd_mpi.optim.sgd import Sgd
from dsgd_mpi.training.checkpoint import Checkpoints
from dsgd_mpi.training.parts import Training


def training(host, folder, algorithm, steps, shared_out=False):
    """On two images a step; evaluated on eight, at the end alone; a checkpoint each 25 steps."""
    dataset = open_dataset("fashion-mnist-12k")
    few = Split(np.zeros((8, 28, 28, 1), np.uint8), np.zeros(8), dataset.test.mean, dataset.test.std)
    servers = algorithms.serving(algorithm, host.size)
    workers = host.size - servers
    model = resnet("resnet8", 10, (28, 28, 1), 2, load("reference"))
    optimizer = Sgd(weight_decay=0.0).start(model.layout, model.flat, model.kernels)
    return Training(
        host=host, net=host, model=model, test=few, algorithm=algorithm, optimizer=optimizer,
        batches=Batches(dataset.train, 2, max(0, host.rank - servers), workers, 0, False),
        schedule=Schedule(0.01, "constant", steps), checkpoints=Checkpoints(host, folder, {}), steps=steps,
        steps_per_epoch=1000, ranks_per_step=1 if shared_out else workers, eval_every=10**9, checkpoint_every=25,
        workers=workers, works=host.rank >= servers)
