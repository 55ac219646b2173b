"""Checks of the update operators: every slip is named, with what was expected and the way out, before a write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from igm_fast.names import nearest

PARAMETER_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_SCOPES = ("global", "tensor")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of optimizer states and of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dtype(params: Sequence[Tensor]) -> torch.dtype:
    return params[0].dtype if params else torch.float32  # with no parameter nothing else may be there either


def refuse(op: str, given: str, expected: str, way_out: str) -> ValueError:
    """The error for a slip, in three parts: what was given, what is expected, the way out."""
    return ValueError(f"{op}: {given}, expected {expected}. {way_out}")


def check_params(op: str, params: Sequence[Tensor], device: torch.device | None = None) -> None:
    """Dtypes, devices and layout of what is written."""
    for i, param in enumerate(params):
        if param.dtype not in PARAMETER_DTYPES:
            way_out = "Keep the parameters in float32 and use torch.autocast for float16 arithmetic."
            raise refuse(op, f"params[{i}] is {param.dtype}", "float32, float64 or bfloat16", way_out)
        if param.dtype != params[0].dtype:
            way_out = "Call the operator once per dtype."
            raise refuse(op, f"params[{i}] is {param.dtype}", f"{params[0].dtype} as params[0]", way_out)
        expected_device = params[0].device if device is None else device
        if param.device != expected_device:
            way_out = "Call the operator once per device."
            raise refuse(op, f"params[{i}] is on {param.device}", str(expected_device), way_out)
        if not param.is_contiguous():
            way_out = "Make it contiguous: model.to(memory_format=torch.contiguous_format), or param.data.contiguous()."
            given = f"params[{i}] of shape {tuple(param.shape)} has strides {param.stride()}"
            raise refuse(op, given, "a contiguous tensor, since it is written in place", way_out)


def check_like(
    op: str, name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], dtype: torch.dtype, *, written: bool
) -> None:
    """Each of `tensors` must fit the parameter at its place."""
    if len(tensors) != len(params):
        way_out = "Give one per parameter; leave out parameters without a gradient everywhere."
        raise refuse(op, f"{name} has {len(tensors)} tensors", f"{len(params)} as params", way_out)
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        if tensor.shape != param.shape:
            given = f"{name}[{i}] has shape {tuple(tensor.shape)}"
            raise refuse(op, given, f"{tuple(param.shape)} as params[{i}]", "Check the order of the two lists.")
        if tensor.dtype != dtype:
            way_out = f"Convert it with .to({dtype})."
            raise refuse(op, f"{name}[{i}] is {tensor.dtype}", f"{dtype} for {param.dtype} parameters", way_out)
        if tensor.device != param.device:
            given = f"{name}[{i}] is on {tensor.device}"
            raise refuse(op, given, f"{param.device} as params[{i}]", f"Move it with .to({str(param.device)!r}).")
        if written and not tensor.is_contiguous():
            given = f"{name}[{i}] has strides {tensor.stride()}"
            raise refuse(op, given, "a contiguous tensor, since it is written in place", "Use .contiguous().")


def check_perturb(
    params: Sequence[Tensor],
    backups: Sequence[Tensor],
    norm: Tensor,
    grads: Sequence[Tensor],
    rho: float,
    scope: str,
    total: Tensor | None,
) -> None:
    """Arguments of sam_perturb."""
    op = "sam_perturb"
    if scope not in _SCOPES:
        raise ValueError(f"{op}: {nearest(scope, _SCOPES, 'scope')}")
    if not 0.0 <= rho < float("inf"):
        raise refuse(op, f"rho={rho}", "a finite number >= 0", "0.05 is the usual radius.")
    entries = 1 if scope == "global" else len(params)
    if norm.shape != (entries,) or norm.dtype != torch.float32 or not norm.is_contiguous():
        given = f"norm is {norm.dtype} of shape {tuple(norm.shape)}"
        way_out = f"Allocate it with torch.empty({entries})."
        raise refuse(op, given, f"contiguous float32 of shape ({entries},) for scope {scope!r}", way_out)
    if total is not None:
        if scope != "global":
            raise refuse(op, f"total with scope {scope!r}", "scope 'global'", "Leave total out.")
        if total.numel() != 1 or total.dtype != torch.float32 or total.device != norm.device:
            given = f"total is {total.dtype} of shape {tuple(total.shape)} on {total.device}"
            raise refuse(op, given, f"one float32 on {norm.device}", "Give the norm of all calls together.")
    check_params(op, params, norm.device)
    check_like(op, "backups", backups, params, _dtype(params), written=True)
    check_like(op, "grads", grads, params, _dtype(params), written=False)


def check_restore(params: Sequence[Tensor], backups: Sequence[Tensor]) -> None:
    """Arguments of sam_restore."""
    check_params("sam_restore", params)
    check_like("sam_restore", "backups", backups, params, _dtype(params), written=True)


def _check_projection(op: str, i: int, param: Tensor, basis: Tensor, sigma: Tensor) -> None:
    rows = param.shape[0] if param.dim() > 0 else 1
    shape = basis.shape if basis.dim() == 3 else (1, *basis.shape)
    if len(shape) != 3 or rows % shape[0] or shape[1] * rows != param.numel():
        given = f"bases[{i}] has shape {tuple(basis.shape)}"
        expected = f"[d, k] or [groups, d, k] with d = {param.numel() // max(rows, 1)} for params[{i}] of shape "
        way_out = "Match layers by shape (igm_fast.match_layers), or give an empty tensor for no projection."
        raise refuse(op, given, f"{expected}{tuple(param.shape)}", way_out)
    if sigma.shape != (*basis.shape[:-2], basis.shape[-1]):
        given = f"sigmas[{i}] has shape {tuple(sigma.shape)}"
        expected = f"{(*basis.shape[:-2], basis.shape[-1])}, one eigenvalue per column of bases[{i}]"
        raise refuse(op, given, expected, "Take both from one projector.")
    for name, tensor in (("bases", basis), ("sigmas", sigma)):
        if tensor.device != param.device or not tensor.dtype.is_floating_point:
            given = f"{name}[{i}] is {tensor.dtype} on {tensor.device}"
            raise refuse(op, given, f"floating point on {param.device}", "Move the projector with .to(device).")


def check_step(
    op: str,
    params: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    backups: Sequence[Tensor],
    grads: Sequence[Tensor],
    bases: Sequence[Tensor],
    sigmas: Sequence[Tensor],
    complements: Sequence[float],
) -> None:
    """Arguments that both steps share."""
    check_params(op, params)
    dtype = _dtype(params)
    if backups:
        check_like(op, "backups", backups, params, dtype, written=True)
    check_like(op, "grads", grads, params, dtype, written=False)
    for name, state in states.items():
        check_like(op, name, state, params, state_dtype(dtype), written=True)
    for name, values in (("bases", bases), ("sigmas", sigmas), ("complements", complements)):
        if len(values) != len(params):
            way_out = "Give an empty tensor (complement 1.0) for a parameter without projection."
            raise refuse(op, f"{name} has {len(values)} entries", f"{len(params)} as params", way_out)
    for i, (param, basis, sigma) in enumerate(zip(params, bases, sigmas, strict=True)):
        if basis.numel():
            _check_projection(op, i, param, basis, sigma)


def check_sgd_step(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    *rest: Any,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    """Arguments of projected_sgd_step; `rest` as in check_step, from backups on."""
    op = "projected_sgd_step"
    check_step(op, params, {"momentum_buffers": momentum_buffers} if momentum != 0.0 else {}, *rest)
    if momentum == 0.0 and momentum_buffers:
        given = f"momentum=0 with {len(momentum_buffers)} momentum_buffers"
        raise refuse(op, given, "an empty list, since nothing would be written", "Pass [] or a momentum.")
    if nesterov and (momentum <= 0.0 or dampening != 0.0):
        given = f"nesterov=True with momentum={momentum}, dampening={dampening}"
        raise refuse(op, given, "momentum > 0 and dampening = 0", "As torch.optim.SGD.")


def check_adamw_step(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *rest: Any,
    step: int,
    beta1: float,
    beta2: float,
) -> None:
    """Arguments of projected_adamw_step; `rest` as in check_step, from backups on."""
    op = "projected_adamw_step"
    check_step(op, params, {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}, *rest)
    if step < 1:
        raise refuse(op, f"step={step}", "the number of this step, from 1", "The bias correction divides by 1−β^step.")
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        raise refuse(op, f"betas ({beta1}, {beta2})", "numbers in [0, 1)", "torch's default is (0.9, 0.999).")
