"""What do activation covariances cost, exact, as a sketch and of the batch's mean, beside the code in use today?

Exact: C += Σ u uᵀ over the patches u of a layer's input; that is KFAC's input factor, which einconv forms by a tensor
network and nngeometry by unfold and one product. Sketch: Y += Σ u (uᵀΩ), Ω with 64 + 16 columns; XΩ is a convolution
and Xᵀ(XΩ) its weight gradient: the two library calls. Ours also sums u and |u|² for every sketch; the peers do not.
Batch mean: C of the batch's mean input, as in the authors' code. All add to their result, as over the batches of a set.

The layers are the distinct convolutions of ResNet-18 for 224×224 pictures and 257×188 spectrograms, fed with what the
network itself gives them. A sketch is for d > 256, below which the exact matrix is kept. Facts in the JSON: relative
error against float64, and the peak of memory beyond in- and output. flops are those of one triangle: a smarter way may
need fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import covariance_peers as peers
from benchmarks.agreement import Agree, Facts, relative_error, require
from benchmarks.networks import AUDIO, VIDEO, Source, batch, distinct, encoder, layer_inputs, settled
from benchmarks.timing import Effort, Function, Record, compare
from igm_fast.layers import conv_geometry, observable_layers
from igm_fast.ops.covariance import add_covariance
from igm_fast.ops.forms import Form
from igm_fast.ops.patches import Patches, conv_patches
from igm_fast.sketch import PROBES, RANK, SMALL

QUESTION = "activation covariance of every convolution of ResNet-18: exact, sketch, batch mean; against KFAC libraries"

FULL, SKETCH, BATCH_MEAN = "covariance full", "covariance sketch", "covariance batch mean"
FORWARD = "forward pass"
# The operator's own choice between its two forms, each of which is its peer: it should cost what the better one does.
CHOICE = "covariance full, choice of form"
# Sums of up to 401,408 products in float32, blocked by every library: about 1e-6 in practice.
TOLERANCE = 1e-5
BATCH, LARGE_BATCH = 8, 32
# A case has up to nine functions, and there are thirty cases.
MOST_ROUNDS, BUDGET_S = 15, 0.6

AddTo = Callable[[Tensor], Tensor]

_ops = torch.ops.igm_fast


@dataclass(frozen=True)
class Case:
    """A convolution and its input; or a linear layer and its rows ``[m, d]``."""

    layer: nn.Conv2d | nn.Linear
    x: Tensor

    @property
    def dim(self) -> int:
        """Length of a patch."""
        return self.layer.weight[0].numel()

    @property
    def is_small(self) -> bool:
        """Whether a sketch would cost no less than the exact matrix, which is then kept."""
        return self.dim <= SMALL

    @property
    def columns(self) -> int:
        """Columns of a sketch."""
        return min(RANK + PROBES, self.dim // 2)

    @property
    def label(self) -> str:
        """Return what tables show."""
        if isinstance(self.layer, nn.Linear):
            return f"Linear {self.dim}, {len(self.x)} rows"
        samples, channels, height, width = self.x.shape
        kernel, stride = self.layer.kernel_size, self.layer.stride[0]
        step = f" stride {stride}" if stride > 1 else ""
        return f"{kernel[0]}×{kernel[1]}{step} C{channels} {height}×{width} N={samples}"

    def amounts(self, name: str) -> dict[str, int]:
        """Return compulsory traffic and arithmetic of a statistic."""
        d, positions = self.dim, self.patches(self.x[:1]).shape[1]
        samples = 1 if name == BATCH_MEAN else len(self.x)
        if name == SKETCH and not self.is_small:
            traffic, flops = 3 * 4 * d * self.columns, 4 * d * self.columns * samples * positions
        else:
            traffic, flops = 2 * 4 * d * d, d * (d + 1) * samples * positions
        return {"bytes_moved": self.x.nbytes + traffic, "flops": flops}

    def patches(self, x: Tensor) -> Tensor:
        """Return all patches of an input, ``[d, m]``."""
        if isinstance(self.layer, nn.Linear):
            return x.T
        return peers.unfold(self.layer, x).transpose(0, 1).flatten(1)


def run(effort: Effort) -> Iterator[Record]:
    """Measure every layer, a linear layer, and both networks as a whole."""
    quick = effort.scale == "quick"
    sources = (Source("video", 3, 48, 48),) if quick else (VIDEO, AUDIO)
    effort = replace(effort, rounds=min(effort.rounds, MOST_ROUNDS), budget_s=min(effort.budget_s, BUDGET_S))
    with torch.no_grad():
        for source in sources:
            network = settled(encoder(source, 32 if quick else 512), batch(source, 2 if quick else BATCH))
            layers = observable_layers(network)
            for samples in (2,) if quick else (BATCH, LARGE_BATCH):
                x = batch(source, samples)
                inputs = layer_inputs(network, x)
                cases = {name: Case(layers[name], given) for name, given in inputs.items()}
                for name in distinct(network, inputs):
                    usual = samples != LARGE_BATCH or (source is VIDEO and _is_plain(layers[name]))
                    if usual or effort.scale == "long":
                        yield from _measure(cases[name], effort, headline=samples == BATCH and source is VIDEO)
                if samples != LARGE_BATCH:
                    for name in distinct(network, inputs):
                        yield from _forms(cases[name], effort)
                    yield from _whole(network, x, list(cases.values()), source, effort)
        rows = torch.randn(64 if quick else 4096, 16 if quick else 512, generator=torch.Generator().manual_seed(0))
        linear = nn.Linear(rows.shape[1], rows.shape[1], bias=False)
        yield from _measure(Case(linear, rows.relu()), effort, headline=False)


def _measure(case: Case, effort: Effort, *, headline: bool) -> Iterator[Record]:
    """All three statistics of one layer; what they share is measured once."""
    layer, x = case.layer, case.x
    ways = Ours(case)
    libraries, unavailable = peers.libraries(layer, x)
    exact = {"unfold+mm": peers.unfold_mm(layer, x), **libraries}
    mean = {"mean, unfold+mm": peers.mean_unfold_mm(layer, x)}
    sketch = {"two library calls": peers.two_products(layer, x, ways.omega)}
    ours = {FULL: ways.full, SKETCH: ways.sketch, BATCH_MEAN: ways.batch_mean}
    beside = {FULL: [*exact, FORWARD], SKETCH: [*sketch, "unfold+mm", FORWARD], BATCH_MEAN: [*mean, FORWARD]}
    if case.is_small:
        del ours[SKETCH], sketch["two library calls"]
    if isinstance(layer, nn.Linear):  # the mean of its rows is one row
        del ours[BATCH_MEAN], mean["mean, unfold+mm"]
    u, of_mean = case.patches(x.double()), case.patches(x.double().mean(dim=0, keepdim=True))
    C = u @ u.T
    oracles = dict.fromkeys((FULL, *exact), C) | dict.fromkeys((BATCH_MEAN, *mean), of_mean @ of_mean.T)
    oracles |= dict.fromkeys((SKETCH, *sketch), C @ ways.omega.double())

    del u, of_mean
    records = compare(
        case.label,
        ours={name: _over_batches(way, oracles[name].shape) for name, way in ours.items()},
        peers={name: _over_batches(way, oracles[name].shape) for name, way in {**exact, **mean, **sketch}.items()},
        references={FORWARD: lambda: layer(x)},
        unavailable=unavailable,
        agree=_agree_with(oracles),
        effort=effort,
        beside=beside,
        headlines=list(ours) if headline else [],
    )
    for record in records:
        missing = unavailable if record["name"] == FULL else {}
        yield Record(**{**record, **case.amounts(record["name"]), "unavailable": missing})


def _forms(case: Case, effort: Effort) -> Iterator[Record]:
    """The form that the operator takes for the exact matrix, beside either one."""
    if max(case.layer.kernel_size) == 1:  # a 1×1 kernel has one form
        return
    patches = conv_patches("benchmark", 2, case.x, *conv_geometry(case.layer))
    ways: dict[Form, AddTo] = {form: _in_form(patches, form) for form in ("patches", "lags")}
    u = case.patches(case.x.double())
    C = u @ u.T
    del u
    yield from compare(
        case.label,
        ours={CHOICE: _over_batches(Ours(case).full, C.shape)},
        peers={f"as {form}": _over_batches(way, C.shape) for form, way in ways.items()},
        agree=_agree_with(dict.fromkeys((CHOICE, *(f"as {form}" for form in ways)), C)),
        effort=effort,
        headlines=[],
        **case.amounts(FULL),
    )


def _in_form(patches: Patches, form: Form) -> AddTo:
    def add(out: Tensor) -> Tensor:
        add_covariance(out[None], patches, 1.0, form)
        return out

    return add


def _whole(network: nn.Module, x: Tensor, cases: Sequence[Case], source: Source, effort: Effort) -> Iterator[Record]:
    """All layers one after the other, as in a pass over one batch."""
    ours = [Ours(case) for case in cases]
    matrices = [(case.dim, case.dim) for case in cases]
    images = [(case.dim, case.dim if case.is_small else case.columns) for case in cases]
    unfold_mm = [peers.unfold_mm(case.layer, case.x) for case in cases]
    library = [
        exact if way.case.is_small else peers.two_products(way.case.layer, way.case.x, way.omega)
        for way, exact in zip(ours, unfold_mm, strict=True)
    ]

    def all_layers(ways: Sequence[AddTo], shapes: Sequence[tuple[int, int]]) -> Callable[[], list[Tensor]]:
        parts = [_over_batches(way, shape) for way, shape in zip(ways, shapes, strict=True)]
        return lambda: [part() for part in parts]

    def agree(results: Mapping[str, list[Tensor]]) -> dict[str, Facts]:
        errors = dict.fromkeys(results, 0.0)
        for index, way in enumerate(ours):
            u = way.case.patches(way.case.x.double())
            C = u @ u.T
            for name, result in results.items():
                oracle = C if result[index].shape == C.shape else C @ way.omega.double()
                errors[name] = max(errors[name], relative_error(result[index], oracle))
        for name, error in errors.items():
            require(name, error, TOLERANCE, "largest relative error of a layer")
        return {name: {"relative_error": error} for name, error in errors.items()}

    records = compare(
        f"ResNet-18 {source.size} N={len(x)}, all {len(cases)} layers",
        ours={
            FULL: all_layers([way.full for way in ours], matrices),
            SKETCH: all_layers([way.sketch for way in ours], images),
        },
        peers={"unfold+mm": all_layers(unfold_mm, matrices), "two library calls": all_layers(library, images)},
        references={FORWARD: lambda: network(x)},
        agree=agree,
        effort=effort,
        beside={FULL: ["unfold+mm", FORWARD], SKETCH: ["two library calls", "unfold+mm", FORWARD]},
    )
    for record in records:
        amounts = [case.amounts(record["name"]) for case in cases]
        yield Record(**{**record, **{key: sum(each[key] for each in amounts) for key in amounts[0]}})


class Ours:
    """Our operators on one case; each method adds to the tensor that it is given, and returns it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.geometry = conv_geometry(case.layer) if isinstance(case.layer, nn.Conv2d) else None
        generator = torch.Generator().manual_seed(0)
        omega = torch.linalg.qr(torch.randn(case.dim, case.columns, generator=generator))[0].contiguous()
        self.omega = omega.to(case.x.device)
        self.total, self.trace = (torch.zeros(1, *shape, device=case.x.device) for shape in ((case.dim,), ()))

    def full(self, out: Tensor) -> Tensor:
        """Σ u uᵀ."""
        return self._exact(out, self.case.x)

    def batch_mean(self, out: Tensor) -> Tensor:
        """The same of the batch's mean input."""
        return self._exact(out, self.case.x.mean(dim=0, keepdim=True))

    def sketch(self, out: Tensor) -> Tensor:
        """Σ u (uᵀΩ), and on the side Σ u and Σ|u|²; of a small layer Σ u uᵀ and the two."""
        if not self.case.is_small:
            return self._image(out, self.omega)
        self._image(out[:, :0], self.omega[:, :0])
        return self.full(out)

    def _exact(self, out: Tensor, x: Tensor) -> Tensor:
        if self.geometry is None:
            _ops.linear_covariance(out, x)
        else:
            _ops.conv2d_covariance(out[None], x, *self.geometry)
        return out

    def _image(self, out: Tensor, omega: Tensor) -> Tensor:
        x, total, trace = self.case.x, self.total, self.trace
        if self.geometry is None:
            _ops.linear_covariance_sketch(out, total[0], trace[0], x, omega)
        else:
            _ops.conv2d_covariance_sketch(out[None], total, trace, x, omega[None], *self.geometry)
        return out


def _over_batches(way: AddTo, shape: Sequence[int]) -> Function:
    out = torch.zeros(shape)
    return lambda: way(out)


def _agree_with(oracles: Mapping[str, Tensor]) -> Agree:
    def agree(results: Mapping[str, Any]) -> dict[str, Facts]:
        facts: dict[str, Facts] = {}
        for name, result in results.items():
            error = relative_error(result, oracles[name])
            require(name, error, TOLERANCE, "relative error")
            facts[name] = {"relative_error": error}
        return facts

    return agree


def _is_plain(layer: nn.Module) -> bool:
    """A 3×3 convolution of stride 1: most of a ResNet."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1)
