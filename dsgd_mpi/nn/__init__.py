"""Residual networks on one flat vector; the kernels that compute them are passed in."""

from dsgd_mpi.nn.build import build
from dsgd_mpi.nn.model import Model

resnet = build                              # what most models are

__all__ = ["Model", "build", "resnet"]
