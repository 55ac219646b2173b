"""A loss on fixed samples as a function of the weights that it depends on, all in one float64 vector."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from igm_fast.analyses.directions import weights_kept
from igm_fast.analyses.loaded_run import LoadedRun, branch_loss
from igm_fast.methods.base import Batch


class Objective:
    """L(ω) = mean −log p[y] of one branch: value, gradient and Hessian products, summed batch by batch.

    ω are the parameters that the loss depends on, one after the other in the model's order. Use it on
    :meth:`LoadedRun.double`: differences of losses are small.

    Args:
        loaded: the run, in evaluation mode.
        branch: a modality, or ``"fused"``.
        batches: the samples.
    """

    def __init__(self, loaded: LoadedRun, branch: str, batches: Sequence[Batch]) -> None:
        self._loaded, self._branch, self._batches = loaded, branch, batches
        self._samples = sum(len(batch.labels) for batch in batches)
        everything = dict(loaded.model.named_parameters())
        loss = branch_loss(loaded, batches[0], branch)
        found = torch.autograd.grad(loss, list(everything.values()), allow_unused=True)
        used = [name for name, gradient in zip(everything, found, strict=True) if gradient is not None]
        self.parameters = {name: everything[name] for name in used}

    @property
    def size(self) -> int:
        """Length of ω."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def origin(self) -> Tensor:
        """ω, ``[size]``, a copy."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])

    def parts(self) -> Iterator[tuple[float, Objective]]:
        """Yield each batch's share of the samples, and the same function on that batch alone."""
        for batch in self._batches:
            alone = copy.copy(self)
            alone._batches, alone._samples = [batch], len(batch.labels)
            yield len(batch.labels) / self._samples, alone

    @contextmanager
    def moved(self, step: Tensor) -> Iterator[None]:
        """Inside, the weights are ω + step; afterwards they are ω to the bit."""
        parameters = list(self.parameters.values())
        parts = step.split([parameter.numel() for parameter in parameters])
        with weights_kept(parameters):
            with torch.no_grad():
                for parameter, part in zip(parameters, parts, strict=True):
                    parameter.add_(part.view_as(parameter))
            yield

    def value(self, step: Tensor | None = None) -> float:
        """Return L(ω), or L(ω + step)."""
        if step is not None:
            with self.moved(step):
                return self.value()
        with torch.no_grad():
            return sum(float(loss) for loss in self._losses())

    def gradient(self) -> Tensor:
        """Return ∇L(ω), ``[size]``."""
        return self._sum(self._gradients(loss, create_graph=False) for loss in self._losses())

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return ∇²L(ω) v by a second backward pass."""
        parameters = list(self.parameters.values())

        def product(loss: Tensor) -> Tensor:
            along = self._gradients(loss, create_graph=True) @ vector
            second = torch.autograd.grad(along, parameters, materialize_grads=True, allow_unused=True)
            return torch.cat([part.flatten() for part in second])

        return self._sum(product(loss) for loss in self._losses())

    def _losses(self) -> Iterator[Tensor]:
        """Each batch's share of L."""
        for batch in self._batches:
            yield branch_loss(self._loaded, batch, self._branch) * (len(batch.labels) / self._samples)

    def _gradients(self, loss: Tensor, *, create_graph: bool) -> Tensor:
        found = torch.autograd.grad(loss, list(self.parameters.values()), create_graph=create_graph)
        return torch.cat([part.flatten() for part in found])

    def _sum(self, parts: Iterator[Tensor]) -> Tensor:
        total = torch.zeros_like(self.origin)
        for part in parts:
            total += part
        return total
