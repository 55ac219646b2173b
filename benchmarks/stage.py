"""What does a whole stage of projectors cost: statistics and decompositions of all layers of an audio-video model?

Two ResNet-18 with the authors' heads (512 → 256 → 64 → 6): spectrograms 257×188 and pictures 224×224, batches of eight.
Ours, three ways: a sketch of every layer; exact matrices and truncated projectors; the batch mean, which gives the
authors' own T. Against ``benchmarks/official.py``: hooks with the batch mean, then ``torch.svd`` of every layer.

The statistics are measured without the forward passes that bring the inputs: what entered each layer was captured
before, and every layer's hooks are called with it (``Replay``). "With forward passes" runs the networks themselves. The
authors' decompositions take the same two minutes after one batch as after a thousand and are measured once; the records
named "stage sketch", "stage full" and "stage batch mean" are sums of the two phases' medians, for everyone alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks import official, stage_figure
from benchmarks.agreement import Facts, relative_error, require
from benchmarks.networks import AUDIO, VIDEO, Replay, Source, batch, encoder, layer_inputs, settled
from benchmarks.timing import OURS, Effort, Function, Ratio, Record, compare
from igm_fast.covariance import ActivationCovariance, Estimator
from igm_fast.projector import Projector, flat_projectors

QUESTION = "statistics and projectors of both encoders of an audio-video model, against the authors' algorithm"

TAU, TOL = 0.4, 5e-3
BATCH = 8
CLASSES = 6
WAYS: dict[str, Estimator] = {"sketch": "sketch", "full": "full", "batch mean": "batch_mean"}
AUTHORS, FORWARD = "authors' algorithm", "forward passes"
LARGE_ROUNDS, SVD_ROUNDS = 3, 1
HIDDEN = (2, 4)  # numbers of batches that are in the figure, not in the README
# What float32 sums and torch.svd may cost the authors' T beside ours of the same matrix.
DENSE_TOLERANCE = 1e-3
STATISTICS_TOLERANCE = 1e-4

draw = stage_figure.draw


@dataclass(frozen=True)
class Branch:
    """One modality: its network, a copy that replays, batches, and what entered every layer in each of them."""

    network: nn.Module
    replay: Replay
    batches: list[Tensor]
    inputs: list[dict[str, Tensor]]


Branches = Mapping[str, Branch]


def run(effort: Effort) -> Iterator[Record]:
    """Measure the statistics over growing numbers of batches, the decompositions, and add them up."""
    quick = effort.scale == "quick"
    counts = (1, 2) if quick else (1, 2, 4, 8)
    sources = (Source("audio", 1, 40, 30), Source("video", 3, 32, 32)) if quick else (AUDIO, VIDEO)
    with torch.no_grad():
        branches = {
            source.name: _branch(source, 32 if quick else 512, counts[-1], 2 if quick else BATCH) for source in sources
        }
        decomposition = {record["name"]: record for record in _decomposition(branches, counts[-1], effort)}
        yield from decomposition.values()
        for count in counts:
            for forward in (False, True) if count == counts[-1] else (False,):
                for record in _statistics(branches, count, effort, forward=forward):
                    yield record
                    way = record["name"].removeprefix("stage statistics ")
                    second = decomposition[f"stage decomposition {way}"]
                    yield whole(record, second, f"stage {way}", headline=count not in HIDDEN)


def whole(statistics: Record, decomposition: Record, name: str, *, headline: bool) -> Record:
    """Return the record of both phases together: sums of medians and of quartiles; a sum has no interval."""
    parts = (statistics, decomposition)
    phases = {
        OURS: [record["ours_ms"] for record in parts],
        AUTHORS: [record["peers"][AUTHORS] for record in parts],
    }
    quartiles = {key: [record["quartiles_ms"][key] for record in parts] for key in phases}
    total = {key: sum(ms) for key, ms in phases.items()}
    return Record(
        **{
            **statistics,
            "name": name,
            "headline": headline,
            "ours_ms": total[OURS],
            "peers": {AUTHORS: total[AUTHORS]},
            "references": {},
            "quartiles_ms": {
                key: (sum(low for low, _ in ends), sum(high for _, high in ends)) for key, ends in quartiles.items()
            },
            "ratios": {AUTHORS: Ratio(ratio=total[AUTHORS] / total[OURS], low=None, high=None)},
            "rounds": {key: min(record["rounds"][key] for record in parts) for key in phases},
            "calls_per_sample": dict.fromkeys(phases, 1),
            "facts": {
                key: {**decomposition["facts"][key], "statistics_ms": ms[0], "decomposition_ms": ms[1]}
                for key, ms in phases.items()
            },
        }
    )


def _branch(source: Source, width: int, batches: int, samples: int) -> Branch:
    given = [batch(source, samples, seed) for seed in range(batches)]
    head = nn.Sequential(
        nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width // 8), nn.Linear(width // 8, CLASSES)
    )
    network = settled(nn.Sequential(encoder(source, width), head), given[0])
    return Branch(network, Replay(network), given, [layer_inputs(network, x) for x in given])


def _statistics(branches: Branches, count: int, effort: Effort, *, forward: bool) -> list[Record]:
    """Both branches, so many batches; ours returns ActivationCovariance, the authors' their hooks."""

    def over_batches(observe: Callable[[nn.Module], Any]) -> Callable[[], dict[str, Any]]:
        def run_all() -> dict[str, Any]:
            result = {}
            for name, branch in branches.items():
                with observe(branch.network if forward else branch.replay.module) as statistics:
                    for index in range(count):
                        if forward:
                            branch.network(branch.batches[index])
                        else:
                            branch.replay(branch.inputs[index])
                result[name] = statistics
            return result

        return run_all

    def passes() -> None:
        for branch in branches.values():
            for index in range(count):
                branch.network(branch.batches[index])

    ours = {f"stage statistics {way}": over_batches(_observer(estimator)) for way, estimator in WAYS.items()}
    peers = {AUTHORS: over_batches(official.BatchMeanHooks)}
    large = count > 1
    return compare(
        f"{count} {'batch' if count == 1 else 'batches'}{' and forward passes' if forward else ''}",
        ours=ours,
        peers=peers,
        references={FORWARD: passes},
        agree=_same_statistics,
        effort=effort,
        few=dict.fromkeys((*ours, *peers, FORWARD), LARGE_ROUNDS) if large else {},
        headlines=[],
    )


def _observer(estimator: Estimator) -> Callable[[nn.Module], ActivationCovariance]:
    return lambda network: ActivationCovariance(network, estimator)


def _same_statistics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Facts]:
    """The batch mean is the authors' matrix; exact and sketched statistics have the same trace, layer by layer."""
    of = {way: results[f"stage statistics {way}"] for way in WAYS}
    errors = {name: 0.0 for name in results}
    for branch, hooks in results[AUTHORS].items():
        for layer, C in hooks.sums.items():
            ours = of["batch mean"][branch]
            error = relative_error(ours[layer] * ours.count(layer), C)
            errors["stage statistics batch mean"] = max(error, errors["stage statistics batch mean"])
            exact = of["full"][branch][layer].double().trace()
            for way in ("full", "sketch"):
                error = relative_error(of[way][branch].trace(layer), exact)
                errors[f"stage statistics {way}"] = max(error, errors[f"stage statistics {way}"])
    for name, error in errors.items():
        require(name, error, STATISTICS_TOLERANCE, "largest relative error of a layer")
    return {name: {"relative_error": error} for name, error in errors.items()}


def _decomposition(branches: Branches, count: int, effort: Effort) -> list[Record]:
    """From the statistics of so many batches to every layer's T."""

    def statistics(observe: Callable[[nn.Module], Any]) -> dict[str, Any]:
        result = {}
        for name, branch in branches.items():
            with observe(branch.replay.module) as result[name]:
                for inputs in branch.inputs[:count]:
                    branch.replay(inputs)
        return result

    def ours(estimator: Estimator) -> Function:
        seen = statistics(_observer(estimator))
        return lambda: {name: flat_projectors(of, tau=TAU, tol=TOL) for name, of in seen.items()}

    seen = statistics(official.BatchMeanHooks)
    functions = {f"stage decomposition {way}": ours(estimator) for way, estimator in WAYS.items()}
    return compare(
        f"after {count} batches",
        ours=functions,
        peers={AUTHORS: lambda: {name: official.projectors(hooks.sums, TAU) for name, hooks in seen.items()}},
        agree=_same_projectors,
        effort=effort,
        few={AUTHORS: SVD_ROUNDS},
        headlines=[],
    )


def _same_projectors(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Facts]:
    """The batch mean gives the authors' T; exact and sketched statistics agree within the sum of their bounds."""
    sketch, full, mean = (results[f"stage decomposition {way}"] for way in WAYS)
    gaps = dict.fromkeys(results, 0.0)
    for branch, projectors in results[AUTHORS].items():
        for layer, T in projectors.items():
            first, second, third = sketch[branch][layer], full[branch][layer], mean[branch][layer]
            where = f"{branch} {layer}"
            gap = _distance(second, first)
            require(where, gap, first.error_bound + second.error_bound, "distance of sketch and full")
            gaps["stage decomposition sketch"] = max(gap, gaps["stage decomposition sketch"])
            gap = _distance(third, T)
            require(where, gap, third.error_bound + DENSE_TOLERANCE, "distance of batch mean and the authors' T")
            gaps["stage decomposition batch mean"] = max(gap, gaps["stage decomposition batch mean"])
    facts: dict[str, Facts] = {AUTHORS: {}}
    for way, of in (("sketch", sketch), ("full", full), ("batch mean", mean)):
        made = [projector for projectors in of.values() for projector in projectors.values()]
        name, bound = f"stage decomposition {way}", max(projector.error_bound for projector in made)
        facts[name] = {"layers": len(made), "largest_error_bound": bound, "largest_distance": gaps[name]}
    return facts


def _distance(first: Projector, second: Projector | Tensor) -> float:
    """‖T₁ − T₂‖₂ by Lanczos, to about 1 % and never above it."""

    def times(projector: Projector | Tensor, x: Tensor) -> Tensor:
        return projector.apply(x[None])[0] if isinstance(projector, Projector) else x @ projector

    def difference(x: NDArray[np.float64]) -> NDArray[np.float32]:
        vector = torch.from_numpy(x.reshape(-1)).float()
        result: NDArray[np.float32] = (times(first, vector) - times(second, vector)).numpy()
        return result

    start = np.random.default_rng(0).standard_normal(first.dim)
    if not np.any(difference(start)) or first.dim < 3:
        return 0.0
    operator = LinearOperator((first.dim, first.dim), matvec=difference, dtype=np.float64)
    return float(abs(eigsh(operator, k=1, v0=start, tol=1e-2, return_eigenvectors=False)[0]))
