"""Operators of the update phase: SAM perturbation and restore, projected SGD and AdamW steps.

Equations and order of summation: ``csrc/update/perturb.hpp`` and ``csrc/update/projected_step.hpp``. All of them write
in place, record no autograd graph, check every argument before anything is written (ValueError) and give the same bits
for any number of threads. Empty lists and empty tensors are fine.

What the lists hold, one entry per parameter:

- ``params``: float32, float64 or bfloat16, one dtype and device per call, contiguous.
- ``backups``: like params. ``sam_perturb`` writes them; a step reads the weights from them (``[]``: from params).
- ``grads``: dtype and shape of params, any strides.
- ``momentum_buffers``, ``exp_avgs``, ``exp_avg_sqs``: shape of params, ``state_dtype(params.dtype)``, contiguous;
  ``momentum_buffers`` is ``[]`` when momentum is 0.
- ``bases``, ``sigmas``, ``complements``: U ``[d, k]`` (or ``[groups, d, k]``), Σ ``[k]`` (``[groups, k]``) and c of the
  projector T = cI + U(Σ − cI)Uᵀ, with d = numel / shape[0]; an empty U means no projection. On CUDA a U whose memory is
  that of Uᵀ (``device_basis``) is read in place; another is copied to it in each call.

On CUDA the steps run on the current stream, wait for nothing and can be captured in a CUDA graph. What is a number in
the call (rho, lr, step …) is then what it was at capture: a graph of Adam, whose step counts, has to be captured anew,
as with torch's Adam without ``capturable``. G U is a product by cuBLAS: float32, or tf32 where torch's settings allow
that (``torch.backends.cuda.matmul``); the product with Uᵀ has the accuracy of float32 in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakTensorKeyDictionary

from igm_fast.ops import native
from igm_fast.ops.library import define
from igm_fast.ops.update_checks import (
    check_adamw_step,
    check_perturb,
    check_restore,
    check_sgd_step,
    state_dtype,
)


def _dense(grads: Sequence[Tensor]) -> list[Tensor]:
    return [grad.contiguous() for grad in grads]


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.numel() for tensor in tensors]


# ---- SAM -------------------------------------------------------------------------------------------------------------


def _sam_perturb_cpu(
    params: list[Tensor],
    backups: list[Tensor],
    norm: Tensor,
    grads: list[Tensor],
    rho: float,
    *,
    scope: str = "global",
    adaptive: bool = False,
    total: Tensor | None = None,
) -> None:
    """Keep params in backups, then add ε = rho g/‖g‖ (adaptive: rho w² g/‖|w| g‖) and write the norm.

    With `total`, one float32 on the same device, ε = rho g/total: the norm over this call's tensors and others.
    """
    check_perturb(params, backups, norm, grads, rho, scope, total)
    if not params:
        norm.zero_()
        return
    grads = _dense(grads)
    native.module().sam_perturb(
        _addresses(params),
        _addresses(backups),
        _addresses(grads),
        _sizes(params),
        native.DTYPE_CODES[params[0].dtype],
        rho,
        scope == "tensor",
        adaptive,
        norm.data_ptr(),
        0 if total is None else total.data_ptr(),
        torch.get_num_threads(),
    )
    increment_version([*params, *backups, norm])


def _sam_perturb_cuda(
    params: list[Tensor],
    backups: list[Tensor],
    norm: Tensor,
    grads: list[Tensor],
    rho: float,
    *,
    scope: str = "global",
    adaptive: bool = False,
    total: Tensor | None = None,
) -> None:
    """The same on the tensors' current stream: nothing waits for the device, the norm stays there."""
    check_perturb(params, backups, norm, grads, rho, scope, total)
    if not params:
        norm.zero_()
        return
    module = native.module()
    grads, sizes, per_tensor = _dense(grads), _sizes(params), scope == "tensor"
    workspace = torch.empty(module.perturb_workspace(sizes, per_tensor), dtype=torch.float64, device=norm.device)
    launches = module.perturb_launches(
        _addresses(params),
        _addresses(backups),
        _addresses(grads),
        sizes,
        native.DTYPE_CODES[params[0].dtype],
        rho,
        per_tensor,
        adaptive,
        norm.data_ptr(),
        workspace.data_ptr(),
        0 if total is None else total.data_ptr(),
    )
    native.launch("sam_perturb", launches, norm.device)
    increment_version([*params, *backups, norm])


def _sam_restore_cpu(params: list[Tensor], backups: list[Tensor]) -> None:
    """Copy backups into params, bit for bit."""
    check_restore(params, backups)
    sizes = [param.numel() * param.element_size() for param in params]
    native.module().sam_restore(_addresses(params), _addresses(backups), sizes, torch.get_num_threads())
    increment_version(params)


def _sam_restore_cuda(params: list[Tensor], backups: list[Tensor]) -> None:
    """The same; a plain copy is what torch's multi-tensor copy does at the speed of memory."""
    check_restore(params, backups)
    with torch.no_grad():
        torch._foreach_copy_(params, backups)


# ---- descent ---------------------------------------------------------------------------------------------------------

_Projection = tuple[int, int, int, int, int, int, int, float]
_PLAIN: _Projection = (1, 0, 0, 0, 0, 0, 0, 1.0)

# U as the CPU kernel reads it, made once for as long as U lives and stays as it is: a projector lasts for a stage.
_LAID_OUT = WeakTensorKeyDictionary()


def _laid_out(basis: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """U and Uᵀ in a dtype, rows padded to whole panels."""
    state = None if basis.is_inference() else (basis._version, basis.data_ptr(), dtype)  # without a version: anew
    known = _LAID_OUT.get(basis)
    if state is not None and known is not None and known[0] == state:
        return known[1], known[2]
    panel = native.module().panel_columns
    wide = basis.to(dtype)
    padded = torch.nn.functional.pad(wide, (0, -wide.shape[-1] % panel)).contiguous()
    transpose = torch.nn.functional.pad(wide.mT, (0, -wide.shape[-2] % panel)).contiguous()
    if state is not None:
        _LAID_OUT[basis] = (state, padded, transpose)
    return padded, transpose


def _pack(param: Tensor, basis: Tensor, sigma: Tensor, complement: float, keep: list[Tensor]) -> _Projection:
    """Lay U, Uᵀ and Σ out as the kernel reads them; `keep` gets the tensors and must outlive the call."""
    dtype = state_dtype(param.dtype)
    groups, dim, rank = basis.shape if basis.dim() == 3 else (1, *basis.shape)
    padded, transpose = _laid_out(basis, dtype)
    sigma = sigma.to(dtype).contiguous()
    keep += [padded, transpose, sigma]
    addresses = (padded.data_ptr(), transpose.data_ptr(), sigma.data_ptr())
    return (groups, param.numel() // dim, dim, rank, *addresses, complement)


def pack_projections(
    params: Sequence[Tensor], bases: Sequence[Tensor], sigmas: Sequence[Tensor], complements: Sequence[float]
) -> tuple[list[_Projection], list[Tensor]]:
    """Return what the CPU steps are told of each parameter's projector, and the tensors that this points to."""
    keep: list[Tensor] = []
    packed = [
        _pack(param, basis, sigma, complement, keep) if basis.numel() and param.numel() else _PLAIN
        for param, basis, sigma, complement in zip(params, bases, sigmas, complements, strict=True)
    ]
    return packed, keep


def device_basis(basis: Tensor) -> Tensor:
    """Return U ``[..., d, k]`` with the memory of Uᵀ, as the CUDA steps read it; U itself if it lies so already."""
    return basis.mT.contiguous().mT


def _device_projection(
    param: Tensor, grad: Tensor, basis: Tensor, sigma: Tensor, complement: float, keep: list[Tensor]
) -> _Projection:
    """Make (G U)ᵀ and point the kernel to it, to Uᵀ and to Σ; `keep` holds them until the launch."""
    dtype = state_dtype(param.dtype)
    groups, dim, rank = basis.shape if basis.dim() == 3 else (1, *basis.shape)
    rows = param.numel() // dim
    transpose = device_basis(basis.to(dtype)).reshape(groups, dim, rank).mT
    product = torch.bmm(transpose, grad.reshape(groups, rows // groups, dim).to(dtype).mT)
    sigma = sigma.to(dtype).contiguous()
    keep += [product, transpose, sigma]
    addresses = (product.data_ptr(), transpose.data_ptr(), sigma.data_ptr())
    return (groups, rows, dim, rank, *addresses, complement)


def _device_step(
    op: str,
    params: list[Tensor],
    states: Sequence[list[Tensor]],
    backups: list[Tensor],
    grads: list[Tensor],
    bases: list[Tensor],
    sigmas: list[Tensor],
    complements: list[float],
    *numbers: float,
) -> None:
    """Both steps on a device: the products G U, then every tensor's step in one launch per kernel and list of tensors.

    `numbers` are the options in the order in which the native functions take them.
    """
    device, dense = params[0].device, _dense(grads)
    keep: list[Tensor] = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        projections = [
            _device_projection(param, grad, basis, sigma, complement, keep)
            if basis.numel() and param.numel()
            else _PLAIN
            for param, grad, basis, sigma, complement in zip(params, dense, bases, sigmas, complements, strict=True)
        ]
    launches = getattr(native.module(), op.removesuffix("_step") + "_launches")(
        _addresses(params),
        _addresses(backups or params),
        _addresses(dense),
        *(_addresses(state) for state in states),
        _sizes(params),
        projections,
        native.DTYPE_CODES[params[0].dtype],
        *numbers,
        native.capability(device) >= (8, 0),
    )
    native.launch(op, launches, device)
    increment_version([*params, *(tensor for state in states for tensor in state)])


def _projected_sgd_step_cpu(
    params: list[Tensor],
    momentum_buffers: list[Tensor],
    backups: list[Tensor],
    grads: list[Tensor],
    bases: list[Tensor],
    sigmas: list[Tensor],
    complements: list[float],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
) -> None:
    """torch.optim.SGD on G' = cG − (G U)(cI−Σ)Uᵀ, starting from the backups (if any) and writing params."""
    rest = (backups, grads, bases, sigmas, complements)
    check_sgd_step(params, momentum_buffers, *rest, momentum=momentum, dampening=dampening, nesterov=nesterov)
    if not params:
        return
    packed, keep = pack_projections(params, bases, sigmas, complements)
    keep += (dense := _dense(grads))
    native.module().projected_sgd_step(
        _addresses(params),
        _addresses(backups or params),
        _addresses(dense),
        _addresses(momentum_buffers),
        _sizes(params),
        packed,
        native.DTYPE_CODES[params[0].dtype],
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first_step,
        torch.get_num_threads(),
    )
    increment_version([*params, *momentum_buffers])


def _projected_sgd_step_cuda(
    params: list[Tensor],
    momentum_buffers: list[Tensor],
    backups: list[Tensor],
    grads: list[Tensor],
    bases: list[Tensor],
    sigmas: list[Tensor],
    complements: list[float],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
) -> None:
    """The same on the tensors' current stream."""
    rest = (backups, grads, bases, sigmas, complements)
    check_sgd_step(params, momentum_buffers, *rest, momentum=momentum, dampening=dampening, nesterov=nesterov)
    if not params:
        return
    numbers = (lr, momentum, dampening, weight_decay, nesterov, maximize, first_step)
    _device_step("projected_sgd_step", params, [momentum_buffers], *rest, *numbers)


def _projected_adamw_step_cpu(
    params: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    backups: list[Tensor],
    grads: list[Tensor],
    bases: list[Tensor],
    sigmas: list[Tensor],
    complements: list[float],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
) -> None:
    """torch.optim.AdamW (decoupled=False: Adam) on G' = cG − (G U)(cI−Σ)Uᵀ, from the backups (if any) into params."""
    rest = (backups, grads, bases, sigmas, complements)
    check_adamw_step(params, exp_avgs, exp_avg_sqs, *rest, step=step, beta1=beta1, beta2=beta2)
    if not params:
        return
    packed, keep = pack_projections(params, bases, sigmas, complements)
    keep += (dense := _dense(grads))
    native.module().projected_adamw_step(
        _addresses(params),
        _addresses(backups or params),
        _addresses(dense),
        _addresses(exp_avgs),
        _addresses(exp_avg_sqs),
        _sizes(params),
        packed,
        native.DTYPE_CODES[params[0].dtype],
        step,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled,
        maximize,
        torch.get_num_threads(),
    )
    increment_version([*params, *exp_avgs, *exp_avg_sqs])


def _projected_adamw_step_cuda(
    params: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    backups: list[Tensor],
    grads: list[Tensor],
    bases: list[Tensor],
    sigmas: list[Tensor],
    complements: list[float],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
) -> None:
    """The same on the tensors' current stream; the bias corrections of `step` are numbers in the launch."""
    rest = (backups, grads, bases, sigmas, complements)
    check_adamw_step(params, exp_avgs, exp_avg_sqs, *rest, step=step, beta1=beta1, beta2=beta2)
    if not params:
        return
    numbers = (step, lr, beta1, beta2, eps, weight_decay, decoupled, maximize)
    _device_step("projected_adamw_step", params, [exp_avgs, exp_avg_sqs], *rest, *numbers)


define(
    "sam_perturb(Tensor(a!)[] params, Tensor(b!)[] backups, Tensor(c!) norm, Tensor[] grads, float rho, *, "
    'str scope="global", bool adaptive=False, Tensor? total=None) -> ()',
    cpu=_sam_perturb_cpu,
    cuda=_sam_perturb_cuda,
)
define(
    "sam_restore(Tensor(a!)[] params, Tensor[] backups) -> ()",
    cpu=_sam_restore_cpu,
    cuda=_sam_restore_cuda,
)
define(
    "projected_sgd_step(Tensor(a!)[] params, Tensor(b!)[] momentum_buffers, Tensor[] backups, Tensor[] grads, "
    "Tensor[] bases, Tensor[] sigmas, float[] complements, *, float lr, float momentum=0, float dampening=0, "
    "float weight_decay=0, bool nesterov=False, bool maximize=False, bool first_step=False) -> ()",
    cpu=_projected_sgd_step_cpu,
    cuda=_projected_sgd_step_cuda,
)
define(
    "projected_adamw_step(Tensor(a!)[] params, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] backups, "
    "Tensor[] grads, Tensor[] bases, Tensor[] sigmas, float[] complements, *, int step, float lr, float beta1, "
    "float beta2, float eps, float weight_decay, bool decoupled=True, bool maximize=False) -> ()",
    cpu=_projected_adamw_step_cpu,
    cuda=_projected_adamw_step_cuda,
)
