"""SAM as a torch optimizer: perturb, then descend from where it was."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from igm_fast import looksam
from igm_fast.names import nearest
from igm_fast.ops.update import device_basis
from igm_fast.ops.update_checks import refuse, state_dtype
from igm_fast.repetition import Repetition

if TYPE_CHECKING:
    from igm_fast.layers import LayerMatching
    from igm_fast.projector import Projector

ops = torch.ops.igm_fast  # registered by the import of igm_fast.ops above

_BASES: dict[str, dict[str, Any]] = {  # the options that only one base has, and their defaults
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "decoupled": True},
}
_SCOPES = ("global", "tensor")
_DIRECTIONS = ("gradient", "momentum")
_AVERAGES = {"sgd": "momentum_buffer", "adamw": "exp_avg"}  # the state that sums gradients up


@dataclass(frozen=True)
class _Projection:
    """T of one parameter, on its device and in its state dtype: cI + U(Σ − cI)Uᵀ, or a dense matrix."""

    basis: Tensor  # U [d, k] or [groups, d, k]; empty: none
    sigma: Tensor
    complement: float = 1.0
    dense: Tensor | None = None  # [groups, d, d]: multiplied before the fused step
    reordered: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)  # by shape and memory order

    @classmethod
    def of(cls, projector: Projector, param: Tensor) -> _Projection:
        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(param.device, state_dtype(param.dtype))

        if projector.basis is None:
            dense = move(cast(Tensor, projector.dense_matrix))
            return cls(param.new_empty(0), param.new_empty(0), dense=dense.reshape(-1, *dense.shape[-2:]))
        basis, sigma = move(projector.basis), move(projector.sigma)
        if basis.shape[-1] == 0:  # T = cI: to the operator an empty U means T = I, a column of zeros does not
            basis, sigma = nn.functional.pad(basis, (0, 1)), nn.functional.pad(sigma, (0, 1))
        return cls(_readable(basis), sigma, float(projector.complement))

    def gradient(self, grad: Tensor) -> Tensor:
        """Return G for the fused step; G T where T is dense."""
        if self.dense is None:
            return grad
        rows = grad.reshape(len(self.dense), -1, self.dense.shape[-1]).to(self.dense.dtype)
        return (rows @ self.dense).to(grad.dtype).reshape(grad.shape)

    def basis_for(self, param: Tensor, order: Sequence[int]) -> Tensor:
        """U with its rows in the order in which the parameter's columns lie in memory; made once per order."""
        if self.basis.numel() == 0 or list(order) == sorted(order):
            return self.basis
        key = (*param.shape, *order)
        if key not in self.reordered:
            columns = torch.arange(self.basis.shape[-2], device=param.device).view(param.shape[1:])
            columns = columns.permute([axis - 1 for axis in order[1:]]).flatten()
            self.reordered[key] = _readable(self.basis[..., columns, :])
        return self.reordered[key]


def _readable(basis: Tensor) -> Tensor:
    """U in the memory layout that the fused step reads in place, which each step would make anew otherwise."""
    return device_basis(basis) if basis.is_cuda else basis


class SAM(Optimizer):
    """Sharpness-aware minimization over SGD, AdamW or Adam: one fused pass over memory per phase.

    With g = ∇L(ω) and the projectors T of :meth:`set_projectors` (otherwise T = I):

        perturb():  ω ← ω + ε,   ε = rho g/‖g‖₂;   adaptive (ASAM):  ε = rho ω² g/‖|ω| g‖₂, elementwise
        step():     ω ← ω − ε (bit for bit), then the base's step from ω with ∇L(ω + ε) T

    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021, eq. 2; Kwon et
    al., *ASAM*, ICML 2021, with T_ω = |ω| and no constant added. Weight decay and momentum are no part of ε. A gradient
    that is zero or not finite gives ε = 0. ``maximize`` ascends, so its ε descends: ε = −rho g/‖g‖₂.

        loss(model).backward(); optimizer.perturb(); optimizer.zero_grad()
        with frozen_batch_statistics(model):
            loss(model).backward()
        optimizer.step(); optimizer.zero_grad()

    Without ``perturb()``, or with rho = 0, ``step()`` is the plain base optimizer; :meth:`step` also takes a closure.

    Cheaper ways to the same end; ask :attr:`perturbed` whether a second pass is due:

    - ``every=n``: ``perturb()`` moves the weights at every n-th step only. There the part of ∇L(ω + ε) that is
      orthogonal to g = ∇L(ω) is kept, v = g_s − (⟨g, g_s⟩/⟨g, g⟩) g, and the steps between descend with
      g + reuse·(‖g‖/‖v‖) v: LookSAM (Liu, Mai, Chen, Hsieh, You, *Towards Efficient and Scalable Sharpness-Aware
      Minimization*, CVPR 2022, algorithm 1). One more array per parameter is kept, and a second one between perturb()
      and step(). ``reuse=0`` only skips.
    - ``direction="momentum"``: ε = rho m/‖m‖ along the base's average m of earlier gradients (momentum buffer or
      exp_avg). No pass is needed for it: ``perturb()`` comes first, then one forward and backward, then ``step()``
      (Becker, Altrock, Risse, *Momentum-SAM: Sharpness Aware Minimization without Computational Overhead*, 2024).
      Nothing moves in the first step.
    - rho = 0 in the groups of all parameters but the heads': the second pass may start from stored features.

    - Groups may set every option but base and scope. The global norm runs over all parameters with a gradient, also
      those of groups with rho = 0, which are not moved. One dtype, device, rho, ``adaptive`` and ``maximize``: one
      call. Otherwise the norms of several calls meet as float32 on the device of one, and gradients are read twice.
      On CUDA neither ``perturb()`` nor ``step()`` waits for the device; an ``lr`` on it is waited for.
    - Parameters are float32, float64 or bfloat16 (states: float32, float64, float32), contiguous or channels_last.
    - Accumulation: call backward several times before ``perturb()``, and the same batches again before ``step()``.
    - Several devices: DDP has averaged the gradients, so ε is the same everywhere. Under ``no_sync()`` in the first
      pass it is each rank's own (m-sharpness); the step starts from the common weights in both cases.
    - ``torch.amp.GradScaler``: the scale cancels in ε. Use ``scaler.scale(loss).backward()`` in both passes and
      ``scaler.step(optimizer); optimizer.restore()``: a step skipped for inf leaves the weights perturbed.

    Args:
        params: parameters, named parameters or groups, as for every torch optimizer.
        base: ``"sgd"`` or ``"adamw"``.
        lr: learning rate.
        rho: radius of the perturbation.
        adaptive: ASAM.
        scope: ``"global"``, or ``"tensor"``: each parameter is perturbed by rho, with a norm of its own.
        every: steps from one perturbation to the next.
        reuse: share of the gradient's length that the kept direction gets in between.
        direction: ``"gradient"``, or ``"momentum"``.
        weight_decay: as the base has it in torch; 0 by default for AdamW too.
        maximize: ascend.
        momentum: of sgd, as are dampening and nesterov.
        dampening: as torch.optim.SGD.
        nesterov: as torch.optim.SGD.
        betas: of adamw, as are eps and decoupled.
        eps: as torch.optim.AdamW.
        decoupled: False adds the decay to the gradient: torch.optim.Adam.

    Raises:
        ValueError: an unknown base or scope, an option out of range or of the other base.
    """

    def __init__(
        self,
        params: ParamsT,
        base: str = "sgd",
        *,
        lr: float = 1e-2,
        rho: float = 0.05,
        adaptive: bool = False,
        scope: str = "global",
        every: int = 1,
        reuse: float = 0.7,
        direction: str = "gradient",
        weight_decay: float = 0.0,
        maximize: bool = False,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decoupled: bool = True,
    ) -> None:
        if base not in _BASES:
            raise ValueError(f"SAM: {nearest(base, _BASES, 'base')}")
        if scope not in _SCOPES:
            raise ValueError(f"SAM: {nearest(scope, _SCOPES, 'scope')}")
        if direction not in _DIRECTIONS:
            raise ValueError(f"SAM: {nearest(direction, _DIRECTIONS, 'direction')}")
        self._check_reuse(base, every, reuse, direction, momentum)
        self.base, self.scope, self.direction = base, scope, direction
        self.every, self.reuse = every, reuse
        self._buffers: dict[Tensor, Tensor] = {}  # for backups: allocated once
        self._projections: dict[Tensor, _Projection] = {}
        self._repetition: Repetition | None = None
        self._stepped: list[int] = []  # the parameters of the last step that was not a repetition
        options: dict[str, Any] = {"lr": lr, "rho": rho, "adaptive": adaptive}
        options |= {"weight_decay": weight_decay, "maximize": maximize}
        options |= {"turn": 0}  # steps since the last perturbation; in the groups, because these are saved
        options |= {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        options |= {"betas": betas, "eps": eps, "decoupled": decoupled}
        self._check_options(options)
        (other,) = _BASES.keys() - {base}
        super().__init__(params, {name: value for name, value in options.items() if name not in _BASES[other]})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it leaves out are the optimizer's.

        Raises:
            ValueError: an option is out of range or belongs to the other base.
        """
        self._check_options(self.defaults | param_group)
        super().add_param_group(param_group)

    @property
    def perturbed(self) -> bool:
        """Whether the weights stand at ω + ε, between :meth:`perturb` and :meth:`step` or :meth:`restore`."""
        return bool(self._perturbed_parameters())

    @torch.no_grad()
    def perturb(self) -> None:
        """Move the weights to ω + ε and keep ω; parameters without a gradient stay. All rho = 0: nothing happens.

        Raises:
            RuntimeError: the weights are perturbed already.
            ValueError: a gradient is sparse, or a parameter has gaps in memory.
        """
        if self.perturbed:
            raise RuntimeError(
                "SAM.perturb: the weights are perturbed already, expected step() or restore() after each perturb(). "
                "Write: backward(); perturb(); zero_grad(); backward(); step(); zero_grad()"
            )
        if all(group["rho"] == 0.0 for group in self.param_groups) or self._turn != 0:
            return
        if self._repetition is not None and (addresses := self._repetition.gradients(self)) is not None:
            self._repetition.perturb(self, addresses)
            return
        directions = self._directions()
        options = {
            param: (group["rho"], group["adaptive"], group["maximize"])
            for group in self.param_groups
            for param in group["params"]
            if param in directions
        }
        batches = _batches(options, lambda param: (param.dtype, param.device, *options[param]))
        # The operator's norm is that of one call. With several, rho = 0 keeps the backups and measures; then all move.
        apart = self.scope == "global" and len(batches) > 1
        calls: list[tuple[list[Any], float, bool]] = []
        for (_, device, rho, adaptive, maximize), batch in batches.items():
            grads = [-directions[param] if maximize else directions[param] for param in batch]
            backups = [self.backup_of(param) for param in batch]
            norm = torch.empty(1 if self.scope == "global" else len(batch), dtype=torch.float32, device=device)
            lists = [self._laid_out(batch, batch), self._laid_out(batch, backups), norm, self._laid_out(batch, grads)]
            ops.sam_perturb(*lists, 0.0 if apart else rho, scope=self.scope, adaptive=adaptive)
            for param, backup in zip(batch, backups, strict=True):
                self.state[param]["backup"] = backup
                if self.every > 1:  # a copy: zero_grad(set_to_none=False) would clear it
                    self.state[param]["gradient"] = directions[param].clone(memory_format=torch.preserve_format)
            calls.append((lists, rho, adaptive))
        if apart:
            home = calls[0][0][2].device
            norms = torch.cat([call[2].to(home) for call, *_ in calls])
            total = torch.linalg.vector_norm(norms, dtype=torch.float64).float()
            for call, rho, adaptive in calls:
                ops.sam_perturb(*call, rho, adaptive=adaptive, total=total.to(call[2].device))

    @torch.no_grad()
    def restore(self) -> None:
        """Take the perturbation back without a step, bit for bit; does nothing if there is none."""
        self._put_back(self._perturbed_parameters())
        self._forget_backups()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Descend with the present gradients, from ω if perturbed; parameters without a gradient are only put back.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss, as for every torch
                optimizer. It is called, the weights are perturbed, and it is called again; after ``perturb()``, or with
                rho = 0, it is called once. Batch norm:
                ``with frozen_batch_statistics(model) if optimizer.perturbed else nullcontext(): ...`` inside it.

        Returns:
            The loss of the closure's first call.
        """
        loss = None if closure is None else self._passes(closure)
        if self._repetition is not None:
            if (addresses := self._repetition.gradients(self)) is not None:
                self._repetition.step(self, addresses)
                return loss
            self._repetition = None
        self._put_back([param for param in self._perturbed_parameters() if param.grad is None])
        gradients = self._gradients()
        for group in self.param_groups:
            batches = _batches(self._with_gradient(group), lambda p: (p.dtype, p.device, self._steps_done(p)))
            for (_, _, steps), batch in batches.items():
                self._descend(group, batch, steps, gradients)
        self._forget_backups()
        for group in self.param_groups:
            group["turn"] = (group["turn"] + 1) % self.every
        stepped = [id(p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if stepped and stepped == self._stepped:  # twice alike: so may be the next
            self._repetition = Repetition.of(self)
        self._stepped = stepped
        return loss

    def set_projectors(
        self,
        matching: LayerMatching | Mapping[nn.Parameter, Projector] | Iterable[tuple[nn.Parameter, Projector]] | None,
    ) -> None:
        """Let each step use G T in place of the gradient G of some parameters, viewed as ``[out, d]``.

        ε is not projected. Replaces earlier projectors; None clears them. They are copied to the parameters' devices
        and are not in ``state_dict()``: who makes them saves them.

        Args:
            matching: what :func:`igm_fast.match_layers` returns, or pairs of parameter and projector.

        Raises:
            TypeError: a key is no parameter.
            ValueError: a parameter is not in the optimizer, is given twice, or its shape does not fit.
        """
        op = "SAM.set_projectors"
        pairs: Any = [] if matching is None else getattr(matching, "pairs", matching)
        known = {param for group in self.param_groups for param in group["params"]}
        projections: dict[Tensor, _Projection] = {}
        for i, (param, projector) in enumerate(pairs.items() if isinstance(pairs, Mapping) else pairs):
            if not isinstance(param, Tensor):
                raise TypeError(f"{op}: {param!r} given, expected a parameter. Use match_layers(module, projectors)")
            if param not in known:
                given = f"entry {i} is for a parameter of shape {tuple(param.shape)} that is not in the optimizer"
                raise refuse(op, given, "one of its own", "Match the layers of the module that is trained.")
            if param in projections:
                raise refuse(op, f"two projectors for {self._name(param)}", "one", "Leave one out.")
            rows = param.shape[0] if param.dim() else 1
            if rows % projector.groups or rows * projector.dim != param.numel():
                given = f"{self._name(param)} with a projector of {projector.groups} group(s) of d={projector.dim}"
                expected = f"d={param.numel() // max(rows, 1)}, groups of whole rows for shape {tuple(param.shape)}"
                raise refuse(op, given, expected, "Find fitting pairs with match_layers.")
            projections[param] = _Projection.of(projector, param)
        self._projections, self._repetition = projections, None

    def projection_of(self, param: Tensor) -> _Projection:
        """Return T of a parameter; one with an empty basis where there is none."""
        return self._projections.get(param) or _no_projection(param.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, of a perturbed optimizer too (load the model's weights with it). Tensors are copied.

        Raises:
            ValueError: the state is that of another base, or of parameters of other shapes.
        """
        op = "SAM.load_state_dict"
        if missing := {name for group in state_dict["param_groups"] for name in self.defaults.keys() - group.keys()}:
            given = f"a state without {', '.join(sorted(missing))}"
            raise refuse(op, given, f"one of base {self.base!r}", "Build the optimizer as it was when saved.")
        loaded: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, state: loaded.update(state))  # after the user's hooks
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        ids = [index for group in loaded["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(ids, params, strict=True):
            # torch casts to the parameter's dtype, which is not that of a state, and drops its memory format.
            for key, value in loaded["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    if value.shape != param.shape:
                        given = f"{key} of shape {tuple(value.shape)} for {self._name(param)}"
                        raise refuse(op, given, str(tuple(param.shape)), "The state is that of another model.")
                    dtype = param.dtype if key == "backup" else state_dtype(param.dtype)
                    self.state[param][key] = torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)

    def __getstate__(self) -> dict[str, Any]:
        own: dict[str, Any] = {"base": self.base, "scope": self.scope}
        own |= {"_buffers": {}, "_projections": self._projections, "_repetition": None, "_stepped": []}
        own |= {"every": self.every, "reuse": self.reuse, "direction": self.direction}
        return super().__getstate__() | own

    def __repr__(self) -> str:
        name, groups = super().__repr__().split("(", 1)
        return f"{name}(base={self.base!r}, scope={self.scope!r}, projectors={len(self._projections)}{groups}"

    def _passes(self, closure: Callable[[], float]) -> float:
        """Call the closure at ω and, unless that was ω + ε already or rho = 0, again at ω + ε."""
        first = not self.perturbed
        with torch.enable_grad():
            loss = closure()
        if first:
            self.perturb()
            try:
                if self.perturbed:
                    with torch.enable_grad():
                        closure()
            except BaseException:
                self.restore()  # whoever catches it finds the weights where they were
                raise
        return loss

    @property
    def _turn(self) -> int:
        """Steps since the last one that perturbed; 0: this one does."""
        turn: int = self.param_groups[0]["turn"]
        return turn

    def _directions(self) -> dict[Tensor, Tensor]:
        """What ε goes along: gradients, or the averages of earlier ones where there are any."""
        if self.direction == "gradient":
            return {p: cast(Tensor, p.grad) for group in self.param_groups for p in self._with_gradient(group)}
        name = _AVERAGES[self.base]
        kept = ((p, self.state.get(p, {}).get(name)) for group in self.param_groups for p in group["params"])
        return {param: average.to(param.dtype) for param, average in kept if average is not None}

    def _gradients(self) -> dict[Tensor, Tensor]:
        """What LookSAM makes of gradients between two perturbations; parameters that are left out keep theirs."""
        if self.every == 1 or self.reuse == 0.0:
            return {}
        given = {p: cast(Tensor, p.grad) for group in self.param_groups for p in self._with_gradient(group)}
        if self.perturbed:
            looksam.keep_direction(self.state, {p: grad for p, grad in given.items() if "gradient" in self.state[p]})
            return {}
        return looksam.with_kept_direction(self.state, given, self.reuse)

    def _descend(
        self, group: dict[str, Any], batch: list[Tensor], steps: int, gradients: Mapping[Tensor, Tensor]
    ) -> None:
        """The base's step for parameters of one dtype and device that went through the same number of steps."""
        projections = [self.projection_of(param) for param in batch]
        sources = [self.state.get(param, {}).get("backup", param) for param in batch]
        given = [gradients.get(param, param.grad) for param in batch] if gradients else [param.grad for param in batch]
        grads = [T.gradient(cast(Tensor, grad)) for T, grad in zip(projections, given, strict=True)]
        rest = (
            self._laid_out(batch, sources),
            self._laid_out(batch, grads),
            [T.basis_for(param, self._order(param)) for T, param in zip(projections, batch, strict=True)],
            [T.sigma for T in projections],
            [T.complement for T in projections],
        )
        params = self._laid_out(batch, batch)
        options = {"lr": float(group["lr"]), "weight_decay": group["weight_decay"], "maximize": group["maximize"]}
        if self.base == "sgd":
            momenta = self._states(batch, "momentum_buffer") if group["momentum"] != 0.0 else []
            options |= {name: group[name] for name in _BASES["sgd"]}
            ops.projected_sgd_step(params, momenta, *rest, first_step=steps == 0, **options)
            return
        averages, squares = self._states(batch, "exp_avg"), self._states(batch, "exp_avg_sq")
        options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        options |= {"eps": group["eps"], "decoupled": group["decoupled"], "step": steps + 1}
        ops.projected_adamw_step(params, averages, squares, *rest, **options)
        for param in batch:
            self.state[param]["step"] = steps + 1

    def _steps_done(self, param: Tensor) -> int:
        """How many steps the state of a parameter has seen; of sgd, whether any."""
        state = self.state.get(param, {})
        return int("momentum_buffer" in state) if self.base == "sgd" else state.get("step", 0)

    def _states(self, batch: list[Tensor], name: str) -> list[Tensor]:
        for param in batch:
            if name not in self.state[param]:
                dtype = state_dtype(param.dtype)
                self.state[param][name] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        return self._laid_out(batch, [self.state[param][name] for param in batch])

    def backup_of(self, param: Tensor) -> Tensor:
        """Return the room for the backup of a parameter; new only if the parameter has changed its form."""
        buffer = self._buffers.get(param)
        kind = (param.shape, param.stride(), param.dtype, param.device)
        if buffer is None or (buffer.shape, buffer.stride(), buffer.dtype, buffer.device) != kind:
            buffer = self._buffers[param] = torch.empty_like(param, requires_grad=False)
        return buffer

    def _perturbed_parameters(self) -> list[Tensor]:
        return [param for param, state in self.state.items() if "backup" in state]

    def _put_back(self, params: list[Tensor]) -> None:
        for batch in _batches(params, lambda param: (param.dtype, param.device)).values():
            backups = [self.state[param]["backup"] for param in batch]
            ops.sam_restore(self._laid_out(batch, batch), self._laid_out(batch, backups))

    def _forget_backups(self) -> None:
        for param in self._perturbed_parameters():
            del self.state[param]["backup"]
            self.state[param].pop("gradient", None)
            if not self.state[param]:
                del self.state[param]

    def _with_gradient(self, group: dict[str, Any]) -> list[Tensor]:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            if param.grad.layout != torch.strided:
                given = f"{self._name(param)} has a gradient of layout {param.grad.layout}"
                raise refuse("SAM", given, "a dense one", "Use nn.Embedding(sparse=False), or torch.optim.SparseAdam.")
        return params

    def _order(self, param: Tensor) -> Sequence[int]:
        """The dimensions, outermost in memory first: permuted so, the parameter is contiguous."""
        if param.is_contiguous():
            return range(param.dim())
        strides = param.stride()
        order = sorted(range(param.dim()), key=lambda axis: -strides[axis])
        dense = param.permute(order).is_contiguous()
        if not dense or (order[0] != 0 and param in self._projections):
            given = f"{self._name(param)} of shape {tuple(param.shape)} has strides {strides}"
            expected = "its first dimension outermost, to be projected" if dense else "memory without gaps"
            raise refuse("SAM", given, expected, "Make it contiguous: param.data = param.data.contiguous()")
        return order

    def _laid_out(self, params: list[Tensor], tensors: Sequence[Any]) -> list[Tensor]:
        """Tensors, one per parameter, with their dimensions in its memory order: the operators ask for contiguity."""
        pairs = zip(params, tensors, strict=True)
        return [t if param.is_contiguous() else t.permute(self._order(param)) for param, t in pairs]

    def _name(self, param: Tensor) -> str:
        for number, group in enumerate(self.param_groups):
            for place, known in enumerate(group["params"]):
                if known is param:
                    names = group.get("param_names")
                    return f"parameter {names[place]!r}" if names else f"parameter {place} of group {number}"
        raise AssertionError("only parameters of the optimizer are named")

    @staticmethod
    def _check_reuse(base: str, every: int, reuse: float, direction: str, momentum: float) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise refuse("SAM", f"every={every!r}", "a whole number ≥ 1", "1 perturbs in every step.")
        if not 0.0 <= reuse < math.inf:
            raise refuse("SAM", f"reuse={reuse}", "a finite number ≥ 0", "0 re-uses nothing.")
        if direction == "momentum" and base == "sgd" and momentum == 0.0:
            given = "direction='momentum' with momentum=0"
            raise refuse("SAM", given, "a momentum, along which to go", "Set momentum=0.9, or use base='adamw'.")
        if direction == "momentum" and every > 1:
            given = f"direction='momentum' with every={every}"
            raise refuse("SAM", given, "every=1", "Without a second pass there is nothing to save.")

    def _check_options(self, options: Mapping[str, Any]) -> None:
        (other,) = _BASES.keys() - {self.base}
        for name, default in _BASES[other].items():
            if options.get(name, default) != default:
                given, expected = f"{name}={options[name]} with base {self.base!r}", ", ".join(_BASES[self.base])
                raise refuse("SAM", given, f"only {expected}", f"Leave {name} out, or choose base={other!r}.")
        for name in ("lr", "rho", "weight_decay", "momentum", "eps"):
            if not 0.0 <= options.get(name, 0.0) < math.inf:
                raise refuse("SAM", f"{name}={options[name]}", "a finite number ≥ 0", "See help(igm_fast.SAM).")
        if not all(0.0 <= beta < 1.0 for beta in options.get("betas", ())):
            raise refuse("SAM", f"betas={options['betas']}", "numbers in [0, 1)", "torch's default is (0.9, 0.999).")
        if options.get("nesterov") and (options["momentum"] == 0.0 or options["dampening"] != 0.0):
            given = f"nesterov=True with momentum={options['momentum']}, dampening={options['dampening']}"
            raise refuse("SAM", given, "momentum > 0 and dampening=0", "As torch.optim.SGD.")


@lru_cache
def _no_projection(device: torch.device) -> _Projection:
    return _Projection(torch.empty(0, device=device), torch.empty(0, device=device))


def _batches(params: Iterable[Tensor], key: Callable[[Tensor], Any]) -> dict[Any, list[Tensor]]:
    """Parameters by what one call of an operator can take."""
    batches: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for param in params:
        batches[key(param)].append(param)
    return batches
