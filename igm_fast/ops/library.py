"""The ``igm_fast`` operator library: one call defines an operator's schema, its kernels and its fake kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library
from torch.utils._pytree import tree_leaves

LIBRARY = Library("igm_fast", "DEF")  # must outlive the use of the operators: torch drops them with the object
# Operator → what runs for CUDA tensors. Its launches can be looked at without a GPU (tools/typical_launches.py).
CUDA_KERNELS: dict[str, Callable[..., Any]] = {}


def _writes_only(*_args: object, **_kwargs: object) -> None:
    """Fake kernel of an operator that returns nothing."""


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any] = _writes_only,
    cuda: Callable[..., Any] | None = None,
) -> None:
    """Define ``torch.ops.igm_fast.<name>`` from a schema such as ``"scale(Tensor(a!) out, float alpha) -> ()"``.

    ``Library.define`` + ``Library.impl`` rather than ``torch.library.custom_op``: about 1 µs a call instead of 9.
    None of the operators is differentiable: gradients are not recorded through them.

    Args:
        schema: name and arguments; what is written to comes first and is marked ``(a!)``.
        cpu: implementation for CPU tensors.
        fake: shapes and dtypes of the results from those of the arguments (for torch.compile); writes nothing.
            The default is for operators without results.
        cuda: implementation for CUDA tensors; without one such tensors get a NotImplementedError with a way out.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")
        CUDA_KERNELS[name] = cuda
    # Nothing is wrapped for autograd: results do not claim a gradient that nobody could compute.
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    LIBRARY.impl(name, _elsewhere(name, cpu, ["cpu"] if cuda is None else ["cpu", "cuda"]), "CompositeExplicitAutograd")
    torch.library.register_fake(f"igm_fast::{name}", fake, lib=LIBRARY)


def _elsewhere(name: str, cpu: Callable[..., Any], devices: list[str]) -> Callable[..., Any]:
    """What runs for any other device, and for lists without a single tensor, which have no device."""

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not tensors:
            return cpu(*args, **kwargs)
        kinds = sorted({f"{tensor.device.type} ({tensor.layout})" for tensor in tensors})
        raise NotImplementedError(
            f"{name}: tensors on {', '.join(kinds)} given, expected dense tensors on {' or '.join(devices)}. "
            f"Use .to_dense() or .cpu(), and copy the result back."
        )

    return run
