"""What does the optimizer's share of a SAM step cost on a GPU: perturb and descend, with gradients given?

The weights are those of two ResNet-18 (audio and video). Peers: SAM by torch's multi-tensor functions, as one would
write it for a GPU, with no wait for the device (apex has no SAM; its multi-tensor kernels are what torch._foreach_
became), over torch's fused optimizers; and the textbook's, tensor by tensor. "projected" adds projectors of rank 32 on
every convolution; there the peers multiply gradients by low-rank factors or by a dense T. References: the fused base
optimizer alone, and a copy of as many bytes as a step must move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import Bench, precision
from benchmarks.optimizer import (
    BASES,
    BYTES_PER_PARAMETER,
    OPTIONS,
    RHO,
    Build,
    contestant,
    parameters_of,
    projector_of_rank,
    same_updates,
)
from benchmarks.plain_sam import TextbookSAM
from benchmarks.timing import Function, Record
from igm_fast.models import ResNet18
from igm_fast.sam import SAM

_EPSILON = 1e-12  # as in most copies of SAM
Projection = Callable[[Tensor], Tensor]


def run(bench: Bench) -> Iterator[list[Callable[[], list[Record]]]]:
    """Yield the jobs: both bases, then SGD with projectors."""
    torch.manual_seed(0)
    width = 64 if bench.quick else 512
    networks = [ResNet18(channels, width) for channels in (1, 3)]
    start = [weight.detach().to(bench.device) for network in networks for weight in network.parameters()]
    jobs: list[Callable[[], list[Record]]] = [partial(_plain, bench, start, base) for base in BASES]
    jobs.append(partial(_projected, bench, start))
    yield jobs


class DeviceSAM:
    """SAM by torch's multi-tensor functions; the norm stays on the device."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        base: torch.optim.Optimizer,
        projections: Mapping[nn.Parameter, Projection] | None = None,
    ) -> None:
        self.params: list[Tensor] = list(params)
        self.base, self.projections = base, projections or {}
        self.before = [torch.empty_like(param) for param in params]

    @torch.no_grad()
    def perturb(self) -> None:
        """ω ← ω + rho g/‖g‖."""
        grads = [_grad(param) for param in self.params]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        steps = torch._foreach_mul(grads, RHO / (norm + _EPSILON))
        torch._foreach_copy_(self.before, self.params)
        torch._foreach_add_(self.params, steps)

    @torch.no_grad()
    def step(self) -> None:
        """Back to ω, then the base step."""
        torch._foreach_copy_(self.params, self.before)
        given = {param: _grad(param) for param in self.projections}
        for param, project in self.projections.items():
            param.grad = project(given[param])
        self.base.step()
        for param, grad in given.items():
            param.grad = grad


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def _plain(bench: Bench, start: list[Tensor], base: str) -> list[Record]:
    options = OPTIONS[base]

    def torch_base(params: list[nn.Parameter], **kind: bool) -> torch.optim.Optimizer:
        return BASES[base](params, **options, **kind)

    builds: dict[str, Build] = {
        "textbook SAM": lambda params: TextbookSAM(params, torch_base(params, foreach=True), RHO),
        "multi-tensor SAM": lambda params: DeviceSAM(params, torch_base(params, foreach=True)),
        "multi-tensor SAM, fused base": lambda params: DeviceSAM(params, torch_base(params, fused=True)),
    }
    alone = torch_base(parameters_of(start), fused=True)
    bytes_moved = BYTES_PER_PARAMETER[base] * _count(start)
    with precision("float32"):
        return bench.compare(
            _case(start),
            ours={f"optimizer SAM {base}": contestant(start, lambda params: SAM(params, base, rho=RHO, **options))},
            peers={name: contestant(start, build) for name, build in builds.items()},
            references={
                f"torch {base} alone, fused": alone.step,
                "copy of as many bytes": _copy_of(bytes_moved, bench.device),
            },
            agree=same_updates(start, "textbook SAM"),
            warm=False,  # which would be a step too many
            bytes_moved=bytes_moved,
        )


def _projected(bench: Bench, start: list[Tensor]) -> list[Record]:
    options = OPTIONS["sgd"]
    projectors = [
        projector_of_rank(tensor[0].numel()).to(device=bench.device) if tensor.dim() == 4 else None for tensor in start
    ]
    dense = [None if projector is None else projector.dense() for projector in projectors]

    def ours(params: list[nn.Parameter]) -> SAM:
        optimizer = SAM(params, "sgd", rho=RHO, **options)
        pairs = zip(params, projectors, strict=True)
        optimizer.set_projectors([(param, projector) for param, projector in pairs if projector is not None])
        return optimizer

    def peer(params: list[nn.Parameter], projections: Mapping[nn.Parameter, Projection]) -> DeviceSAM:
        return DeviceSAM(params, torch.optim.SGD(params, **options, fused=True), projections)

    def with_dense(params: list[nn.Parameter]) -> DeviceSAM:
        def product(T: Tensor) -> Projection:
            return lambda grad: (grad.flatten(1) @ T).view_as(grad)

        return peer(params, {p: product(T) for p, T in zip(params, dense, strict=True) if T is not None})

    def with_low_rank(params: list[nn.Parameter]) -> DeviceSAM:
        return peer(params, {p: T.apply for p, T in zip(params, projectors, strict=True) if T is not None})

    with precision("float32"):
        return bench.compare(
            _case(start),
            ours={"optimizer SAM sgd, projected": contestant(start, ours)},
            peers={
                "multi-tensor SAM, dense T": contestant(start, with_dense),
                "multi-tensor SAM, low-rank T in torch": contestant(start, with_low_rank),
            },
            references={
                "ours without projectors": contestant(start, lambda params: SAM(params, "sgd", rho=RHO, **options)),
                "multi-tensor SAM without projectors": contestant(start, lambda params: peer(params, {})),
            },
            agree=same_updates(start, "multi-tensor SAM, dense T"),
            warm=False,
            bytes_moved=BYTES_PER_PARAMETER["sgd"] * _count(start),
        )


def _copy_of(bytes_moved: int, device: torch.device) -> Function:
    source = torch.ones(bytes_moved // 8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _case(start: list[Tensor]) -> str:
    return f"two ResNet-18, {_count(start) / 1e6:.2f} M parameters"


def _count(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
