"""Float64 numpy oracles, written from the equations, with loops where loops are clearest. No code of igm_fast."""

from __future__ import annotations

import itertools
import math

import numpy as np

# ---- update: SAM and projected steps ---------------------------------------------------------------------------------


def sam_perturb(
    weights: list[np.ndarray], grads: list[np.ndarray], rho: float, *, scope: str, adaptive: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """w + ε with ε = ρ g/‖g‖ (adaptive: ρ w² g/‖|w| g‖), and the norm(s); norm 0: ε = 0; not finite: w."""
    terms = [np.abs(w) * g if adaptive else g for w, g in zip(weights, grads, strict=True)]
    squares = np.array([np.sum(term * term) for term in terms])
    norms = np.sqrt(squares) if scope == "tensor" else np.sqrt(np.sum(squares, keepdims=True))
    result = []
    for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
        norm = norms[i if scope == "tensor" else 0]
        moved = np.isfinite(norm) and norm > 0
        direction = w * w * g if adaptive else g
        result.append(w + rho * direction / norm if moved else w)
    return result, norms


def project_gradient(grad: np.ndarray, basis: np.ndarray, sigma: np.ndarray, complement: float) -> np.ndarray:
    """G T with the dense T = cI + U(Σ − cI)Uᵀ; grad [groups, rows, d], basis [groups, d, k], sigma [groups, k]."""
    result = np.empty_like(grad)
    for group in range(grad.shape[0]):
        U = basis[group]
        T = complement * np.eye(U.shape[0]) + U @ np.diag(sigma[group] - complement) @ U.T
        result[group] = grad[group] @ T
    return result


def sgd_step(
    weight: np.ndarray,
    grad: np.ndarray,
    buffer: np.ndarray | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of SGD as the documentation of torch.optim.SGD writes it; buffer None = first step."""
    g = -grad if maximize else grad
    g = g + weight_decay * weight
    if momentum == 0.0:
        return weight - lr * g, g
    buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
    g = g + momentum * buffer if nesterov else buffer
    return weight - lr * g, buffer


def adamw_step(
    weight: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of AdamW (decoupled=False: Adam) as the documentation of torch.optim writes it."""
    g = -grad if maximize else grad
    if decoupled:
        weight = weight - lr * weight_decay * weight
    else:
        g = g + weight_decay * weight
    exp_avg = beta1 * exp_avg + (1 - beta1) * g
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
    corrected, corrected_sq = exp_avg / (1 - beta1**step), exp_avg_sq / (1 - beta2**step)
    return weight - lr * corrected / (np.sqrt(corrected_sq) + eps), exp_avg, exp_avg_sq


# ---- methods ---------------------------------------------------------------------------------------------------------


def second_moment(activations: np.ndarray) -> np.ndarray:
    """C = (1/n) Σ u uᵀ for activations [n, d]."""
    return activations.T @ activations / len(activations)


def mla_projector(means: list[np.ndarray], alpha: float, dim: int) -> np.ndarray:
    """P = (I + Σ h̄ h̄ᵀ/α)⁻¹, which the recursive update of MLA equals by Sherman–Morrison for constant α."""
    return np.linalg.inv(np.eye(dim) + sum((np.outer(h, h) for h in means), np.zeros((dim, dim))) / alpha)


def igm_projector(second_moment: np.ndarray, tau: float) -> np.ndarray:
    """T = U exp(−τ(Λ − λmin)/(λmax − λmin)) Uᵀ."""
    eigenvalues, U = np.linalg.eigh(second_moment)
    return (U * np.exp(-tau * (eigenvalues - eigenvalues[0]) / (eigenvalues[-1] - eigenvalues[0]))) @ U.T


# ---- metrics ---------------------------------------------------------------------------------------------------------


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """AP = Σ_n (R_n − R_{n−1}) P_n over the distinct thresholds, highest first."""
    total, previous = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        recall = (chosen & positive).sum() / positive.sum()
        total += (recall - previous) * (chosen & positive).sum() / chosen.sum()
        previous = recall
    return float(total)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur (as label or prediction) of 2TP/(2TP + FP + FN)."""
    values = []
    for k in np.union1d(predicted, labels):
        hits = np.sum((predicted == k) & (labels == k))
        values.append(2 * hits / (np.sum(predicted == k) + np.sum(labels == k)))
    return float(np.mean(values))


# ---- covariance ------------------------------------------------------------------------------------------------------


def conv_patches(
    x: np.ndarray, kernel_size: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int
) -> np.ndarray:
    """What each output position of a convolution sees: [positions, groups, d] from x [N, C, (D,) H, W]."""
    axes = range(len(kernel_size))
    around = [(padding[i], padding[i + 1]) for i in range(0, len(padding), 2)][::-1]  # given for the last axis first
    padded = np.pad(x, [(0, 0), (0, 0), *around])
    span = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in axes]
    starts = [range(0, padded.shape[2 + axis] - span[axis] + 1, stride[axis]) for axis in axes]
    patches = []
    for sample in padded:
        for start in itertools.product(*starts):
            window = [slice(start[axis], start[axis] + span[axis], dilation[axis]) for axis in axes]
            patches.append(sample[(slice(None), *window)].reshape(groups, -1))
    return np.array(patches).reshape(len(patches), groups, x.shape[1] // groups * math.prod(kernel_size))


def conv_covariance(
    x: np.ndarray, kernel_size: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int
) -> np.ndarray:
    """Σ u uᵀ over the patches of each group: [groups, d, d]."""
    patches = conv_patches(x, kernel_size, stride, padding, dilation, groups)
    total = np.zeros((groups, patches.shape[2], patches.shape[2]))
    for patch in patches:
        for group, u in enumerate(patch):
            total[group] += np.outer(u, u)
    return total


def linear_covariance(x: np.ndarray) -> np.ndarray:
    """Σ u uᵀ over the rows of x [..., d]: [d, d]."""
    total = np.zeros((x.shape[-1], x.shape[-1]))
    for index in np.ndindex(x.shape[:-1]):
        total += np.outer(x[index], x[index])
    return total


# ---- spectral functions ----------------------------------------------------------------------------------------------


def ridge_complement(matrix: np.ndarray, alpha: float) -> np.ndarray:
    """(I + C/α)⁻¹, the projector of OWM and MLA."""
    return np.linalg.inv(np.eye(len(matrix)) + matrix / alpha)


def energy_threshold(matrix: np.ndarray, share: float) -> np.ndarray:
    """I − Σ v vᵀ over the leading eigenvectors, until they hold the share of the trace (GPM)."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    # What is below zero, or above it by rounding, holds nothing.
    eigenvalues = np.where(eigenvalues > 1e-13 * abs(eigenvalues).max(), eigenvalues, 0.0)
    total, held = eigenvalues.sum(), 0.0
    T = np.eye(len(matrix))
    for value, v in zip(eigenvalues[::-1], vectors.T[::-1], strict=True):
        if held >= share * total:
            break
        T -= np.outer(v, v)
        held += value
    return T
