"""Steps that repeat: what SAM asks of the kernels on the CPU, kept from one cycle of perturb() and step() to the next.

Finding out what to hand to the kernels (the dispatcher, the operators' checks, dictionaries keyed by tensors) takes
some 10 µs per parameter and step, more than the kernels themselves where parameters are small and many. In training
one step is like the other, so that only gradients have to be looked at anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from igm_fast.ops import native
from igm_fast.ops.update import pack_projections
from igm_fast.ops.update_checks import PARAMETER_DTYPES

if TYPE_CHECKING:
    from igm_fast.sam import SAM

_STATES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class _GroupCall:
    """The parameters of one group that have a gradient, as the step's kernel reads them."""

    group: dict[str, Any]
    members: list[Tensor]  # of the group, with and without a gradient
    places: slice  # of those with one, in the lists of the repetition
    tensors: dict[str, list[Tensor]]  # states, by name
    addresses: list[list[int]]  # of these, in the kernel's order
    projections: list[Any]
    kept: list[Tensor]  # what the projections point to


class Repetition:
    """One cycle of an optimizer that has just made a step; ask :meth:`gradients` whether the next is like it."""

    def __init__(self, optimizer: SAM, calls: list[_GroupCall], params: list[Tensor]) -> None:
        self._calls, self._params = calls, params
        self._without = [p for call in calls for p in call.members if p.grad is None]
        self._states = [optimizer.state[param] for param in params]
        self._all_states = list(optimizer.state.values())
        projections = [optimizer.projection_of(param) for param in params]
        self._dense = [(place, T) for place, T in enumerate(projections) if T.dense is not None]
        self._backups = [optimizer.backup_of(param) for param in params]
        self._addresses, self._sizes = _addresses(params), [param.numel() for param in params]
        self._backup_addresses = _addresses(self._backups)
        self._dtype = params[0].dtype
        self._written = [*params, *(t for call in calls for tensors in call.tensors.values() for t in tensors)]

    @classmethod
    def of(cls, optimizer: SAM) -> Repetition | None:
        """Return the cycle; None unless it is a plain one.

        Plain: contiguous parameters of one dtype on the CPU, all with a state, one radius, no re-used direction.
        """
        if optimizer.every != 1 or not _one_radius(optimizer):  # the cheap questions first: this is asked in every step
            return None
        calls: list[_GroupCall] = []
        params: list[Tensor] = []
        for group in optimizer.param_groups:
            mine = [param for param in group["params"] if param.grad is not None]
            if not all(map(_is_plain, mine)):
                return None
            names = _STATES[optimizer.base] if optimizer.base != "sgd" or group["momentum"] != 0.0 else ()
            states = [optimizer.state.get(param, {}) for param in mine]
            if not names or any(name not in state for state in states for name in names):
                return None
            if len({state.get("step") for state in states}) > 1:
                return None
            projections = [optimizer.projection_of(param) for param in mine]
            packed, kept = pack_projections(
                mine,
                [projection.basis for projection in projections],
                [projection.sigma for projection in projections],
                [projection.complement for projection in projections],
            )
            tensors = {name: [state[name] for state in states] for name in names}
            places = slice(len(params), len(params) + len(mine))
            addresses = [_addresses(values) for values in tensors.values()]
            calls.append(_GroupCall(group, list(group["params"]), places, tensors, addresses, packed, kept))
            params += mine
        return cls(optimizer, calls, params) if len({param.dtype for param in params}) == 1 else None

    def gradients(self, optimizer: SAM) -> list[int] | None:
        """Return the addresses of the present gradients; None where anything else is not as it was."""
        grads = [param.grad for param in self._params]
        if any(grad is None for grad in grads) or any(param.grad is not None for param in self._without):
            return None
        if torch.compiler.is_compiling() or not _one_radius(optimizer) or not self._same_parts(optimizer):
            return None
        present = cast(list[Tensor], grads)
        if list(map(Tensor.numel, present)) != self._sizes or not all(map(Tensor.is_contiguous, present)):
            return None
        if any(grad.dtype is not self._dtype or type(grad) is not Tensor for grad in present):
            return None
        return _addresses(present)

    def perturb(self, optimizer: SAM, gradients: Sequence[int]) -> None:
        """Move the weights to ω + ε and keep ω."""
        group = self._calls[0].group
        per_tensor = optimizer.scope == "tensor"
        norm = torch.empty(len(self._params) if per_tensor else 1, dtype=torch.float32)
        native.module().sam_perturb(
            self._addresses,
            self._backup_addresses,
            gradients,
            self._sizes,
            native.DTYPE_CODES[self._dtype],
            group["rho"],
            per_tensor,
            group["adaptive"],
            norm.data_ptr(),
            0,
            torch.get_num_threads(),
        )
        increment_version(self._params + self._backups)
        for state, backup in zip(self._states, self._backups, strict=True):
            state["backup"] = backup

    def step(self, optimizer: SAM, gradients: list[int]) -> None:
        """Descend, from ω where the weights are perturbed."""
        bent = [T.gradient(cast(Tensor, self._params[place].grad)).contiguous() for place, T in self._dense]
        for (place, _), grad in zip(self._dense, bent, strict=True):
            gradients[place] = grad.data_ptr()
        perturbed = "backup" in self._states[0]
        sources = self._backup_addresses if perturbed else self._addresses
        for call in self._calls:
            group, places = call.group, call.places
            lists = (self._addresses[places], sources[places], gradients[places], *call.addresses, self._sizes[places])
            shared = (*lists, call.projections, native.DTYPE_CODES[self._dtype])
            lr, decay, threads = float(group["lr"]), group["weight_decay"], torch.get_num_threads()
            rule: tuple[Any, ...]
            if optimizer.base == "sgd":
                rule = (group["momentum"], group["dampening"], decay, group["nesterov"], group["maximize"], False)
                native.module().projected_sgd_step(*shared, lr, *rule, threads)
                continue
            states = self._states[places]
            steps = states[0]["step"] + 1 if states else 0
            rule = (steps, lr, *group["betas"], group["eps"], decay, group["decoupled"], group["maximize"])
            native.module().projected_adamw_step(*shared, *rule, threads)
            for state in states:
                state["step"] = steps
        increment_version(self._written)
        if perturbed:
            for state in self._states:
                del state["backup"]

    def _same_parts(self, optimizer: SAM) -> bool:
        """Whether groups, parameters, their memory and their states are those of before."""
        if len(optimizer.param_groups) != len(self._calls) or len(optimizer.state) != len(self._all_states):
            return False
        for call, group in zip(self._calls, optimizer.param_groups, strict=True):
            if group is not call.group or len(group["params"]) != len(call.members):
                return False
            if optimizer.base == "sgd" and group["momentum"] == 0.0:
                return False
            states = self._states[call.places]
            same = all(map(is_, group["params"], call.members))
            for name, tensors in call.tensors.items():
                same = same and all(map(is_, [state.get(name) for state in states], tensors))
            if not same or len({state.get("step") for state in states}) > 1:
                return False
        backups = [state.get("backup") for state in self._states]
        if backups[0] is not None and not all(map(is_, backups, self._backups)):
            return False  # of a cycle that began otherwise
        if backups[0] is None and any(backup is not None for backup in backups):
            return False
        return all(map(is_, optimizer.state.values(), self._all_states)) and _addresses(self._params) == self._addresses


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _is_plain(param: Tensor) -> bool:
    plain = type(param) in (Tensor, nn.Parameter) and param.dtype in PARAMETER_DTYPES
    return plain and param.device.type == "cpu" and param.is_contiguous()


def _one_radius(optimizer: SAM) -> bool:
    """Whether one call perturbs everything, along the gradient."""
    kinds = {(group["rho"], group["adaptive"], group["maximize"]) for group in optimizer.param_groups}
    return len(kinds) == 1 and not next(iter(kinds))[2] and optimizer.direction == "gradient"
