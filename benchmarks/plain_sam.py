"""Two-pass SAM as people write it with torch alone: per tensor as in the textbook, and with ``torch._foreach`` calls.

Both own their parameters and gradients (``param.grad``, given once, never changed), and may have a transformation of
each gradient before the base step, such as a product with a projector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Projection = Callable[[Tensor], Tensor]
# As in davda54/sam and most copies of it; far below any norm here.
_EPSILON = 1e-12


class TextbookSAM:
    """Clone each weight, add ε, copy it back, let a torch optimizer step."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        base: Optimizer,
        rho: float,
        projections: Mapping[nn.Parameter, Projection] | None = None,
    ) -> None:
        self.params, self.base, self.rho, self.projections = params, base, rho, projections or {}
        self.before: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def perturb(self) -> None:
        """ω ← ω + rho g/‖g‖."""
        norm = torch.stack([_grad(param).norm() for param in self.params]).norm()
        scale = self.rho / (norm + _EPSILON)
        for param in self.params:
            self.before[param] = param.clone()
            param.add_(_grad(param) * scale)

    @torch.no_grad()
    def step(self) -> None:
        """Back to ω, then the base step."""
        for param in self.params:
            param.copy_(self.before[param])
        given = {param: _grad(param) for param in self.projections}
        for param, project in self.projections.items():
            param.grad = project(given[param])
        self.base.step()
        for param, grad in given.items():
            param.grad = grad


class ForeachSAM:
    """The same with one call per operation for all tensors, and weights kept in tensors that are allocated once."""

    def __init__(self, params: Sequence[nn.Parameter], base: Optimizer, rho: float) -> None:
        self.params: list[Tensor] = list(params)
        self.base, self.rho = base, rho
        self.before = [torch.empty_like(param) for param in params]

    @torch.no_grad()
    def perturb(self) -> None:
        """ω ← ω + rho g/‖g‖."""
        grads = [_grad(param) for param in self.params]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        torch._foreach_copy_(self.before, self.params)
        torch._foreach_add_(self.params, grads, alpha=self.rho / (float(norm) + _EPSILON))

    @torch.no_grad()
    def step(self) -> None:
        """Back to ω, then the base step."""
        torch._foreach_copy_(self.params, self.before)
        self.base.step()


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad
