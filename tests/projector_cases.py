"""Matrices, panels and what must hold of the projector's operators on any device: for emulated and for GPU tests."""

from __future__ import annotations

import numpy as np
import torch
from bounds import UNIT, assert_within, gamma

DTYPES = [torch.float32, torch.float64]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def symmetric(eigenvalues, seed: int = 0) -> torch.Tensor:
    """[d, d] float64."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    Q = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    C = (Q * values) @ Q.mT
    return (C + C.mT) / 2


def bits(*tensors: torch.Tensor) -> bytes:
    return b"".join(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)


def assert_facts(matrices: torch.Tensor, facts: torch.Tensor) -> None:
    for C, (non_finite, *others) in zip(matrices.double().numpy(), facts.tolist(), strict=True):
        assert non_finite == np.sum(~np.isfinite(C))
        if non_finite:
            assert np.isnan(others).all()
            continue
        diagonal = np.diagonal(C)
        expected = np.array([np.linalg.norm(C - C.T), np.linalg.norm(C), diagonal.sum(), diagonal.min()])
        # All squares are positive: half of a sum's relative error, and a rounding each for difference and root; twice.
        relative = gamma(C.size + 6, torch.float64)
        assert_within(
            np.array(others), expected, relative * np.array([expected[0], expected[1], np.abs(diagonal).sum(), 0])
        )


def orthonormal(dim: int, columns: int, seed: int, dtype: torch.dtype, count: int = 1) -> torch.Tensor:
    return torch.linalg.qr(randn(count, dim, columns, seed=seed))[0].to(dtype).contiguous()


def assert_directions(basis: torch.Tensor, block: torch.Tensor, Q: torch.Tensor) -> None:
    """QᵀQ = I and VᵀQ = 0 to rounding, and the columns of the block are in the span of V and Q."""
    basis, block = basis.cpu(), block.cpu()
    Q = Q.cpu()
    _, dim, columns = Q.shape
    both = torch.cat([basis, Q], dim=2).double()
    # Q was multiplied in float64 and rounded once: √k·u a column, k of them; a product VᵀQ of depth d in the dtype, its
    # roundings independent, and what they leave is taken once. Twice that, as the basis is rounded too.
    tolerance = 2 * (2 * columns + 4 * dim**0.5) * UNIT[Q.dtype]
    gram = both.mT @ both - torch.eye(both.shape[2], dtype=torch.float64)
    assert gram[:, :, basis.shape[2] :].abs().max() <= tolerance
    wanted = block.double()
    lengths = torch.linalg.vector_norm(wanted, dim=1, keepdim=True)
    wanted = torch.where(lengths > 0, wanted / lengths, 0.0)
    lost = wanted - both @ (both.mT @ wanted)
    # What is new of a column may be as little as it takes to count as new, and is known to so many digits.
    assert torch.linalg.vector_norm(lost, dim=1).max() <= 16 * (4 + 2 * dim**0.5) * UNIT[Q.dtype]


def spectra(size: int) -> dict[str, np.ndarray]:
    return {
        "decay": np.logspace(0, -12, size),
        "flat": np.ones(size),
        "clusters": np.repeat([3.0, 1.0, 1e-3], size)[::3][:size],
        "both signs": np.linspace(-1, 1, size),
        "rank 1": np.eye(1, size)[0],
        "zero": np.zeros(size),
    }


def assert_pairs(A: torch.Tensor, eigenvalues: torch.Tensor, vectors: torch.Tensor) -> None:
    """A [m, m] float64. Vectors are those of A + 2‖A‖_F I; a sweep rotates each column m times, roundings add up as √m.

    Eigenvalues, and torch's too, are as good as a product of depth m.
    """
    size = len(A)
    scale = float(torch.linalg.norm(A))
    tolerance = 30 * size**0.5 * UNIT[torch.float64]
    assert torch.all(eigenvalues.diff() <= 0)
    exact = torch.linalg.eigvalsh(A).flip(0)
    assert (eigenvalues - exact).abs().max() <= 4 * gamma(size + 4, torch.float64) * float(exact.abs().max())
    assert (vectors.mT @ vectors - torch.eye(size)).abs().max() <= tolerance
    assert torch.linalg.norm(A @ vectors - vectors * eigenvalues, dim=0).max() <= 3 * tolerance * scale
