"""The exact route: all eigenvectors. 9 d³ flops and four d×d matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from igm_fast.projector.base import Projector, dense, low_rank, rounding
from igm_fast.projector.certificate import Facts
from igm_fast.projector.functions import EnergyThreshold, SmoothFunction, SpectralFunction

# Up to this d always float64.
IN_FLOAT64 = 256


def eigh(layers: Sequence[Tensor], facts: Sequence[Facts], function: SpectralFunction, tol: float) -> list[Projector]:
    """Return f(C) of each C to rounding: that of float64, or of its own dtype if d is large and ``tol`` allows it.

    float64 takes about twice as long. Small matrices take milliseconds either way, and a last bit of C, which may
    depend on the number of processes, then moves T by no more than itself.

    LAPACK's eigenvectors are orthonormal, and with the eigenvalues exact for a matrix near C, both to about d roundings
    η: ‖T − T̂‖₂ ≤ (2 + L‖C‖₂) d η for a smooth f. For a threshold it is ‖E‖/(gap − ‖E‖) with ‖E‖ = d η ‖C‖₂
    (Davis–Kahan), and 1, all that can be said, where the gap or the share is closer to its end than ‖E‖ can move it.

    Args:
        layers: ``[groups, d, d]`` each, symmetric, all of one d and dtype: one call of LAPACK's front end for all.
        facts: of each.
        function: f.
        tol: see above.
    """
    made: dict[int, Projector] = {}
    dim, own = layers[0].shape[1], layers[0].dtype
    for dtype in dict.fromkeys((own, torch.float64)):
        open_layers = [i for i in range(len(layers)) if i not in made or made[i].error_bound > tol]
        if dtype != torch.float64:
            open_layers = [i for i in open_layers if dim > IN_FLOAT64 and _may_do(facts[i], dim, dtype, function, tol)]
            if not open_layers:
                continue
        if not open_layers:
            break
        stacked = torch.cat([layers[i].to(dtype) for i in open_layers])
        eigenvalues, vectors = _eigenpairs(stacked)
        sizes = [len(layers[i]) for i in open_layers]
        parts = zip(eigenvalues.flip(1).double().cpu().split(sizes), vectors.flip(2).split(sizes), strict=True)
        for i, (values, columns) in zip(open_layers, parts, strict=True):
            skew = facts[i].asymmetry / 2
            if isinstance(function, EnergyThreshold):
                made[i] = _threshold(values, columns, layers[i].dtype, skew, function)
            else:
                made[i] = _smooth(values, columns, layers[i].dtype, skew, function)
    return [made[i] for i in range(len(layers))]


def _eigenpairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh``, also where it gives up: MKL's does on some matrices with many rows of zeros.

    Such rows are dead channels, hence frequent. They are eigenvectors by themselves; what is left has none.
    """
    try:
        eigenvalues, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pairs = [_of_living(matrix) for matrix in matrices]
        eigenvalues = torch.stack([values for values, _ in pairs])
        vectors = torch.stack([columns for _, columns in pairs])
    return eigenvalues, vectors


def _of_living(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs by those of the rows that are not zero."""
    alive = matrix.any(dim=1).nonzero().flatten()
    dead = (~matrix.any(dim=1)).nonzero().flatten()
    some, columns = torch.linalg.eigh(matrix[alive][:, alive])
    values = torch.cat([some, some.new_zeros(len(dead))])
    vectors = torch.zeros_like(matrix)
    vectors[alive[:, None], torch.arange(len(alive), device=matrix.device)] = columns
    vectors[dead, torch.arange(len(alive), len(matrix), device=matrix.device)] = 1
    order = values.argsort()
    return values[order], vectors[:, order]


def _may_do(facts: Facts, dim: int, dtype: torch.dtype, function: SpectralFunction, tol: float) -> bool:
    """Whether a dtype's rounding may leave the bound within ``tol``, by what is known before anything is computed."""
    if isinstance(function, EnergyThreshold):
        return True
    least_norm = facts.norm / dim**0.5
    steepness = float((function.lipschitz(torch.zeros_like(least_norm), least_norm) * least_norm).amax())
    return (2 + steepness) * dim * torch.finfo(dtype).eps + rounding(dim, dtype) <= tol


def _smooth(
    eigenvalues: Tensor, vectors: Tensor, dtype: torch.dtype, skew: Tensor, function: SmoothFunction
) -> Projector:
    """T from eigenvalues, on the CPU, and vectors, in the dtype that they were computed in."""
    dim = vectors.shape[1]
    smallest, largest = eigenvalues[:, -1:], eigenvalues[:, :1]
    scale = dim * eigenvalues.abs().amax(dim=1, keepdim=True)
    # A spread that rounding in C can make by itself says nothing about directions: there λmax = λmin.
    apart = largest - smallest > scale * torch.finfo(dtype).eps
    sigma = function.values(eigenvalues, smallest, torch.where(apart, largest, smallest))
    lipschitz = torch.where(apart, function.lipschitz(smallest, torch.where(apart, largest, smallest + 1)), 0.0)
    # A negative eigenvalue is rounding in C; f is defined, and Lipschitz, from 0 on.
    perturbation = scale * torch.finfo(vectors.dtype).eps + skew + 2 * (-smallest).clamp(min=0.0)
    bound = float((lipschitz * perturbation).amax()) + 2 * dim * torch.finfo(vectors.dtype).eps
    T = ((vectors * sigma[:, None, :].to(vectors)) @ vectors.mT).to(dtype)
    return dense("eigh", function, eigenvalues, sigma, 1.0, bound + rounding(dim, dtype), (T + T.mT) / 2)


def _threshold(
    eigenvalues: Tensor, vectors: Tensor, dtype: torch.dtype, skew: Tensor, function: EnergyThreshold
) -> Projector:
    dim = vectors.shape[1]
    moved = dim * torch.finfo(vectors.dtype).eps * eigenvalues.abs().amax(dim=1) + skew[:, 0]
    held = eigenvalues.clamp(min=0.0).cumsum(dim=1)
    asked = function.share * held[:, -1]
    counts, bound = [], 0.0
    for values, sums, share, error in zip(eigenvalues, held, asked.tolist(), moved.tolist(), strict=True):
        # All of the trace is in the eigenvalues that are not rounding noise.
        missing = values > error if function.share == 1 else torch.cat([sums.new_zeros(1), sums[:-1]]) < share
        count = int(missing.sum())
        counts.append(count)
        if 0 < count < dim:
            gap = float(values[count - 1] - values[count])
            margin = min(float(sums[count - 1]) - share, share - float(sums[count - 1] - values[count - 1]))
            sure = gap > 2 * error and (function.share == 1 or margin > count * error)
            bound = max(bound, error / (gap - error) if sure else 1.0)
    kept = max(counts)
    # Groups that need fewer directions leave the others of the basis alone: σ = c = 1.
    sigma = (torch.arange(kept) >= torch.tensor(counts)[:, None]).double()
    bound = min(bound + rounding(dim, dtype) + 2 * dim * torch.finfo(vectors.dtype).eps, 1.0)
    return low_rank("eigh", function, eigenvalues[:, :kept], sigma, 1.0, bound, vectors[:, :, :kept].to(dtype))
