"""A network bound to memory and kernels: one flat vector of weights, one of gradients, activations allocated once.

The activations of a forward pass are all kept for the backward pass. The gradients of activations are short-lived, from
the layer that writes them first to the layer that made the activation, and share memory accordingly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import numpy as np

from dsgd_mpi.arrays.flat import Array, Buckets, Layout, fill, to_numpy
from dsgd_mpi.errors import UsageError
from dsgd_mpi.kernels.api import Arrays, Between, Bound, Bytes, Kernels, Later, Mixed, Tensor
from dsgd_mpi.nn.activations import Activations, Sums, bytes_needed
from dsgd_mpi.nn.inference import Inference
from dsgd_mpi.nn.init import initialise
from dsgd_mpi.nn.layers import Graph, Layer

FOR_ACTIVATIONS = 0.85                      # share of the memory: kernels need some of their own


class Model:
    """What is trained (`flat`, `state` by name) and how to differentiate it (`flat_gradient`, `gradient` by name).

    `flat`, float32 (float64 with kernels of that dtype): first the `parameters` trained elements, then the running
    statistics. Weights are OIHW and named as in torchvision.
    """

    def __init__(self, graph: Graph, batch: int, kernels: Kernels, seed: int = 0, smoothing: float = 0.0) -> None:
        self.graph, self.batch, self.kernels, self.smoothing = graph, batch, kernels, smoothing
        self.layout = Layout(graph.trained, graph.statistics)
        self.parameters = self.layout.parameters
        self.flat, self.flat_gradient = kernels.zeros(self.layout.size), kernels.zeros(self.layout.size)
        self.state, self.gradient = self.layout.views(self.flat), self.layout.views(self.flat_gradient)
        self.plans: dict[int, Plan] = {}
        self.inference: Inference | None = None
        start = np.empty(self.layout.size, self.flat.dtype)
        initialise(graph, self.layout.views(start), seed)
        fill(self.flat, start)

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Copies weights and statistics by name, e.g. a torchvision checkpoint as NumPy arrays.

        UsageError, with nothing changed, unless names and shapes match this network's (except `num_batches_tracked`).
        """
        given = {name: np.asarray(to_numpy(array)) for name, array in state.items()
                 if not name.endswith("num_batches_tracked")}
        wrong = sorted(given.keys() ^ self.state.keys())
        if wrong:
            where = "not in the given state" if wrong[0] in self.state else "not in this network"
            raise UsageError(f"{len(wrong)} names of the state do not match; the first, {wrong[0]!r}, is {where}")
        for name, view in self.state.items():
            if given[name].shape != view.shape:
                raise UsageError(f"{name}: expected shape {view.shape}, found {given[name].shape}")
        for name, view in self.state.items():
            fill(view, given[name])

    def loss_and_gradient(self, images: Array | Bytes, labels: Array | Mixed, ready: Buckets | None = None,
                          between: Between | None = None) -> float:
        """Mean loss of a batch, float32 NHWC and int (N,) or mixed; leaves its gradient in `flat_gradient`.

        `ready` is called with parts of flat_gradient that are final, from the back to the front (`Kernels.program`).
        `between()` is called repeatedly, so that communication can progress.
        """
        return self.begin(images, labels, ready, between).wait(between)

    def begin(self, images: Array | Bytes, labels: Array | Mixed, ready: Buckets | None = None,
              between: Between | None = None) -> Later:
        """`loss_and_gradient`, of which a device may still be computing both: what is enqueued later comes after it.

        The images may be what `kernels.send` has returned. Their memory, if it is the kernels' `byte_memory`, must not
        change before the loss is known.
        """
        plan = self.plan(len(images))
        self.kernels.put(images, plan.images)
        plan.loss.put(labels)
        plan.program(ready, between)
        return plan.loss.later()

    def predict(self, images: Array | Bytes) -> Array:
        """Logits, float32 (N, classes), with the running statistics; any number of images, float32 NHWC."""
        return self.predictor()(images)

    def predictor(self) -> Callable[[Array | Bytes], Array]:
        """`predict` for many calls: the weights are prepared once, here.

        It is valid until the weights change or another is requested.
        """
        if self.inference is None:
            self.inference = Inference(self.graph, self.state, self.batch, self.kernels)
        self.inference.fold()
        return partial(self._predict, self.inference)

    def _predict(self, inference: Inference, images: Array | Bytes) -> Array:
        logits = np.empty((len(images), *inference.logits.shape[1:]), self.flat.dtype)
        for begin in range(0, len(images), self.batch):
            part = slice(begin, begin + self.batch)
            logits[part] = inference(images[part])
        return logits

    @property
    def activation_bytes(self) -> int:
        """Memory of activations, their gradients and workspaces, for all batch sizes used so far, and for inference."""
        plans = sum(plan.activations.bytes for plan in self.plans.values())
        return plans + (self.inference.memory.allocated_bytes if self.inference else 0) + self.kernels.held_bytes

    def plan(self, batch: int) -> Plan:
        """Everything bound to one batch size, made when it is first used."""
        if batch not in self.plans:
            self.plans[batch] = self._fitting(batch)
        return self.plans[batch]

    def _fitting(self, batch: int) -> Plan:
        """UsageError, with the batch that would fit, if memory runs out for this one."""
        with suppress(MemoryError):
            return Plan(self, batch)
        spare = self.kernels.spare_bytes()          # including what the failed plan has freed
        fits = int(FOR_ACTIVATIONS * spare / bytes_needed(self.graph, 1, self.kernels))
        way_out = f"use --batch {fits} or less" if fits else "use a smaller model"
        raise UsageError(f"batch {batch}: there is not enough memory for the activations; {spare / 2**30:.1f} GiB are "
                         f"free, enough for about {fits} images; {way_out}")


class Step:
    """One layer, bound: its operation, what to add up after its backward pass, and its part of the flat gradient."""

    def __init__(self, operation: Bound, sums: Sums, part: slice | None) -> None:
        self.operation, self.sums, self.part = operation, sums, part


class Plan:
    """All arrays and operations for one batch size."""

    def __init__(self, model: Model, batch: int) -> None:
        self.model, self.kernels = model, model.kernels
        self.activations = Activations(model.graph, batch, self.kernels, self.kernels.empty)
        self.images, self.logits = self.activations.values["images"], self.activations.logits
        self.loss = self.kernels.cross_entropy(self.logits, model.smoothing)
        self.steps = [self._step(layer, *bound)
                      for layer, bound in zip(model.graph.layers, self.activations.bound, strict=True)]
        self.program = self.kernels.program(self.run)

    def run(self, ready: Buckets | None, between: Between | None) -> None:
        """Forward and backward."""
        for step in self.steps:
            step.operation.forward(training=True)
            if between:
                between()
        self.loss.forward()
        if ready:
            ready(slice(self.model.parameters, self.model.layout.size))
        for step in reversed(self.steps):
            step.operation.backward()
            for total, term in step.sums:
                self.kernels.accumulate(total, term)
            if ready and step.part:
                ready(step.part)
            if between:
                between()

    def _step(self, layer: Layer, x: Tensor, add: Tensor | None, y: Tensor, term: Array, sums: Sums) -> Step:
        state, gradient, slices = self.model.state, self.model.gradient, self.model.layout.slices
        weights = [Tensor(state[name], gradient[name]) for name in layer.weights]
        operation = self.kernels.bind(layer.operation, Arrays(x, weights, y, add, term))
        trained = [slices[name] for name in layer.weights if self.model.graph.weights[name].trained]
        return Step(operation, sums, slice(trained[0].start, trained[-1].stop) if trained else None)
