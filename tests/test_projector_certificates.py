"""Certificates are theorems: the bound of every route and function against the true error, in float64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional

from igm_fast.covariance import ActivationCovariance
from igm_fast.data.sets import emoji
from igm_fast.projector import (
    EnergyThreshold,
    FlatExponential,
    Projector,
    RidgeComplement,
    certificate,
    spectral_projectors,
)
from igm_fast.sketch import Sketch, norm_bound

SMOOTH_ROUTES = ("auto", "eigh", "polynomial", "truncated", "sketch")
THRESHOLD_ROUTES = ("auto", "eigh", "truncated")
DIMS = (2, 9, 40, 72, 130)
PER_KIND = 30


def spectrum(kind: str, dim: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "fast decay": lambda: np.maximum(rng.uniform(0.5, 0.9) ** np.arange(dim), 1e-8),
        "slow decay": lambda: np.arange(1, dim + 1) ** -rng.uniform(0.3, 1.6),
        "uniform": lambda: rng.uniform(rng.choice([0.0, 0.2, 0.8]), 1.0, dim),
        "clusters": lambda: rng.choice([1.0, 0.1, 1e-3], dim) * (1 + 1e-6 * rng.normal(size=dim)),
        "rank-deficient": lambda: np.where(np.arange(dim) < max(1, dim // 10), rng.uniform(0.5, 1, dim), 0.0),
        "one huge": lambda: np.where(np.arange(dim) == 0, 1e4, rng.uniform(0.5, 1.0, dim)),
        "spiked": lambda: np.where(np.arange(dim) < 5, 1.0, rng.choice([0.01, 0.3])),
        "tiny": lambda: 1e-12 * np.logspace(0, -3, dim),
        "huge": lambda: 1e9 * rng.exponential(size=dim) ** 4,
        "two": lambda: np.where(np.arange(dim) < dim // 2, 1.0, 0.5),
    }[kind]()


KINDS = (
    "fast decay", "slow decay", "uniform", "clusters", "rank-deficient", "one huge", "spiked", "tiny", "huge", "two",
)  # fmt: skip


class Case(NamedTuple):
    matrix: torch.Tensor
    largest: float
    spread: float  # (λmax − λmin)/λmax
    tol: float
    tau: float
    share: float
    alpha: float


@functools.cache
def cases(kind: str) -> list[Case]:
    """PER_KIND random spectra with random eigenvectors; 300 over all kinds."""
    rng = np.random.default_rng(KINDS.index(kind))
    made = []
    for i in range(PER_KIND):
        dim = DIMS[i % len(DIMS)]
        eigenvalues = spectrum(kind, dim, rng)
        Q = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        C = (Q * eigenvalues) @ Q.T
        matrix = torch.from_numpy((C + C.T) / 2).to(torch.float32 if i % 3 else torch.float64)
        largest = eigenvalues.max()
        tol, tau = rng.choice([2e-2, 5e-3, 1e-3]), rng.choice([0.1, 0.4, 4.0, 16.0])
        alpha = largest * rng.choice([1e-3, 0.1, 1.0, 10.0])
        made.append(Case(matrix, largest, np.ptp(eigenvalues) / largest, tol, tau, rng.uniform(0.3, 1.0), alpha))
    return made


def true_error(projector: Projector, C: torch.Tensor) -> float:
    """‖T̂ − f(C)‖₂."""
    function, matrix = projector.function, C.double().numpy()
    if isinstance(function, FlatExponential):
        expected = oracles.igm_projector(matrix, function.tau)
    elif isinstance(function, RidgeComplement):
        expected = oracles.ridge_complement(matrix, function.alpha)
    else:
        expected = oracles.energy_threshold(matrix, function.share)
    return float(np.abs(np.linalg.eigvalsh(projector.dense().double().numpy() - expected)).max())


class Statistics(NamedTuple):
    """What spectral_projectors takes instead of an ActivationCovariance."""

    sketches: dict[str, Sketch]
    weight_shapes: dict[str, tuple[int, ...]]

    def statistics(self) -> dict[str, Sketch]:
        return self.sketches


def sketch_of(C: torch.Tensor) -> Statistics:
    dim = len(C)
    rank = max(1, dim // 3)
    probes = min(16, dim - rank)
    drawn = torch.randn(1, dim, rank + probes, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    omega = torch.cat([torch.linalg.qr(drawn[:, :, :rank])[0], drawn[:, :, rank:]], dim=2).float()
    image = (C.double() @ omega.double()).float()
    return Statistics({"layer": Sketch(omega, image, C.trace().double()[None], probes)}, {})


def project(case: Case, function, route: str) -> Projector:
    if route == "sketch":
        return spectral_projectors(sketch_of(case.matrix), function, route, case.tol)["layer"]
    return spectral_projectors({"layer": case.matrix}, function, route, case.tol)["layer"]


@pytest.mark.parametrize("route", SMOOTH_ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_smooth_functions(kind, route):
    """The error is within the bound, and the bound within tol where a route can be asked for that."""
    for case in cases(kind):
        functions = [RidgeComplement(case.alpha)]
        # Where the spread is what rounding makes of equal eigenvalues, T is I by definition; a test of its own.
        functions += [FlatExponential(case.tau)] * int(case.spread > 1e-3)
        for function in functions:
            projector = project(case, function, route)
            assert true_error(projector, case.matrix) <= projector.error_bound, case
            assert route == "sketch" or projector.error_bound <= case.tol, case
            assert projector.function == function
            assert route in ("auto", "polynomial", "truncated") or projector.route == route


@pytest.mark.parametrize("route", THRESHOLD_ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_thresholds(kind, route):
    """Within the bound; where the spectrum has a gap at the threshold, the bound is small."""
    for case in cases(kind):
        projector = project(case, EnergyThreshold(case.share), route)
        error = true_error(projector, case.matrix)
        assert error <= projector.error_bound + 1e-12, case
        assert projector.error_bound <= 1
        if kind == "fast decay":
            assert projector.error_bound <= 1e-2
            assert error < 1e-3


def test_low_rank_certificates_do_not_only_say_that_the_fallback_is_exact():
    """Of the cases above, the truncated route itself answers a good part, for every function."""
    counts = dict.fromkeys(("flat", "ridge", "threshold"), 0)
    for kind in ("fast decay", "slow decay", "one huge", "rank-deficient", "spiked"):
        for case in cases(kind):
            functions = (FlatExponential(0.4), RidgeComplement(case.largest), EnergyThreshold(0.6))
            for name, function in zip(counts, functions, strict=True):
                counts[name] += project(case, function, "truncated").route == "truncated"
    assert min(counts.values()) >= 20, counts


# ---- a trained network -----------------------------------------------------------------------------------------------


@functools.cache
def activations() -> dict[str, torch.Tensor]:
    """Second moments of a small convolutional network's layers after some steps on pictures."""
    torch.manual_seed(0)
    data = emoji.load(0)
    inputs = functional.interpolate(data.train.inputs["picture"][:512].float(), (12, 12))
    labels = data.train.labels[: len(inputs)]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(30):
        batch = torch.arange(step * 64, (step + 1) * 64) % len(inputs)
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad(), ActivationCovariance(network, "full") as covariance:
        network(inputs)
    return {name: covariance[name] for name in covariance}


@pytest.mark.parametrize("method", ["auto", "truncated"])
@pytest.mark.parametrize("tol", [5e-3, 1e-3])
def test_activations_of_a_trained_network(method, tol):
    matrices = activations()
    assert {C.shape[-1] for C in matrices.values()} == {27, 144, 288}
    for kind in (FlatExponential(0.4), FlatExponential(4.0), None, EnergyThreshold(0.9)):
        for name, C in matrices.items():
            function = kind or RidgeComplement(float(C.diagonal().sum()) / 10)
            projector = spectral_projectors({name: C}, function, method, tol)[name]
            assert true_error(projector, C) <= projector.error_bound <= tol
    low_rank = spectral_projectors(matrices, FlatExponential(0.4), "truncated", 5e-3)
    assert [low_rank[name].route for name, C in matrices.items() if C.shape[-1] == 288] == ["truncated"] * 2


# ---- the probabilistic part ------------------------------------------------------------------------------------------


def test_tails_from_probes_fail_no_more_often_than_they_say(monkeypatch):
    """10⁴ draws at 2 %: 200 ± 14 failures at worst; E³G has more directions than the one that the proof uses."""
    monkeypatch.setattr(certificate, "norm_bound", functools.partial(norm_bound, failure_probability=0.02))
    monkeypatch.setattr(certificate, "PROBES", 2)
    trials, dim = 10_000, 12
    C = torch.diag(torch.cat([torch.tensor([5.0, 1.0]), torch.full((dim - 2,), 0.01)])).repeat(trials, 1, 1)
    U = torch.eye(dim)[:, :1].repeat(trials, 1, 1)
    tails = certificate.tail_from_probes(C, U, torch.Generator().manual_seed(0))
    failures = int((tails < 1.0).sum())
    assert 0 < failures <= 200 + 4 * 14


def test_a_bound_notices_a_missing_direction():
    projectors = ((case, project(case, FlatExponential(0.4), "truncated")) for case in cases("fast decay"))
    case, projector = next((c, p) for c, p in projectors if p.route == "truncated" and p.rank > 1)
    less = Projector(
        projector.dim, 1, projector.function, "truncated", projector.eigenvalues[1:], projector.sigma[1:],
        projector.complement, projector.error_bound, basis=projector.basis[:, 1:],
    )  # fmt: skip
    assert true_error(less, case.matrix) > less.error_bound


def test_an_asymmetry_that_is_let_pass_is_in_the_bound():
    """C = S + K: rounding-sized K is accepted, and T is that of S to within what the bound says."""
    generator = torch.Generator().manual_seed(0)
    C = cases("fast decay")[3].matrix.float()
    K = torch.randn(C.shape, generator=generator)
    skewed = C + 5e-7 * (K - K.T)
    for method in ("eigh", "truncated", "polynomial"):
        straight = spectral_projectors({"layer": C}, FlatExponential(4.0), method, 0.05)["layer"]
        projector = spectral_projectors({"layer": skewed}, FlatExponential(4.0), method, 0.05)["layer"]
        if method == "eigh":  # the others' bounds have parts that a last bit of C moves more
            assert projector.error_bound > straight.error_bound
        assert true_error(projector, (skewed + skewed.T) / 2) <= projector.error_bound
