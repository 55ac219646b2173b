"""The projector that every route returns: low-rank or dense, with the error it is certified to have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from igm_fast.projector.functions import FlatExponential, SpectralFunction, function_from_state, function_state


@dataclass(frozen=True, eq=False)
class Projector:
    """T = cI + U(Σ − cI)Uᵀ (``basis`` is there), or T itself (``dense_matrix`` is there); symmetric.

    It approximates f(C) for a spectral function f, such as exp(−τ(C − λmin I)/(λmax − λmin)): 1 on the flattest
    direction of C, less on sharper ones. With ``groups`` > 1 every tensor has them as its leading dimension, and each
    group its own C.

    Attributes:
        dim: d, the length of an input side.
        groups: number of input sides.
        function: f.
        route: how T was made: ``"eigh"``, ``"polynomial"``, ``"truncated"`` or ``"sketch"``.
        eigenvalues: ``[k]`` float64: the known eigenvalues of C, descending.
        sigma: ``[k]`` float64: those of T on the same vectors.
        complement: c; where T is dense, the mean of its eigenvalues that are not in ``sigma``.
        error_bound: certified bound on the operator norm of the error of T.
        failure_probability: chance that the bound is violated, over the drawing of random probes; 0: none were used.
        basis: U ``[d, k]``, orthonormal columns.
        dense_matrix: T ``[d, d]``.
        weight_shape: of the layer that was observed, if it is known.
    """

    dim: int
    groups: int
    function: SpectralFunction
    route: str
    eigenvalues: Tensor
    sigma: Tensor
    complement: float
    error_bound: float
    failure_probability: float = 0.0
    basis: Tensor | None = None
    dense_matrix: Tensor | None = None
    weight_shape: tuple[int, ...] | None = None

    @property
    def tau(self) -> float:
        """Return τ of a flat projector.

        Raises:
            AttributeError: f is another function.
        """
        if not isinstance(self.function, FlatExponential):
            raise AttributeError(f"Projector.tau: this is a projector of {self.function}, which has no tau")
        return self.function.tau

    @property
    def rank(self) -> int:
        """Number of directions that are treated one by one; d where T is dense."""
        return self.dim if self.basis is None else self.basis.shape[-1]

    @property
    def spectrum(self) -> Tensor:
        """Known eigenvalues of T, ascending as those of C descend, ``[k]`` float64."""
        return self.sigma

    def apply(self, grad: Tensor) -> Tensor:
        """Return ``grad @ T`` on the input side of a weight, without forming T where there is a basis. Differentiable.

        Args:
            grad: ``[out, d]``, or a convolution's ``[out, C/groups, *kernel]``; any floating dtype, kept.

        Raises:
            ValueError: the shape does not fit.
        """
        if grad.dim() == 0 or grad.shape[0] % self.groups or grad.numel() != grad.shape[0] * self.dim:
            raise ValueError(
                f"Projector.apply: grad has shape {tuple(grad.shape)}, expected [out, …] with {self.dim} entries per "
                f"output and outputs in {self.groups} group(s). Take the projector of this layer's own input"
            )
        rows = grad.reshape(self.groups, -1, self.dim)
        if self.basis is None:
            assert self.dense_matrix is not None
            product = rows @ self._grouped(self.dense_matrix).to(grad)
        else:
            basis, sigma = self._grouped(self.basis).to(grad), self._grouped(self.sigma).to(grad)
            product = self.complement * rows + (rows @ basis * (sigma - self.complement)[:, None, :]) @ basis.mT
        return product.reshape(grad.shape)

    def dense(self) -> Tensor:
        """Return T, ``[d, d]`` or ``[groups, d, d]``: O(d²) memory, for looking at it."""
        if self.dense_matrix is not None:
            return self.dense_matrix
        assert self.basis is not None
        sigma = (self.sigma - self.complement).to(self.basis)
        identity = torch.eye(self.dim, dtype=self.basis.dtype, device=self.basis.device)
        return self.complement * identity + (self.basis * sigma[..., None, :]) @ self.basis.mT

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Projector:
        """Return a copy whose large tensors are elsewhere or of another dtype; the eigenvalues stay float64."""
        return replace(
            self,
            eigenvalues=self.eigenvalues.to(device),
            sigma=self.sigma.to(device),
            basis=None if self.basis is None else self.basis.to(device, dtype),
            dense_matrix=None if self.dense_matrix is None else self.dense_matrix.to(device, dtype),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and strings from which :meth:`from_state_dict` makes the same projector."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return state | {"function": function_state(self.function)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Projector:
        """Return the projector of a :meth:`state_dict`.

        Raises:
            ValueError: keys are missing or unknown, or f is.
        """
        known = {field.name for field in fields(cls)}
        if set(state) != known:
            raise ValueError(f"Projector: state has keys {sorted(state)}, expected {sorted(known)} of a state_dict()")
        return cls(**{**state, "function": function_from_state(state["function"])})

    def _grouped(self, tensor: Tensor) -> Tensor:
        return tensor if self.groups > 1 else tensor[None]


def rounding(dim: int, dtype: torch.dtype) -> float:
    """Return what arithmetic in a dtype may cost T in operator norm: 4 eps √d.

    Storing T costs ‖ΔT‖ ≤ u‖|T|‖ ≤ u√d; sums of d products add about √d·u each (Higham and Mary 2019, probabilistic).
    """
    return 4 * math.sqrt(dim) * torch.finfo(dtype).eps


def low_rank(
    route: str,
    function: SpectralFunction,
    eigenvalues: Tensor,
    sigma: Tensor,
    complement: float,
    error_bound: float,
    basis: Tensor,
    failure_probability: float = 0.0,
) -> Projector:
    """Return cI + U(Σ − cI)Uᵀ from tensors with a leading dimension for groups, which goes when there is one.

    Small tensors may come from the CPU, where certificates are computed; all of the result is on the basis's device.
    """
    groups, dim, _ = basis.shape
    eigenvalues, sigma = eigenvalues.to(basis.device), sigma.to(basis.device)
    if groups == 1:
        eigenvalues, sigma, basis = eigenvalues[0], sigma[0], basis[0]
    return Projector(
        dim,
        groups,
        function,
        route,
        eigenvalues,
        sigma,
        complement,
        error_bound,
        failure_probability,
        basis.contiguous(),
    )


def dense(
    route: str,
    function: SpectralFunction,
    eigenvalues: Tensor,
    sigma: Tensor,
    complement: float,
    error_bound: float,
    matrix: Tensor,
) -> Projector:
    """The same for T itself, ``[groups, d, d]``."""
    groups, dim, _ = matrix.shape
    eigenvalues, sigma = eigenvalues.to(matrix.device), sigma.to(matrix.device)
    if groups == 1:
        eigenvalues, sigma, matrix = eigenvalues[0], sigma[0], matrix[0]
    return Projector(dim, groups, function, route, eigenvalues, sigma, complement, error_bound, dense_matrix=matrix)


def identity(route: str, function: SpectralFunction, matrix: Tensor) -> Projector:
    """Return T = I, exact: what every f makes of C = 0.

    Args:
        route: see :class:`Projector`.
        function: f.
        matrix: ``[groups, d, …]``, for sizes, dtype and device.
    """
    nothing = torch.zeros(matrix.shape[0], 0, dtype=torch.float64, device=matrix.device)
    return low_rank(route, function, nothing, nothing, 1.0, 0.0, matrix.new_zeros(*matrix.shape[:2], 0))
