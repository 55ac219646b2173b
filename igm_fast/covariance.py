"""Activation covariances of a network's layers, gathered while its forward passes run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from igm_fast.layers import conv_geometry, conv_input, in_dimension, observable_layers, weight_shape
from igm_fast.names import nearest
from igm_fast.ops.patches import conv_patches  # also registers torch.ops.igm_fast
from igm_fast.sketch import PROBES, SMALL, Sketch, draw_test_matrix

Estimator = Literal["sketch", "full", "batch_mean"]

# The overloads themselves: finding them costs as much as what else happens in Python for a layer.
_igm = torch.ops.igm_fast
_LINEAR, _LINEAR_SKETCH = _igm.linear_covariance.default, _igm.linear_covariance_sketch.default
_CONV = {2: _igm.conv2d_covariance.default, 3: _igm.conv3d_covariance.default}
_CONV_SKETCH = {2: _igm.conv2d_covariance_sketch.default, 3: _igm.conv3d_covariance_sketch.default}


@dataclass
class _Sums:
    """Sums over the inputs u of one layer; all have a leading dimension for groups."""

    total: Tensor  # Σu [groups, d]
    trace: Tensor  # Σ|u|² [groups]
    matrix: Tensor | None  # Σuuᵀ [groups, d, d]
    image: Tensor  # ΣuuᵀΩ [groups, d, columns]
    omega: Tensor  # [groups, d, columns]; no columns where the matrix is kept
    count: float = 0.0
    batches: int = 0


class ActivationCovariance(Mapping[str, Tensor]):
    """Second moments C = (1/n) Σ u uᵀ of what enters each Linear and convolution of a module.

    u is the row of a linear layer's input, or a convolution's zero-padded patch, ordered (channel, row, column) as by
    ``torch.nn.functional.unfold``; n counts samples times output positions. With groups each has its own C, and shapes
    get a leading dimension for them. Sums are float32 (float64 for float64 layers), whatever the inputs are; a layer
    that is called several times in a forward pass counts every call.

    It observes and changes nothing: hooks are there inside of ``with`` only, also after an exception. Use it in
    evaluation mode and without augmentation, or dropout and batch norm are part of the statistics.

        with torch.no_grad(), ActivationCovariance(encoder) as covariance:
            for batch in loader: encoder(batch)
        covariance["conv2"]     # [d, d]; covariance.mean, .count, .trace likewise

    Estimators:

    - ``"sketch"``: Y = C[Ω G] with 64 orthonormal and 16 probe columns, never a d×d matrix; ``[name]`` forms its
      low-rank approximation Ĉ ⪯ C when asked. Layers with d ≤ 256 keep the exact matrix, which costs no more.
      A second pass over the data, or a pass over similar data, makes Ĉ more accurate if it starts where the first one
      ended: ``ActivationCovariance(encoder, start=covariance)``.
    - ``"full"``: the exact matrix, O(d²) memory per layer.
    - ``"batch_mean"``: the exact matrix of the batch's mean input, as the authors' code has it.

    Args:
        module: the network.
        estimator: see above.
        centered: subtract the mean: covariance instead of second moment.
        layers: names of the layers to observe; None: all that can be.
        seed: of Ω and G, which also depend on the layer's name.
        start: for ``"sketch"``: an earlier sketch of these layers, or orthonormal bases by name (``[d, r]``, or
            ``[groups, d, r]``; those of projectors, say). They become Ω, completed by new columns; probes are new.
            Layers without one start afresh. With a process group, the first process's Ω is everybody's.

    Raises:
        ValueError: an unknown estimator or layer, a layer without weights yet, no layer at all, a start that does not
            fit.
        TypeError: a layer that is no Linear, Conv1d, Conv2d or Conv3d.
    """

    def __init__(
        self,
        module: nn.Module,
        estimator: Estimator = "sketch",
        *,
        centered: bool = False,
        layers: Sequence[str] | None = None,
        seed: int = 0,
        start: ActivationCovariance | Mapping[str, Tensor] | None = None,
    ) -> None:
        if estimator not in get_args(Estimator):
            raise ValueError(f"ActivationCovariance: {nearest(estimator, get_args(Estimator), 'estimator')}")
        if start is not None and estimator != "sketch":
            raise ValueError(
                f"ActivationCovariance: start given with estimator {estimator!r}, expected 'sketch': an exact matrix "
                "has nothing to start from. Leave it out"
            )
        self.estimator = estimator
        self.centered = centered
        self._layers = _chosen(module, layers)
        bases = start._bases() if isinstance(start, ActivationCovariance) else start or {}
        self._sums = {
            name: self._empty_sums(name, layer, seed, bases.get(name)) for name, layer in self._layers.items()
        }
        if start is not None and _distributed():  # the same numbers may have other last bits on another machine
            for sums in self._sums.values():
                if sums.omega.numel():
                    torch.distributed.broadcast(sums.omega, src=0)
        self._handles: list[RemovableHandle] = []

    # ---- observing ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> ActivationCovariance:
        if self._handles:
            raise RuntimeError("ActivationCovariance is observing already; leave the `with` block before the next one")
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str) -> Any:
        def observe(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._add(self._sums[name], layer, (inputs[0] if inputs else keywords["input"]).detach())

        return observe

    def _empty_sums(self, name: str, layer: nn.Module, seed: int, start: Tensor | None) -> _Sums:
        groups, dim = in_dimension(layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=dtype, device=weight.device)

        if self.estimator != "sketch" or dim <= SMALL:
            return _Sums(zeros(dim), zeros(), zeros(dim, dim), zeros(dim, 0), zeros(dim, 0))
        taps = weight[0, 0].numel()
        basis = None if start is None else _start(name, start, groups, dim)
        omega = draw_test_matrix(name, groups, dim // taps, taps, seed=seed, start=basis)
        return _Sums(zeros(dim), zeros(), None, zeros(dim, omega.shape[2]), omega.to(weight.device, dtype))

    def _bases(self) -> dict[str, Tensor]:
        """Eigenvectors [groups, d, r] of each sketched layer's Ĉ, as far as it has any rank."""
        if self.estimator != "sketch":
            raise ValueError(
                f"ActivationCovariance: start has the estimator {self.estimator!r}, expected 'sketch'. Give "
                "orthonormal bases by name, or leave it out"
            )
        bases = {}
        for name, statistics in self.statistics().items():
            if isinstance(statistics, Sketch):
                eigenvalues, vectors = statistics.eigh()
                above_rounding = eigenvalues > torch.finfo(statistics.image.dtype).eps * eigenvalues[:, :1]
                bases[name] = vectors[:, :, : int(above_rounding.sum(dim=1).max())]
        return bases

    def _add(self, sums: _Sums, layer: nn.Module, x: Tensor) -> None:
        """Add one input. The sketch operator without columns gives mean and trace where the matrix is kept."""
        if isinstance(layer, nn.Linear):
            x = x if x.dim() > 1 else x[None]
            samples, x = x.shape[0], self._reduced(x)
            if sums.matrix is not None:
                _LINEAR(sums.matrix[0], x, mirror=False)
            _LINEAR_SKETCH(sums.image[0], sums.total[0], sums.trace[0], x, sums.omega[0])
            positions = x.numel() // max(x.shape[-1], 1)
        else:
            assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            x, geometry = conv_input(layer, x), conv_geometry(layer)
            samples, x = x.shape[0], self._reduced(x)
            axes = x.dim() - 2
            if sums.matrix is not None:
                _CONV[axes](sums.matrix, x, *geometry, mirror=False)
            _CONV_SKETCH[axes](sums.image, sums.total, sums.trace, x, sums.omega, *geometry)
            positions = conv_patches("ActivationCovariance", axes, x, *geometry).count
        if samples:
            sums.count += positions
            sums.batches += 1

    def _reduced(self, x: Tensor) -> Tensor:
        return x.mean(dim=0, keepdim=True) if self.estimator == "batch_mean" and x.shape[0] else x

    def all_reduce(self) -> None:
        """Add up the sums of all processes of the default group, O(d·80) numbers per layer of a sketch.

        Afterwards every process has the statistics of all data. Without an initialised process group nothing happens.
        """
        if not _distributed():
            return
        for sums in self._sums.values():
            numbers = torch.tensor([sums.count, sums.batches], dtype=torch.float64, device=sums.total.device)
            for tensor in (sums.total, sums.trace, sums.image, sums.matrix, numbers):
                if tensor is not None and tensor.numel():
                    torch.distributed.all_reduce(tensor)
            sums.count, sums.batches = float(numbers[0]), int(numbers[1])

    # ---- reading -----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        statistics = self._statistics(name)
        return _ungrouped(statistics.dense() if isinstance(statistics, Sketch) else statistics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def count(self, name: str) -> float:
        """Return n, the number of inputs of a layer: samples times output positions."""
        return self._known(name).count

    def mean(self, name: str) -> Tensor:
        """Return the mean input ``[d]``, or ``[groups, d]``."""
        sums = self._filled(name)
        return _ungrouped(sums.total / sums.count)

    def trace(self, name: str) -> Tensor:
        """Return tr C, exact for every estimator: a scalar, or ``[groups]``."""
        return _ungrouped(self._trace(self._filled(name)))

    def statistics(self) -> dict[str, Tensor | Sketch]:
        """Return what projectors are made of: a matrix ``[groups, d, d]`` or a sketch for each layer.

        Raises:
            ValueError: a layer has seen no input, or one that is not finite.
        """
        return {name: self._statistics(name) for name in self._sums}

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the observed layers' weights."""
        return {name: weight_shape(layer) for name, layer in self._layers.items()}

    def __repr__(self) -> str:
        seen = sum(sums.count > 0 for sums in self._sums.values())
        return f"ActivationCovariance({self.estimator!r}, centered={self.centered}, {seen} of {len(self)} layers seen)"

    def _statistics(self, name: str) -> Tensor | Sketch:
        sums = self._filled(name)
        mean = sums.total / sums.count
        if sums.matrix is not None:
            _igm.mirror_lower(sums.matrix)  # once, not after every batch
            matrix = sums.matrix / sums.count
            return matrix - mean[:, :, None] * mean[:, None, :] if self.centered else matrix
        image = sums.image / sums.count
        if self.centered:
            image = image - mean[:, :, None] * (mean[:, None, :] @ sums.omega)
        return Sketch(sums.omega, image, self._trace(sums), PROBES)

    def _trace(self, sums: _Sums) -> Tensor:
        trace = sums.trace / sums.count
        return trace - (sums.total / sums.count).square().sum(dim=1) if self.centered else trace

    def _known(self, name: str) -> _Sums:
        if name not in self._sums:
            raise KeyError(nearest(name, self._sums, "layer"))
        return self._sums[name]

    def _filled(self, name: str) -> _Sums:
        sums = self._known(name)
        if sums.count == 0:
            raise ValueError(
                f"ActivationCovariance: layer {name!r} has seen no input, expected at least one sample. Run forward "
                "passes inside of the `with` block, or leave the layer out with layers=[…] if it is never called"
            )
        if not torch.isfinite(sums.trace).all():
            raise ValueError(
                f"ActivationCovariance: layer {name!r} has a second moment that is not finite after {sums.batches} "
                "batches, expected numbers. An input held NaN or inf, or overflowed when squared; check the data and "
                "the layers before it"
            )
        return sums


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _start(name: str, basis: Tensor, groups: int, dim: int) -> Tensor:
    """The basis as [groups, d, r], if it is one for this layer."""
    grouped = basis[None] if basis.dim() == 2 else basis
    if grouped.dim() != 3 or grouped.shape[:2] != (groups, dim):
        expected = f"[{dim}, r]" if groups == 1 else f"[{groups}, {dim}, r]"
        raise ValueError(
            f"ActivationCovariance: start for layer {name!r} has shape {tuple(basis.shape)}, expected {expected}. Give "
            "statistics or bases of the same layers, or leave this one out"
        )
    grouped = grouped.detach().double()
    identity = torch.eye(grouped.shape[2], dtype=torch.float64, device=grouped.device)
    error = float((grouped.mT @ grouped - identity).abs().max()) if grouped.numel() else 0.0
    if not error <= 1e-3:  # also NaN
        raise ValueError(
            f"ActivationCovariance: start for layer {name!r} has columns whose inner products are {error:.1e} off, "
            "expected orthonormal ones. Use those of torch.linalg.qr"
        )
    return grouped


def _ungrouped(tensor: Tensor) -> Tensor:
    """Without the dimension for groups where there is one group."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def _chosen(module: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    observable = observable_layers(module)
    if names is None:
        if not observable:
            raise ValueError(
                f"ActivationCovariance: {type(module).__name__} has no Linear and no Conv1d to Conv3d, expected at "
                "least one. Other layers have no input covariance here"
            )
        return observable
    parts = dict(module.named_modules())
    for name in names:
        if name not in parts:
            raise ValueError(f"ActivationCovariance: {nearest(name, parts, 'layer')}")
        in_dimension(parts[name])  # a TypeError for other kinds
    return {name: parts[name] for name in names}
