"""One projector for several sources: exp of the mean of their exponents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from igm_fast.projector.base import Projector
from igm_fast.projector.flat import HasStatistics, Route, spectral_projectors
from igm_fast.projector.functions import Exponential
from igm_fast.sketch import Sketch


def mean_flat_projectors(
    sources: Sequence[HasStatistics], tau: float = 0.4, method: Route = "auto", tol: float = 5e-3
) -> dict[str, Projector]:
    """Return T = exp(−τ mean_j (C_j − λmin_j I)/(λmax_j − λmin_j)) for each layer, over the sources that have it.

    One source gives :func:`flat_projectors`'s T. A source with λmax = λmin has the exponent 0. The ends of each
    spectrum are eigenvalues of C_j in its own dtype, O(d³) each.

    Args:
        sources: statistics of several networks whose layers of one name have one d.
        tau: τ > 0.
        method: as for :func:`spectral_projectors`.
        tol: as there; the rounding of the exponents is not in the bound.

    Raises:
        ValueError: a layer of which there is a sketch only.
    """
    exponents: dict[str, list[Tensor]] = {}
    for source in sources:
        for name, C in source.statistics().items():
            if isinstance(C, Sketch):
                raise ValueError(
                    f"projectors: layer {name!r} has a sketch, expected a matrix: exponents of several sources can "
                    "only be added as matrices. Measure with ActivationCovariance(…, estimator='full')"
                )
            exponents.setdefault(name, []).append(_exponent(C))
    means = {name: torch.stack(parts).mean(dim=0) for name, parts in exponents.items()}
    return spectral_projectors(means, Exponential(tau), method, tol)


def _exponent(C: Tensor) -> Tensor:
    """(C − λmin I)/(λmax − λmin) of ``[groups, d, d]``; 0 where the two are equal up to rounding."""
    eigenvalues = torch.linalg.eigvalsh(C)
    smallest, largest = eigenvalues[:, :1, None], eigenvalues[:, -1:, None]
    apart = largest - smallest > C.shape[1] * torch.finfo(C.dtype).eps * largest.abs()
    identity = torch.eye(C.shape[1], dtype=C.dtype, device=C.device)
    return torch.where(apart, (C - smallest * identity) / torch.where(apart, largest - smallest, 1.0), 0.0)
