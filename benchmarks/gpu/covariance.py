"""What do activation covariances cost on a GPU, beside unfold and cuBLAS, two cuDNN calls, and the forward pass?

The layers are the distinct convolutions of ResNet-18 for 224×224 pictures, 64 at a time, fed with what the network
gives them. Three arithmetics: float32; tf32 (torch's ``allow_tf32`` is on, for all contestants); bfloat16 inputs with
float32 sums. Exact: C += Σ u uᵀ; peers unfold the input and multiply, all samples at once or one by one. Sketch:
Y += Σ u (uᵀΩ) with 80 columns; the peer is a convolution and its weight gradient. References: the layer's own forward
pass. Then all twenty layers in turn, and a forward pass of the network under ``ActivationCovariance``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import covariance_peers as peers
from benchmarks.agreement import Agree, Facts, relative_error, require
from benchmarks.covariance import Case, Ours
from benchmarks.gpu.device import PRECISIONS, Bench, largest, precision
from benchmarks.networks import VIDEO, Source, batch, distinct, encoder, layer_inputs, settled
from benchmarks.timing import Function, Record
from igm_fast import ActivationCovariance
from igm_fast.layers import observable_layers

FULL, SKETCH = "covariance full", "covariance sketch"
FORWARD, FORWARD_ALL = "forward pass", "forward pass of the network"
SAMPLES = 64
# Of sums against float64, relative: ours and the peers' by arithmetic. bfloat16 inputs are exact in float32 products.
TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-5}
PEER_TOLERANCES = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}

AddTo = Callable[[Tensor], Tensor]


def run(bench: Bench) -> Iterator[list[Callable[[], list[Record]]]]:
    """Yield the jobs of each arithmetic; a job measures one case."""
    source = Source("video", 3, 48, 48) if bench.quick else VIDEO
    samples = 2 if bench.quick else SAMPLES
    x = batch(source, samples).to(bench.device)
    network = settled(encoder(source, 32 if bench.quick else 512).to(bench.device), x)
    inputs = layer_inputs(network, x)
    names = list(distinct(network, inputs))
    for name in PRECISIONS:
        jobs: list[Callable[[], list[Record]]] = []
        for layer in names:
            jobs.append(_job(_full, bench, network, inputs, layer, name))
            jobs.append(_job(_sketch, bench, network, inputs, layer, name))
        jobs.append(_job(_whole, bench, network, inputs, x, name))
        yield jobs


def _job(function: Callable[..., list[Record]], *arguments: Any) -> Callable[[], list[Record]]:
    def job() -> list[Record]:
        with precision(arguments[-1]), torch.no_grad():
            return function(*arguments)

    return job


def _case(network: nn.Module, inputs: Mapping[str, Tensor], layer: str, name: str) -> Case:
    module = observable_layers(network)[layer]
    assert isinstance(module, nn.Conv2d)
    return Case(module, inputs[layer].to(PRECISIONS[name]).contiguous())


def _full(bench: Bench, network: nn.Module, inputs: Mapping[str, Tensor], layer: str, name: str) -> list[Record]:
    case = _case(network, inputs, layer, name)
    u = case.patches(case.x).double()  # of the inputs as they are, rounded or not
    C = u @ u.T
    del u
    forward = _forward(case)
    plain = case.layer.kernel_size == (3, 3) and case.layer.stride == (1, 1)
    return bench.compare(
        case.label,
        ours={f"{FULL}, {name}": _over_batches(Ours(case).full, C.shape, bench)},
        peers={
            "unfold + one product": _over_batches(_unfold_once(case), C.shape, bench),
            "unfold + a product per sample": _over_batches(_unfold_each(case), C.shape, bench),
        },
        references={FORWARD: forward},
        agree=_agree(C, f"{FULL}, {name}", name),
        precision=name,
        headlines=None if plain else [],
        **case.amounts("covariance full"),
    )


def _sketch(bench: Bench, network: nn.Module, inputs: Mapping[str, Tensor], layer: str, name: str) -> list[Record]:
    case = _case(network, inputs, layer, name)
    if case.is_small:  # the exact matrix is kept
        return []
    ways = Ours(case)
    u, omega = case.patches(case.x).double(), ways.omega.double()
    Y = u @ (u.T @ omega)
    del u
    plain = case.layer.kernel_size == (3, 3) and case.layer.stride == (1, 1)
    return bench.compare(
        case.label,
        ours={f"{SKETCH}, {name}": _over_batches(ways.sketch, Y.shape, bench)},
        peers={
            "two library calls": _over_batches(_two_products(case, ways.omega), Y.shape, bench),
            "unfold + two products": _over_batches(_unfold_twice(case, ways.omega), Y.shape, bench),
        },
        references={FORWARD: _forward(case)},
        agree=_agree(Y, f"{SKETCH}, {name}", name),
        precision=name,
        headlines=None if plain else [],
        **case.amounts("covariance sketch"),
    )


def _whole(bench: Bench, network: nn.Module, inputs: Mapping[str, Tensor], x: Tensor, name: str) -> list[Record]:
    """All layers in turn; and a forward pass that gathers their statistics."""
    cases = [_case(network, inputs, layer, name) for layer in inputs]
    ways = [Ours(case) for case in cases]
    full, sketch = f"{FULL}, {name}", f"{SKETCH}, {name}"
    matrices = [(case.dim, case.dim) for case in cases]
    images = [(case.dim, case.dim if case.is_small else case.columns) for case in cases]
    exact = [_unfold_once(case) for case in cases]
    calls = [
        once if way.case.is_small else _two_products(way.case, way.omega) for way, once in zip(ways, exact, strict=True)
    ]

    def all_layers(parts: Sequence[AddTo], shapes: Sequence[tuple[int, int]]) -> Callable[[], list[_Sums]]:
        functions = [_over_batches(part, shape, bench) for part, shape in zip(parts, shapes, strict=True)]
        return lambda: [function() for function in functions]

    names = {full: [way.full for way in ways], sketch: [way.sketch for way in ways]}
    shapes = {full: matrices, sketch: images}

    def agree(results: Mapping[str, list[_Sums]]) -> dict[str, Facts]:
        """Against each other: every layer was compared with float64 before."""
        reference = {False: results["unfold + one product"], True: results["two library calls"]}
        facts: dict[str, Facts] = {}
        for key, result in results.items():
            pairs = zip(result, reference[key in (sketch, "two library calls")], strict=True)
            error = largest([relative_error(mine.of_one, other.of_one) for mine, other in pairs])
            require(key, error, 2 * PEER_TOLERANCES[name], "largest relative difference of a layer from the peer's")
            facts[key] = {"difference": error}
        return facts

    module, given = (network, x) if name != "bfloat16" else (_copy(network, torch.bfloat16), x.bfloat16())
    records = bench.compare(
        f"ResNet-18 N={len(x)}, all {len(cases)} layers",
        ours={key: all_layers(parts, shapes[key]) for key, parts in names.items()},
        peers={
            "unfold + one product": all_layers(exact, matrices),
            "two library calls": all_layers(calls, images),
        },
        references={FORWARD_ALL: lambda: module(given)},
        agree=agree,
        precision=name,
        beside={full: ["unfold + one product", FORWARD_ALL], sketch: ["two library calls", FORWARD_ALL]},
    )
    return records + _observed(bench, module, given, name)


def _observed(bench: Bench, network: nn.Module, x: Tensor, name: str) -> list[Record]:
    """A forward pass with and without statistics: what a user sees."""
    observers = {f"statistics {way}, {name}": ActivationCovariance(network, way) for way in ("sketch", "full")}

    def observed(covariance: ActivationCovariance) -> Function:
        def forward() -> Tensor:
            with covariance:
                result: Tensor = network(x)
                return result

        return forward

    return bench.compare(
        f"ResNet-18 N={len(x)}, forward pass with statistics",
        ours={key: observed(covariance) for key, covariance in observers.items()},
        peers={},
        references={FORWARD_ALL: lambda: network(x)},
        agree=lambda _: {},
        precision=name,
    )


def _forward(case: Case) -> Function:
    layer = _copy(case.layer, case.x.dtype)
    return lambda: layer(case.x)


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return deepcopy(module).to(dtype)


def _unfold_once(case: Case) -> AddTo:
    """One product over all samples, of patches side by side."""

    def add(out: Tensor) -> Tensor:
        u = case.patches(case.x)
        return _add_product(out, u, u.T)

    return add


def _unfold_each(case: Case) -> AddTo:
    """A product per sample: no second copy of the patches."""

    def add(out: Tensor) -> Tensor:
        for u in peers.unfold(case.layer, case.x):  # type: ignore[arg-type]
            _add_product(out, u, u.T)
        return out

    return add


def _two_products(case: Case, omega: Tensor) -> AddTo:
    omega = omega.to(case.x.dtype)
    way = peers.two_products(case.layer, case.x, omega)
    if case.x.dtype == torch.float32:
        return way

    def add(out: Tensor) -> Tensor:
        return out.add_(way(torch.zeros_like(out, dtype=case.x.dtype)))

    return add


def _unfold_twice(case: Case, omega: Tensor) -> AddTo:
    omega = omega.to(case.x.dtype)

    def add(out: Tensor) -> Tensor:
        u = case.patches(case.x)
        return _add_product(out, u, u.T @ omega)

    return add


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Out += left·right with the sums of the product in float32, whatever the operands are."""
    if left.dtype == out.dtype:
        return out.addmm_(left, right)
    if left.device.type == "cuda":
        return out.add_(torch.mm(left, right, out_dtype=torch.float32))
    return out.add_(left @ right)


@dataclass(frozen=True)
class _Sums:
    """What a number of equal batches added up to."""

    out: Tensor
    batches: int

    @property
    def of_one(self) -> Tensor:
        """The sum over one batch."""
        return self.out / self.batches


def _over_batches(way: AddTo, shape: Sequence[int], bench: Bench) -> Callable[[], _Sums]:
    out = torch.zeros(tuple(shape), device=bench.device)
    counter = count(1)

    def add() -> _Sums:
        return _Sums(way(out), next(counter))

    return add


def _agree(oracle: Tensor, ours: str, name: str) -> Agree:
    def agree(results: Mapping[str, Any]) -> dict[str, Facts]:
        facts: dict[str, Facts] = {}
        for key, result in results.items():
            error = relative_error(result.of_one, oracle)
            require(key, error, (TOLERANCES if key == ours else PEER_TOLERANCES)[name], "relative error")
            facts[key] = {"relative_error": error}
        return facts

    return agree
