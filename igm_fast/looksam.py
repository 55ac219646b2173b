"""LookSAM's direction (Liu et al., CVPR 2022, algorithm 1): kept where SAM perturbs, re-used in the steps between.

v = g_s − (⟨g, g_s⟩/⟨g, g⟩) g is the part of SAM's gradient g_s that the plain gradient g lacks; a step between two
perturbations descends with g + reuse·(‖g‖/‖v‖) v. Products and lengths run over all parameters together.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from igm_fast.ops.update_checks import state_dtype


def keep_direction(states: Mapping[Tensor, MutableMapping[str, Any]], second: Mapping[Tensor, Tensor]) -> None:
    """Put v into the states of the parameters of ``second``, g_s, in place of the g that is there."""
    first = {param: states[param].pop("gradient") for param in second}
    home = next(iter(first.values())).device
    along = torch.stack([_dot(first[param], grad).to(home) for param, grad in second.items()]).sum()
    factor = along / _length(list(first.values())).square()
    factor = torch.where(factor.isfinite(), factor, 0.0)
    for param, grad in second.items():
        wide = state_dtype(param.dtype)
        states[param]["direction"] = grad.to(wide) - factor.to(param.device, wide) * first[param].to(wide)


def with_kept_direction(
    states: Mapping[Tensor, Mapping[str, Any]], given: Mapping[Tensor, Tensor], reuse: float
) -> dict[Tensor, Tensor]:
    """Return g + reuse·(‖g‖/‖v‖) v of the parameters that have a v; others are left out."""
    kept = [param for param in given if "direction" in states.get(param, {})]
    if not kept:
        return {}
    directions = [states[param]["direction"] for param in kept]
    factor = reuse * _length([given[param] for param in kept]) / _length(directions)
    factor = torch.where(factor.isfinite(), factor, 0.0)  # of a direction that is zero: nothing to re-use
    return {
        param: (given[param].to(direction.dtype) + factor.to(direction) * direction).to(param.dtype)
        for param, direction in zip(kept, directions, strict=True)
    }


def _dot(a: Tensor, b: Tensor) -> Tensor:
    wide = state_dtype(a.dtype)
    return torch.dot(a.flatten().to(wide), b.flatten().to(wide)).double()


def _length(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖₂ of all together, float64, on the device of the first."""
    home = tensors[0].device
    squares = [_dot(tensor, tensor).to(home) for tensor in tensors]
    return torch.stack(squares).sum().sqrt()
