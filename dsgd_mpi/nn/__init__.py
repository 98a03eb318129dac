"""Residual networks on one flat vector; the kernels that compute them are passed in."""

from dsgd_mpi.nn.model import Model
from dsgd_mpi.nn.models.resnet import resnet

__all__ = ["Model", "resnet"]
