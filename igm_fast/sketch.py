"""A covariance that nobody formed: Y = C[Ω G], from which a low-rank Ĉ ⪯ C and a bound on ‖C − Ĉ‖ are read off."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from scipy.special import gammaincinv
from torch import Tensor

RANK = 64
# With Ω's 64 columns they fill whole vectors of the kernel. 16 make the bound on ‖C − Ĉ‖ 1.6 times tighter than 10.
PROBES = 16
# Up to this d a matrix is exact and costs about as much as a sketch: 2d² flops an input against 4d·80, 256 kB at most.
SMALL = 256
# Of the bounds that need random probes: the chance, over their drawing, that one of them is violated.
FAILURE_PROBABILITY = 1e-5
# Columns of Ω that are zero at the same taps of a kernel: those that the operators look at together.
BLOCK = 8


def draw_test_matrix(
    name: str,
    groups: int,
    channels: int,
    taps: int,
    *,
    rank: int = RANK,
    probes: int = PROBES,
    seed: int = 0,
    start: Tensor | None = None,
) -> Tensor:
    """Return ``[groups, d, rank + probes]`` float32: Ω with orthonormal columns, then dense Gaussian probes G.

    Rows are ordered (channel, tap), d = channels·taps. The taps are dealt out to the blocks of 8 columns in turn, and a
    block is Gaussian at its taps and zero at the others: uᵀΩ then costs an eighth, and because activations that are
    neighbours in space resemble each other, Ĉ is as good as from a dense Ω (docs/sketch.md).

    A function of its arguments alone: equal on every process and after a restart.

    Args:
        name: of the layer; other layers get other columns.
        groups: number of matrices.
        channels: per group.
        taps: entries of the kernel; 1 for a linear layer, whose Ω is dense.
        rank: columns of Ω.
        probes: columns of G.
        seed: other seeds give other columns.
        start: ``[groups, d, r]`` with orthonormal columns; the first ones, at most rank, become the first columns of Ω.
            They enter the seed, so that probes are new in every pass: a bound on ‖C − Ĉ‖ holds for probes drawn
            independently of C − Ĉ, and this depends on `start`, hence perhaps on the probes of the pass before.
    """
    salt = b"" if start is None else start.float().contiguous().cpu().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(salt, zlib.crc32(name.encode())) + (seed << 32))
    gaussian = torch.randn(groups, channels * taps, rank + probes, generator=generator, dtype=torch.float64)
    omega = _orthonormal_blocks(gaussian[:, :, :rank].unflatten(1, (channels, taps)))
    if start is not None:
        given = start[:, :, :rank].double().cpu()
        omega, _ = torch.linalg.qr(torch.cat([given, omega[:, :, : rank - given.shape[2]]], dim=2))
    return torch.cat([omega, gaussian[:, :, rank:]], dim=2).float()


def _orthonormal_blocks(gaussian: Tensor) -> Tensor:
    """Ω ``[groups, d, rank]`` from ``[groups, channels, taps, rank]``; dense if blocks would have too few rows."""
    _, channels, taps, rank = gaussian.shape
    blocks = max(rank // BLOCK, 1)
    columns: dict[tuple[int, ...], list[int]] = {}  # blocks with the same taps are made orthogonal together
    for block in range(blocks):
        mine = tuple(range(block, taps, blocks)) or (block % taps,)
        columns.setdefault(mine, []).extend(range(block * BLOCK, (block + 1) * BLOCK))
    if rank % BLOCK or any(channels * len(mine) < len(part) for mine, part in columns.items()):
        columns = {tuple(range(taps)): list(range(rank))}
    omega = torch.zeros_like(gaussian)
    for mine, part in columns.items():
        basis, _ = torch.linalg.qr(gaussian[:, :, list(mine)][..., part].flatten(1, 2))
        omega[:, :, torch.tensor(mine)[:, None], part] = basis.unflatten(1, (channels, len(mine)))
    return omega.flatten(1, 2)


def norm_bound(images: Tensor, failure_probability: float = FAILURE_PROBABILITY) -> Tensor:
    """Return a bound on ‖E‖₂ from E G, ``[groups, d, q]``, for Gaussian G drawn without knowledge of the symmetric E.

    With v the leading eigenvector, σmax(EG) ≥ ‖vᵀEG‖ = ‖E‖·‖vᵀG‖, and ‖vᵀG‖² is χ² with q degrees of freedom. So
    ‖E‖ ≤ σmax(EG)/√χ²_q(δ), except with probability δ. Shape ``[groups]``.
    """
    quantile = 2.0 * gammaincinv(images.shape[2] / 2, failure_probability)  # of χ² with q degrees of freedom
    largest: Tensor = torch.linalg.matrix_norm(images, ord=2)
    return largest / math.sqrt(quantile)


@dataclass(frozen=True)
class Sketch:
    """What a pass over the data left of C, the second moment of d-dimensional activations.

    Attributes:
        omega: ``[groups, d, k + q]``: Ω (orthonormal columns), then Gaussian probes G.
        image: ``[groups, d, k + q]``: C times omega.
        trace: ``[groups]``: tr C.
        probes: q.
    """

    omega: Tensor
    image: Tensor
    trace: Tensor
    probes: int

    @property
    def dim(self) -> int:
        """Length d of an activation."""
        return self.omega.shape[1]

    @property
    def groups(self) -> int:
        """Number of matrices."""
        return self.omega.shape[0]

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues ``[groups, k]``, descending, and eigenvectors ``[groups, d, k]`` of Ĉ, in float64.

        Ĉ = Y(ΩᵀY)⁺Yᵀ ⪯ C (Nyström), in the shifted form of Tropp, Yurtsever, Udell, Cevher (*Fixed-rank approximation
        of a positive-semidefinite matrix from streaming data*, 2017): Y + νΩ is used and ν taken off the eigenvalues,
        so that rounding in Y cannot make ΩᵀY indefinite.
        """
        rank = self.omega.shape[2] - self.probes
        omega, image = self.omega[:, :, :rank].double(), self.image[:, :, :rank].double()
        shift = math.sqrt(self.dim) * torch.finfo(self.image.dtype).eps * torch.linalg.matrix_norm(image, ord=2)
        shift = shift.clamp(min=1e-300)[:, None, None]  # C = 0
        failed = torch.ones(())
        while failed.any():  # centring may leave more rounding than the shift expects
            shifted = image + shift * omega
            core = omega.mT @ shifted
            lower, failed = torch.linalg.cholesky_ex((core + core.mT) / 2)
            shift = shift * 10 ** (failed > 0).double()[:, None, None]
        factor = torch.linalg.solve_triangular(lower, shifted.mT, upper=False).mT  # Y L⁻ᵀ: Ĉ + νI on its range
        vectors, singular, _ = torch.linalg.svd(factor, full_matrices=False)  # d×k, not d×d
        return (singular.square() - shift[:, :, 0]).clamp(min=0.0), vectors

    def error(self, eigenvalues: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds ``[groups]`` on ‖C − Ĉ‖₂: one that is certain, and one that fails with FAILURE_PROBABILITY.

        C − Ĉ ⪰ 0, so that its trace is one; the probes, which Ĉ has not seen, give the other.
        """
        certain = (self.trace.double() - eigenvalues.sum(dim=1)).clamp(min=0.0)
        if self.probes == 0:
            return certain, certain
        probes = self.omega[:, :, -self.probes :].double()
        left = self.image[:, :, -self.probes :].double()
        left = left - vectors @ (eigenvalues[:, :, None] * (vectors.mT @ probes))
        return certain, norm_bound(left)

    def dense(self) -> Tensor:
        """Return Ĉ ``[groups, d, d]`` in the dtype of the image."""
        eigenvalues, vectors = self.eigh()
        return ((vectors * eigenvalues[:, None, :]) @ vectors.mT).to(self.image.dtype)
