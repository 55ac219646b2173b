"""What does the flat projector T = exp(−τ(C − λmin I)/(λmax − λmin)) of a layer cost, by every route to it?

C is made up: the second moment of rectified features. At d = 2304 it has 15 eigenvalues above 2.5 % and 59 above 0.5 %
of the largest; raw activations of a trained ResNet-18 had 20–31 and 46–97. Ours returns a Projector within tol; the
peers return what one multiplies gradients with: a dense T by ``torch.svd`` (as in the official code) or
``torch.linalg.eigh``, and the factors of ``torch.svd_lowrank``, which certifies nothing and is told for free which
rank and tail reach tol. Errors are in the operator norm against a float64 eigendecomposition, and each of ours must be
within its projector's ``error_bound``. Where a low rank does not reach tol, "truncated" falls back to the polynomial,
and that to eigh, as documented; facts in the JSON say which route was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from benchmarks.agreement import Facts, require
from benchmarks.timing import Effort, Function, Record, compare
from igm_fast.projector import Projector, flat_projectors
from igm_fast.projector.flat import Route

QUESTION = "flat projector of a d×d covariance by each route, against torch.svd, eigh and svd_lowrank"

DIMS = {"quick": (144,), "full": (64, 576, 1152, 2304), "long": (64, 576, 1152, 2304, 4608)}
TAUS = (0.4, 4.0)
ROUTES: tuple[Route, ...] = ("auto", "truncated", "polynomial", "eigh")
TOL = 5e-3
# What single precision may cost svd and eigh in T; a wrong exponent or order of eigenvectors costs far more.
DENSE_TOLERANCE = 1e-3
# Columns that svd_lowrank gets beyond the rank; its vectors are approximate, and where the spectrum is flat it still
# misses tol by about a fifth.
OVERSAMPLING = 10
LOW_RANK_TOLERANCE = 1.5 * TOL


@dataclass(frozen=True)
class Spectrum:
    """Float64 eigenvalues (descending) and eigenvectors of C: the oracle."""

    eigenvalues: Tensor
    vectors: Tensor

    def exponents(self, tau: float) -> Tensor:
        """Return τ(λ − λmin)/(λmax − λmin)."""
        smallest, largest = self.eigenvalues[-1], self.eigenvalues[0]
        return tau * (self.eigenvalues - smallest) / (largest - smallest)

    def projector(self, tau: float) -> Tensor:
        """Return T."""
        return (self.vectors * torch.exp(-self.exponents(tau))) @ self.vectors.T

    def rank(self, tau: float) -> int:
        """Return how many directions T = cI + U(Σ − cI)Uᵀ needs for an error of at most tol."""
        return int((0.5 * (1 - torch.exp(-self.exponents(tau))) > TOL).sum())


@dataclass(frozen=True)
class LowRank:
    """T = cI + U diag(σ − c) Uᵀ, as the factors of ``torch.svd_lowrank`` give it."""

    U: Tensor
    sigma: Tensor
    complement: float

    def dense(self) -> Tensor:
        """Return T."""
        return self.complement * torch.eye(len(self.U)) + (self.U * (self.sigma - self.complement)) @ self.U.T


def run(effort: Effort) -> Iterator[Record]:
    """Measure every size and τ, all routes and peers in turn."""
    for dim in DIMS[effort.scale]:
        C = covariance_of_activations(dim)
        eigenvalues, vectors = torch.linalg.eigh(C.double())
        spectrum = Spectrum(eigenvalues.flip(0), vectors.flip(1))
        for tau in TAUS:
            yield from _measure(C, spectrum, tau, effort)


def covariance_of_activations(dim: int) -> Tensor:
    """Return C ``[d, d]``, float32: the mean of x xᵀ over 2d samples of x = relu(W z), z_k falling as (k + 10)^−0.8."""
    generator = torch.Generator().manual_seed(dim)
    z = torch.randn(2 * dim, dim, generator=generator) * (torch.arange(dim) + 11).pow(-0.8)
    x = (z @ torch.randn(dim, dim, generator=generator)).relu().double()
    return (x.T @ x / len(x)).float()


def _measure(C: Tensor, spectrum: Spectrum, tau: float, effort: Effort) -> list[Record]:
    rank, oracle = spectrum.rank(tau), spectrum.projector(tau)
    columns = rank + OVERSAMPLING
    peers: dict[str, Function] = {
        "torch.svd": lambda: _dense_by_svd(C, tau),
        "torch.linalg.eigh": lambda: _dense_by_eigh(C, tau),
    }
    unavailable = {}
    if columns <= len(C) // 2:
        complement = float(0.5 * (1 + torch.exp(-spectrum.exponents(tau)[rank])))
        peers["torch.svd_lowrank"] = lambda: _by_svd_lowrank(C, tau, columns, complement)
    else:
        unavailable["torch.svd_lowrank"] = f"would need {columns} of {len(C)} columns"
    return compare(
        f"d={len(C)} τ={tau:g}",
        ours={f"projector {route}": _ours(C, tau, route) for route in ROUTES},
        peers=peers,
        unavailable=unavailable,
        agree=lambda results: _check(results, oracle),
        effort=effort,
        headlines=["projector auto"],
    )


def _ours(C: Tensor, tau: float, route: Route) -> Function:
    return lambda: flat_projectors({"layer": C}, tau=tau, method=route, tol=TOL)["layer"]


def _dense_by_svd(C: Tensor, tau: float) -> Tensor:
    U, S, _ = torch.svd(C)
    T: Tensor = (U * torch.exp(-tau * (S - S[-1]) / (S[0] - S[-1]))) @ U.T
    return T


def _dense_by_eigh(C: Tensor, tau: float) -> Tensor:
    L, U = torch.linalg.eigh(C)
    T: Tensor = (U * torch.exp(-tau * (L - L[0]) / (L[-1] - L[0]))) @ U.T
    return T


def _by_svd_lowrank(C: Tensor, tau: float, columns: int, complement: float) -> LowRank:
    U, S, _ = torch.svd_lowrank(C, q=columns)
    return LowRank(U, torch.exp(-tau * S / S[0]), complement)  # λmin is nearly 0 for activations, and not known here


def _check(results: Mapping[str, Any], oracle: Tensor) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    for name, result in results.items():
        T = result if isinstance(result, Tensor) else result.dense()
        error, what = _operator_norm(T.double() - oracle), "error in operator norm"
        if isinstance(result, Projector):
            require(name, error, result.error_bound, what)
            require(name, result.error_bound, TOL, "certified bound")
            bound = {"error_bound": result.error_bound}
            facts[name] = {"error": error, **bound, "rank": result.rank, "route": result.route}
        elif isinstance(result, LowRank):
            require(name, error, LOW_RANK_TOLERANCE, what)
            facts[name] = {"error": error, "rank": result.U.shape[1]}
        else:
            require(name, error, DENSE_TOLERANCE, what)
            facts[name] = {"error": error}
    return facts


def _operator_norm(matrix: Tensor) -> float:
    """‖·‖₂ of a symmetric matrix by Lanczos, to about 1 % and never above it."""
    if not matrix.any():
        return 0.0
    start = np.random.default_rng(0).standard_normal(len(matrix))
    largest = eigsh(matrix.numpy(), k=1, which="LM", v0=start, tol=1e-2, return_eigenvectors=False)
    return float(abs(largest[0]))
