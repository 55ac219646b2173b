"""The exact route: all eigenvectors, in float64. 9 d³ flops and four d×d matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from igm_fast.projector.base import Projector, dense, rounding


def eigh(C: Tensor, tau: float) -> Projector:
    """Return T of C ``[groups, d, d]``, dense, to rounding."""
    dim = C.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(C.double())
    smallest, largest = eigenvalues[:, :1], eigenvalues[:, -1:]
    # A spread that rounding in C can make by itself says nothing about directions: T = I there.
    noise = dim * torch.finfo(C.dtype).eps * eigenvalues.abs().amax(dim=1, keepdim=True)
    spread = torch.where(largest - smallest > noise, largest - smallest, torch.inf)
    sigma = torch.exp(-tau * (eigenvalues - smallest) / spread)
    T = ((vectors * sigma[:, None, :]) @ vectors.mT).to(C.dtype)
    # LAPACK: vectors orthonormal, and exact for a matrix within ‖C‖, both to about d roundings; then T is stored.
    bound = (2 + tau) * dim * torch.finfo(torch.float64).eps + rounding(dim, C.dtype)
    return dense("eigh", tau, eigenvalues.flip(1), sigma.flip(1), 1.0, bound, T)
