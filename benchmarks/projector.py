"""What does the flat projector T = exp(−τ(C − λmin I)/(λmax − λmin)) of a layer cost, by every route to it?

C has the spectrum of a layer of a trained ResNet-18 (``benchmarks/trained.py``) and random eigenvectors Q, a product of
sign changes and cosine transforms: T is then known in closed form, and the error of a result is found by Lanczos on the
difference, with no float64 decomposition. Ours returns a Projector that is certified to be within tol. The peers return
what one multiplies gradients with: a dense T by ``torch.svd`` (as in the authors' code) or ``torch.linalg.eigh``, or
leading eigenvectors by ``torch.svd_lowrank``, ``scipy.sparse.linalg.eigsh`` or ``lobpcg``. The last three certify
nothing, and are told for free which rank, accuracy and tail reach tol. Dense peers take the same time for every τ and
tol and are measured once per d, at τ = 0.4; slow ones make the few rounds that the record says.

Each of ours must be within its ``error_bound``, in operator norm. Where a low rank does not reach tol, "auto" falls
back to the polynomial, and that to eigh, as documented; facts in the JSON say which route was taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg
from torch import Tensor

from benchmarks import trained
from benchmarks.agreement import Facts, require
from benchmarks.timing import Effort, Function, Record, compare
from igm_fast.projector import Projector, flat_projectors
from igm_fast.projector.flat import Route

Array = NDArray[np.float64]

QUESTION = "flat projector of a trained network's d×d covariance, against torch.svd, eigh and low-rank eigensolvers"

LAYERS = {
    64: "layer2.0.downsample.0",
    256: "layer4.0.downsample.0",
    576: "layer1.1.conv2",
    1152: "layer2.1.conv2",
    2304: "layer3.1.conv2",
    4608: "layer4.1.conv2",
}
DIMS = {"quick": (256,), "full": (64, 576, 1152, 2304, 4608), "long": tuple(LAYERS)}
TAUS, TOLERANCES = (0.4, 4.0), (5e-3, 1e-3)
SVD, EIGH = "torch.svd", "torch.linalg.eigh"
# What single precision may cost svd and eigh in T; a wrong exponent or order of eigenvectors costs far more.
DENSE_TOLERANCE = 1e-3
# Of tol: what the low-rank peers may spend on the tail that they leave out, and how far they may miss tol.
TAIL_SHARE, MISS = 0.8, 2.0
OVERSAMPLING = 10  # columns that svd_lowrank gets beyond the rank
LOBPCG_STEPS = 60
# A size has up to twenty functions.
MOST_ROUNDS, BUDGET_S = 9, 0.4
# From these d on low-rank peers and our dense routes make few rounds; then svd and eigh, too, and our dense routes are
# for --long.
SLOW_DIM, VERY_SLOW_DIM, SLOW_ROUNDS = 2304, 4608, 3
# Longer than the threads of numpy's and scipy's OpenBLAS spin after a call.
REST_S = 0.05
ALL_ROUNDS = {SVD: 1, EIGH: 1}  # of all twenty layers
HEADLINE_DIMS = (576, 2304, 4608)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of C (descending, float64), and eigenvectors Q that nobody writes down: the oracle."""

    eigenvalues: Tensor

    @property
    def dim(self) -> int:
        """Rows of C."""
        return len(self.eigenvalues)

    def exponents(self, tau: float) -> Tensor:
        """Return τ(λ − λmin)/(λmax − λmin)."""
        smallest, largest = self.eigenvalues[-1], self.eigenvalues[0]
        return tau * (self.eigenvalues - smallest) / (largest - smallest)

    def matrix(self) -> Tensor:
        """Return C ``[d, d]``, float32, symmetric."""
        half = self._rotate(np.diag(self.eigenvalues.numpy()))
        C = torch.from_numpy(self._rotate(half.T))
        return ((C + C.T) / 2).float()

    def projector_times(self, tau: float, x: Array) -> Array:
        """Return T x for a vector x."""
        scaled = torch.exp(-self.exponents(tau)).numpy() * self._rotate_back(x)
        return self._rotate(scaled)

    def rank(self, tau: float, tol: float) -> int:
        """Return how many directions T = cI + U(Σ − cI)Uᵀ needs for an error of at most tol."""
        return int((0.5 * (1 - torch.exp(-self.exponents(tau))) > tol).sum())

    def _signs(self) -> Array:
        return np.random.default_rng(self.dim).choice((-1.0, 1.0), (2, self.dim))

    def _rotate(self, x: Array) -> Array:
        """Q x: twice signs and a cosine transform, so that every eigenvector is spread over all coordinates."""
        for signs in self._signs():
            x = scipy.fft.dct((signs * x.T).T, axis=0, norm="ortho", workers=-1)
        return x

    def _rotate_back(self, x: Array) -> Array:
        for signs in self._signs()[::-1]:
            x = (signs * scipy.fft.idct(x, axis=0, norm="ortho", workers=-1).T).T
        return x


@dataclass(frozen=True)
class LowRank:
    """T = cI + U diag(σ − c) Uᵀ, as the factors of a peer give it."""

    U: Tensor
    sigma: Tensor
    complement: float

    def times(self, x: Tensor) -> Tensor:
        """Return T x in float64."""
        U = self.U.double()
        product: Tensor = self.complement * x + U @ ((self.sigma.double() - self.complement) * (U.T @ x))
        return product


def run(effort: Effort) -> Iterator[Record]:
    """Measure every size, all τ and tol at once; then all layers of the network together."""
    spectra = {name: Spectrum(eigenvalues.clamp(min=0.0)) for name, eigenvalues in trained.spectra().items()}
    quick = effort.scale == "quick"
    effort = replace(effort, rounds=min(effort.rounds, MOST_ROUNDS), budget_s=min(effort.budget_s, BUDGET_S))
    for dim in DIMS[effort.scale]:
        yield from _one_layer(spectra[LAYERS[dim]], effort)
    yield from _all_layers({name: s for name, s in spectra.items() if not quick or s.dim < 256}, effort)


def _one_layer(spectrum: Spectrum, effort: Effort) -> Iterator[Record]:
    dim, C = spectrum.dim, spectrum.matrix()
    very_slow = dim >= VERY_SLOW_DIM
    routes: Sequence[Route] = ("auto",) if very_slow and effort.scale != "long" else ("auto", "polynomial", "eigh")
    ours, peers, checks = dict[str, Function](), dict[str, Function](), dict[str, _Check]()
    beside, cases, unavailable = dict[str, list[str]](), dict[str, tuple[str, str]](), dict[str, dict[str, str]]()
    for name, dense in {SVD: _dense_by_svd, EIGH: _dense_by_eigh}.items():
        peers[name] = _applied(dense, C, TAUS[0])
        checks[name] = _Check(spectrum, TAUS[0], DENSE_TOLERANCE)
    for tau, tol in product(TAUS, TOLERANCES):
        case = f"τ={tau:g} tol={tol:g}"
        low_rank, missing = _low_rank_peers(C, spectrum, tau, tol)
        low_rank = {f"{name} {case}": function for name, function in low_rank.items()}
        peers |= low_rank
        checks |= dict.fromkeys(low_rank, _Check(spectrum, tau, MISS * tol))
        for route in routes:
            if route != "auto" and tol != TOLERANCES[0]:
                continue
            if route == "eigh" and tau != TAUS[0]:
                continue  # exact, and the same work for all
            name = f"projector {route} {case}"
            ours[name] = _ours({"layer": C}, tau, route, tol)
            checks[name] = _Check(spectrum, tau, tol)
            beside[name] = [SVD, EIGH, *(low_rank if route == "auto" else ())]
            cases[name] = (f"projector {route}", case)
            unavailable[name] = missing if route == "auto" else {}
    slow = [name for name in (*ours, *peers) if name not in (SVD, EIGH) and not name.startswith("projector auto")]
    if very_slow:
        slow += [SVD, EIGH]
    records = compare(
        f"d={dim}",
        ours=ours,
        peers=peers,
        agree=lambda results: {name: checks[name](name, result) for name, result in results.items()},
        effort=effort,
        beside=beside,
        rest_s=REST_S,
        few=dict.fromkeys(slow, SLOW_ROUNDS) if dim >= SLOW_DIM else {},
        headlines=[name for name in ours if cases[name][0] == "projector auto" and dim in HEADLINE_DIMS],
    )
    for record in records:
        name, case = cases[record["name"]]
        missing = unavailable[record["name"]]
        plain = _without_suffix(record, f" {case}")
        yield Record(**{**plain, "name": name, "case": f"d={dim} {case}", "unavailable": missing})


def _all_layers(spectra: Mapping[str, Spectrum], effort: Effort) -> Iterator[Record]:
    """All matrices of the network in one call, against layer by layer."""
    matrices = {name: spectrum.matrix() for name, spectrum in spectra.items()}
    cases = {f"τ={tau:g} tol={TOLERANCES[0]:g}": (tau, TOLERANCES[0]) for tau in TAUS}

    def dense(way: Callable[[Tensor, float], Tensor]) -> Function:
        return lambda: {name: way(C, TAUS[0]) for name, C in matrices.items()}

    def agree(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Facts]:
        facts: dict[str, Facts] = {}
        for name, result in results.items():
            tau, tol = cases.get(name, (TAUS[0], DENSE_TOLERANCE))
            of_layers = [_Check(spectra[layer], tau, tol)(f"{name}, {layer}", result[layer]) for layer in spectra]
            facts[name] = {key: _together(key, [each[key] for each in of_layers]) for key in of_layers[0]}
        return facts

    records = compare(
        f"all {len(spectra)} layers",
        ours={case: _ours(matrices, tau, "auto", tol) for case, (tau, tol) in cases.items()},
        peers={SVD: dense(_dense_by_svd), EIGH: dense(_dense_by_eigh)},
        agree=agree,
        effort=effort,
        few=ALL_ROUNDS,
    )
    for record in records:
        case = f"{record['case']} {record['name']}"
        yield Record(**{**record, "name": "projector auto", "case": case})


def _together(key: str, values: Sequence[float | str]) -> float | str:
    """One fact of all layers: the largest of errors and bounds, the sum of ranks, routes with their counts."""
    numbers = [value for value in values if not isinstance(value, str)]
    if numbers:
        return sum(numbers) if key == "rank" else max(numbers)
    return ", ".join(f"{values.count(route)} {route}" for route in dict.fromkeys(values))


def _ours(matrices: Mapping[str, Tensor], tau: float, route: Route, tol: float) -> Function:
    if len(matrices) == 1:
        ((name, _),) = matrices.items()
        return lambda: flat_projectors(matrices, tau=tau, method=route, tol=tol)[name]
    return lambda: flat_projectors(matrices, tau=tau, method=route, tol=tol)


# ---- peers -----------------------------------------------------------------------------------------------------------


def _applied(way: Callable[[Tensor, float], Tensor], C: Tensor, tau: float) -> Function:
    return lambda: way(C, tau)


def _dense_by_svd(C: Tensor, tau: float) -> Tensor:
    U, S, _ = torch.svd(C)
    T: Tensor = (U * torch.exp(-tau * (S - S[-1]) / (S[0] - S[-1]))) @ U.T
    return T


def _dense_by_eigh(C: Tensor, tau: float) -> Tensor:
    L, U = torch.linalg.eigh(C)
    T: Tensor = (U * torch.exp(-tau * (L - L[0]) / (L[-1] - L[0]))) @ U.T
    return T


def _low_rank_peers(
    C: Tensor, spectrum: Spectrum, tau: float, tol: float
) -> tuple[dict[str, Function], dict[str, str]]:
    """Return the peers that can reach tol here, and why others cannot."""
    rank, exponents = spectrum.rank(tau, TAIL_SHARE * tol), spectrum.exponents(tau)
    complement = float(0.5 * (1 + torch.exp(-exponents[min(rank, spectrum.dim - 1)])))
    array, start = C.numpy(), np.random.default_rng(0).standard_normal((spectrum.dim, rank)).astype(np.float32)
    accuracy = 0.1 * tol / tau  # of an eigenvalue, relative to the largest

    def result(eigenvalues: Tensor, vectors: Tensor) -> LowRank:
        # λmin is nearly 0 for activations, and not known here.
        return LowRank(vectors, torch.exp(-tau * eigenvalues / eigenvalues.max()), complement)

    def by_svd_lowrank() -> LowRank:
        U, S, _ = torch.svd_lowrank(C, q=rank + OVERSAMPLING)
        return result(S, U)

    def by_eigsh() -> LowRank:
        eigenvalues, vectors = eigsh(array, k=rank, which="LA", tol=accuracy, v0=start[:, 0])
        return result(torch.from_numpy(eigenvalues), torch.from_numpy(vectors))

    def by_lobpcg() -> LowRank:
        scale = float(spectrum.eigenvalues[0])
        with warnings.catch_warnings():  # of accuracy: what it reached is looked at here
            warnings.simplefilter("ignore", UserWarning)
            eigenvalues, vectors = lobpcg(array, start, tol=2 * accuracy * scale, maxiter=LOBPCG_STEPS)
        return result(torch.from_numpy(eigenvalues), torch.from_numpy(vectors))

    peers: dict[str, Function] = {}
    missing: dict[str, str] = {}
    for name, function, most in (
        ("torch.svd_lowrank", by_svd_lowrank, spectrum.dim // 2 - OVERSAMPLING),
        ("eigsh", by_eigsh, spectrum.dim // 2),
        ("lobpcg", by_lobpcg, spectrum.dim // 5),  # beyond it solves the dense problem instead
    ):
        if rank > most:
            missing[name] = f"would need {rank} of {spectrum.dim} directions"
        elif (error := _operator_norm_error(spectrum, tau, function().times)) > MISS * tol:
            missing[name] = f"reaches {error:.1e} instead of {tol:g}"
        else:
            peers[name] = function
    return peers, missing


# ---- agreement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """Measures a result's error in operator norm; ours must be within its bound and that within the limit."""

    spectrum: Spectrum
    tau: float
    limit: float

    def __call__(self, name: str, result: Any) -> Facts:
        """Return facts about one function's result, or raise DisagreementError."""
        if isinstance(result, Projector):
            times = _float64(result)
        elif isinstance(result, LowRank):
            times = result.times
        else:
            T = result.double()
            times = T.matmul
        error = _operator_norm_error(self.spectrum, self.tau, times)
        if isinstance(result, Projector):
            require(name, error, result.error_bound, "error in operator norm")
            require(name, result.error_bound, self.limit, "certified bound")
            bound = {"error_bound": result.error_bound}
            return {"error": error, **bound, "rank": result.rank, "route": result.route}
        require(name, error, self.limit, "error in operator norm")
        return {"error": error, "rank": result.U.shape[1]} if isinstance(result, LowRank) else {"error": error}


def _operator_norm_error(spectrum: Spectrum, tau: float, times: Callable[[Tensor], Tensor]) -> float:
    """‖T̂ − T‖₂ by Lanczos, to about 1 % and never above it."""

    def difference(x: Array) -> Array:
        x = x.reshape(-1)
        result: Array = times(torch.from_numpy(x)).numpy() - spectrum.projector_times(tau, x)
        return result

    operator = LinearOperator((spectrum.dim, spectrum.dim), matvec=difference, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(spectrum.dim)
    if not np.any(difference(start)):
        return 0.0
    largest = eigsh(operator, k=1, which="LM", v0=start, tol=1e-2, return_eigenvectors=False)
    return float(abs(largest[0]))


def _float64(projector: Projector) -> Callable[[Tensor], Tensor]:
    """T x of a projector's own tensors, without their rounding in the product."""
    wide = projector.to(dtype=torch.float64)
    return lambda x: wide.apply(x[None])[0]


def _without_suffix(record: Record, suffix: str) -> Record:
    """The record with its functions' names as readers know them, without the case that told them apart."""
    keyed = ("peers", "references", "quartiles_ms", "ratios", "rounds", "calls_per_sample", "facts")
    values: dict[str, Any] = dict(record)
    renamed = {key: {name.removesuffix(suffix): value for name, value in values[key].items()} for key in keyed}
    return Record(**{**values, **renamed})
