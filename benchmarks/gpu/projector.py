"""What does the flat projector of a layer cost on a GPU, beside torch's eigendecompositions there?

C has the spectrum of a layer of a trained ResNet-18 (``benchmarks/trained.py``) and random eigenvectors; T is known,
and a result's error in operator norm is found by power iteration on the difference in float64. Ours,
``flat_projectors`` with its own choice of route, must be within the bound that it certifies. Peers return a dense T by
``torch.linalg.eigh`` or ``torch.linalg.svd``, or leading eigenvectors by ``torch.svd_lowrank``, which certifies nothing
and is told the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import trained
from benchmarks.agreement import DisagreementError, Facts, require
from benchmarks.gpu.device import Bench, largest, precision
from benchmarks.projector import DENSE_TOLERANCE, LAYERS, MISS, OVERSAMPLING, TAIL_SHARE, LowRank, Spectrum
from benchmarks.timing import Function, Record
from igm_fast.projector import Projector, flat_projectors

DIMS = (576, 1152, 2304, 4608)
TAUS, TOL = (0.4, 4.0), 5e-3
EIGH, SVD, LOW_RANK = "torch.linalg.eigh", "torch.linalg.svd", "torch.svd_lowrank"
# From these sizes on eigh makes few rounds, and the singular value decomposition, which takes long everywhere, none.
SLOW_DIM, TOO_SLOW_DIM, FEW = 2304, 4608, 3
POWER_STEPS = 30


def run(bench: Bench) -> Iterator[list[Callable[[], list[Record]]]]:
    """Yield the jobs: every size with both τ, then all layers in one call."""
    spectra = {name: Spectrum(values.clamp(min=0.0)) for name, values in trained.spectra().items()}
    dims = (64,) if bench.quick else DIMS
    jobs: list[Callable[[], list[Record]]] = []
    for dim in dims:
        jobs += [partial(_one, bench, spectra[LAYERS[dim]], tau) for tau in TAUS]
    chosen = {name: spectrum for name, spectrum in spectra.items() if not bench.quick or spectrum.dim <= 64}
    jobs += [partial(_all, bench, chosen, tau) for tau in TAUS]
    yield jobs


def _one(bench: Bench, spectrum: Spectrum, tau: float) -> list[Record]:
    C, oracle = _matrix(spectrum, bench.device), _projector(spectrum, tau, bench.device)
    peers, missing = _peers(C, spectrum, tau)
    if LOW_RANK in peers:
        try:
            _facts(LOW_RANK, peers[LOW_RANK](), oracle)
        except DisagreementError as error:
            missing[LOW_RANK] = str(error)
    with precision("float32"):
        return bench.compare(
            f"d={spectrum.dim} τ={tau:g} tol={TOL:g}",
            ours={"projector auto": lambda: flat_projectors({"layer": C}, tau=tau, tol=TOL)["layer"]},
            peers=peers,
            unavailable=missing,
            agree=lambda results: {name: _facts(name, result, oracle) for name, result in results.items()},
            few=dict.fromkeys((EIGH, SVD) if spectrum.dim >= SLOW_DIM else (SVD,), FEW),
        )


def _all(bench: Bench, spectra: Mapping[str, Spectrum], tau: float) -> list[Record]:
    """All matrices of the network in one call, against one after the other."""
    matrices = {name: _matrix(spectrum, bench.device) for name, spectrum in spectra.items()}

    def agree(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Facts]:
        mine = results["projector auto"]
        of_layers = [_facts(name, mine[name], _projector(spectra[name], tau, bench.device)) for name in spectra]
        worst = {key: largest([float(facts[key]) for facts in of_layers]) for key in ("error", "error_bound")}
        said: Facts = {**worst, "rank": sum(projector.rank for projector in mine.values())}
        return {name: said if name == "projector auto" else {} for name in results}

    with precision("float32"):
        return bench.compare(
            f"all {len(matrices)} layers τ={tau:g} tol={TOL:g}",
            ours={"projector auto": lambda: flat_projectors(matrices, tau=tau, tol=TOL)},
            peers={EIGH: lambda: {name: _dense_by_eigh(C, tau) for name, C in matrices.items()}},
            agree=agree,
            few={EIGH: 1},
        )


@cache
def _eigenvectors(dim: int, device: torch.device) -> Tensor:
    """Return Q ``[d, d]``, float64: the same for every layer of a size."""
    generator = torch.Generator(device).manual_seed(dim)
    Q: Tensor = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, device=device, generator=generator))[0]
    return Q


def _symmetric(eigenvalues: Tensor, device: torch.device) -> Tensor:
    Q = _eigenvectors(len(eigenvalues), device)
    M = (Q * eigenvalues.to(device)) @ Q.T
    return (M + M.T) / 2


def _matrix(spectrum: Spectrum, device: torch.device) -> Tensor:
    """C ``[d, d]``, float32."""
    return _symmetric(spectrum.eigenvalues, device).float()


def _projector(spectrum: Spectrum, tau: float, device: torch.device) -> Tensor:
    """T ``[d, d]``, float64."""
    return _symmetric(torch.exp(-spectrum.exponents(tau)), device)


def _facts(name: str, result: Any, oracle: Tensor) -> dict[str, float | str]:
    """Return a result's error in operator norm and what it says of itself; raise where it is too large."""
    if isinstance(result, Projector):
        T = result.to(dtype=torch.float64).dense()
    elif isinstance(result, LowRank):
        U = result.U.double()
        T = (U * (result.sigma.double() - result.complement)) @ U.T
        T.diagonal().add_(result.complement)
    else:
        T = result.double()
    error = _operator_norm(T - oracle)
    if isinstance(result, Projector):
        require(name, error, result.error_bound, "error in operator norm")
        require(name, result.error_bound, TOL, "certified bound")
        said = {"error_bound": float(result.error_bound), "rank": result.rank, "route": result.route}
        return {"error": error, **said}
    require(name, error, MISS * TOL if isinstance(result, LowRank) else DENSE_TOLERANCE, "error in operator norm")
    return {"error": error, "rank": result.U.shape[1]} if isinstance(result, LowRank) else {"error": error}


def _operator_norm(difference: Tensor) -> float:
    """‖difference‖₂ of a symmetric matrix from below, by power iteration."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(difference), 4, dtype=torch.float64, generator=generator).to(difference.device)
    norm = torch.zeros(4, dtype=torch.float64, device=difference.device)
    for _ in range(POWER_STEPS):
        x = x / x.norm(dim=0).clamp(min=1e-300)
        x = difference @ x
        norm = x.norm(dim=0)
    return float(norm.max())


def _dense_by_eigh(C: Tensor, tau: float) -> Tensor:
    L, U = torch.linalg.eigh(C)
    T: Tensor = (U * torch.exp(-tau * (L - L[0]) / (L[-1] - L[0]))) @ U.T
    return T


def _dense_by_svd(C: Tensor, tau: float) -> Tensor:
    U, S, _ = torch.linalg.svd(C)
    T: Tensor = (U * torch.exp(-tau * (S - S[-1]) / (S[0] - S[-1]))) @ U.T
    return T


def _peers(C: Tensor, spectrum: Spectrum, tau: float) -> tuple[dict[str, Function], dict[str, str]]:
    """Return the peers, and why some cannot run."""
    rank, exponents = spectrum.rank(tau, TAIL_SHARE * TOL), spectrum.exponents(tau)
    complement = float(0.5 * (1 + torch.exp(-exponents[min(rank, spectrum.dim - 1)])))

    def by_low_rank() -> LowRank:
        U, S, _ = torch.svd_lowrank(C, q=rank + OVERSAMPLING)
        return LowRank(U, torch.exp(-tau * S / S.max()), complement)

    peers: dict[str, Function] = {EIGH: lambda: _dense_by_eigh(C, tau), SVD: lambda: _dense_by_svd(C, tau)}
    missing = dict[str, str]()
    if spectrum.dim >= TOO_SLOW_DIM:
        missing[SVD] = "takes too long at this size"
    elif tau != TAUS[0]:
        missing[SVD] = f"the same work as for τ={TAUS[0]:g}, where it is"
    if rank > spectrum.dim // 2 - OVERSAMPLING:
        missing[LOW_RANK] = f"would need {rank} of {spectrum.dim} directions"
    else:
        peers[LOW_RANK] = by_low_rank
    return peers, missing
