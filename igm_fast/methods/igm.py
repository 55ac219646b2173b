"""IGM: modalities take turns; each turn's gradient is sharpness-aware and bent by what the modality before it uses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.covariance import ActivationCovariance, Estimator
from igm_fast.layers import MatchRule, in_dimension, match_layers, observable_layers
from igm_fast.methods.base import Batch, Context, Method, Stage, alternating, at_least_two, check_choice, check_range
from igm_fast.methods.contributions import features_during
from igm_fast.projector import Projector, Route, flat_projectors

Perturbation = Literal["full", "periodic", "head", "momentum"]
Statistics = Literal["pass", "ride"]


@dataclass
class Igm(Method):
    """IGM: interactive learning via flat gradient modification.

    Q.-Y. Jiang, Z. Chi, Y. Yang, *Interactive Multimodal Learning via Flat Gradient Modification*, IJCAI 2025. Before
    modality a trains, the modality v that trained just before is looked at. For every layer, with C the second moment
    of what enters the layer of v over the training set, C = U Λ Uᵀ:

        T = U exp(−τ (Λ − λmin I)/(λmax − λmin)) Uᵀ;   ε = ρ g/‖g‖;   ωᵃ ← ωᵃ − η ∇L(ωᵃ + ε) T

    T acts on the input side of each weight of a that has a partner in v; other weights and biases are not projected.
    The first stage has T = I. Prediction: mean over m of softmax(zᵐ).

    Deviations from the authors' code: it averages activations over the batch before the outer product
    (``estimator="batch_mean"`` does so too), projects the linear layers of the heads only, multiplies one gradient by
    the T of every layer of equal shape, and its "SAM" noise is below float32 resolution and never taken off; here every
    layer with a partner is projected once, by the partner's T, and SAM is that of Foret et al. (2021). It selects the
    model on the test set and starts each stage from it; here selection is on validation and training never goes back.

    Args:
        tau: strength of the projector; eigenvalues of T lie in [exp(−tau), 1].
        rho: radius of SAM; 0 is the plain optimizer.
        perturbation: what SAM costs: full is a second forward and backward pass in every step; periodic one in every
            n-th, whose direction the steps between re-use (LookSAM); head perturbs the classifier alone and takes the
            second pass through it from the stored features; momentum perturbs along the momentum and needs none.
        every: n of periodic.
        estimator: how C is measured; full is exact, sketch needs no d×d matrix, batch_mean is the authors'.
        statistics: pass measures C in an extra pass over the training set, in evaluation mode; ride during the last
            epoch of the modality's own turn, from the forward passes that training makes anyway.
        statistics_every: of ride: every n-th batch is looked at.
        centered: subtract the mean activation: variance instead of second moment.
        projector_method: how T is made of C; auto takes the cheapest route that keeps tol.
        tol: largest error of T, in operator norm, that truncated routes may leave.
        match: which layer of v is the partner of a layer of a; name is the safest.
    """

    name: ClassVar[str] = "igm"
    tau: float = 0.4
    rho: float = 0.05
    perturbation: Perturbation = "full"
    every: int = 4
    estimator: Estimator = "sketch"
    statistics: Statistics = "ride"
    statistics_every: int = 1
    centered: bool = False
    projector_method: Route = "auto"
    tol: float = 5e-3
    match: MatchRule = "name"
    projectors: dict[str, Projector] = field(default_factory=dict, init=False, repr=False)
    _stages: int = field(default=0, init=False, repr=False)
    _riding: ActivationCovariance | None = field(default=None, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)  # of the epoch that is observed
    _ahead: dict[str, Projector] = field(default_factory=dict, init=False, repr=False)  # for the next stage
    _facts: dict[str, dict[str, float]] = field(default_factory=dict, init=False, repr=False)  # of their statistics
    _warnings: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range(self.name, "tau", self.tau, above=0.0)
        check_range(self.name, "rho", self.rho, least=0.0)
        check_range(self.name, "tol", self.tol, above=0.0)
        check_choice(self.name, "perturbation", self.perturbation, get_args(Perturbation))
        check_range(self.name, "every", self.every, least=1)
        check_choice(self.name, "statistics", self.statistics, get_args(Statistics))
        check_range(self.name, "statistics_every", self.statistics_every, least=1)
        check_choice(self.name, "estimator", self.estimator, get_args(Estimator))
        check_choice(self.name, "projector_method", self.projector_method, get_args(Route))
        check_choice(self.name, "match", self.match, get_args(MatchRule))
        # Said now, not after the first stage, when the first projector is due.
        needs_matrix = self.projector_method in ("eigh", "polynomial", "truncated")
        if needs_matrix == (self.estimator == "sketch") and self.projector_method != "auto":
            raise ValueError(
                f"{self.name}: projector_method is {self.projector_method} with estimator {self.estimator}, "
                "expected auto, or sketch with sketch, or the others with full or batch_mean"
            )

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        return at_least_two(self.name, available, "to interact")

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the turns of the modalities."""
        stages = alternating(modalities, epochs, rounds)
        self._stages = len(stages)
        return stages

    def prepare(self, stage: Stage, previous: Stage | None, context: Context) -> list[dict[str, Any]]:
        """Measure the modality trained before and make its projectors."""
        self.projectors = {}
        if previous is None:
            return []
        (source,), (target,) = previous.modalities, stage.modalities
        branch = context.model.branch(source)
        layers = self._layers_with_partner(branch, context.model.branch(target))
        if not layers:
            self._warn(
                f"no layer of {target} has a partner in {source} (match={self.match}): trained without projection"
            )
            return []
        if self.statistics == "ride":
            self.projectors, self._ahead = self._ahead, {}
        else:
            with context.measure("statistics"):
                covariance = self._observer(branch, layers)
                with covariance:
                    for batch in context.training_set():
                        branch(batch.inputs[source])
            self.projectors = self._decompose(covariance, context)
        return [self._spectrum(stage, source, target, name) for name in self.projectors]

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:
        """Begin to look at the modality that trains, if the next one will ask for it and this is the last occasion."""
        self._riding, self._batches = None, 0
        if self.statistics == "pass" or epoch + 1 < stage.epochs or stage.index + 1 == self._stages:
            return
        names = context.model.modalities
        (source,) = stage.modalities
        target = names[(names.index(source) + 1) % len(names)]
        branch = context.model.branch(source)
        if layers := self._layers_with_partner(branch, context.model.branch(target)):
            self._riding = self._observer(branch, layers)

    def end_epoch(
        self,
        stage: Stage,  # noqa: ARG002
        epoch: int,  # noqa: ARG002
        scores: Mapping[str, Mapping[str, float]],  # noqa: ARG002
        context: Context,
    ) -> None:
        """Make the next stage's projectors of what was seen; they are saved with the epoch."""
        if self._riding is not None:
            self._ahead = self._decompose(self._riding, context)
            self._riding = None

    def attach(self, stage: Stage, context: Context) -> None:
        """Give the projectors to the optimizer."""
        if self.projectors:
            (target,) = stage.modalities
            context.optimizer.set_projectors(match_layers(context.model.branch(target), self.projectors, by=self.match))

    def sam_options(self) -> dict[str, Any]:
        """Return how often SAM perturbs, and along what."""
        if self.perturbation == "periodic":
            return {"every": self.every}
        return {"direction": "momentum"} if self.perturbation == "momentum" and self.rho > 0 else {}

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy of the stage's modality, whose activations may be looked at on the way."""
        second = context.optimizer.perturbed and self.perturbation != "momentum"
        riding = None if second or self._batches % self.statistics_every else self._riding
        with nullcontext() if riding is None else riding:
            return super().loss(stage, batch, context)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        """Train on one batch; see :class:`Igm` for what ``perturbation`` changes."""
        losses = self._step(stage, batch, progress, context)
        self._batches += 1
        return losses

    def _step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        if self.rho == 0 or self.perturbation in ("full", "periodic"):
            return super().step(stage, batch, progress, context)
        optimizer, branch = context.optimizer, stage.trained
        if self.perturbation == "momentum":
            optimizer.perturb()  # along what earlier batches have left
            loss = self.loss(stage, batch, context) * batch.weight
            context.backward(loss, branch)
        else:
            with features_during(context.model) as features:
                loss = self.loss(stage, batch, context) * batch.weight
            head = context.model.branch(branch).head
            assert head is not None
            parameters = list(head.parameters())
            # Only through the head, from this device's share: with several devices each has its own ε (m-sharpness).
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.perturb()
            optimizer.zero_grad()
            again = functional.cross_entropy(head(features[branch]), batch.labels) * batch.weight
            context.backward(again, branch)
        optimizer.step()
        optimizer.zero_grad()
        return {branch: loss.detach()}

    def warnings(self) -> list[str]:
        """Return the stages that had nothing to project."""
        return list(self._warnings)

    def state_dict(self) -> dict[str, Any]:
        """Return the projectors of the present stage."""
        states, ahead = (
            {name: projector.state_dict() for name, projector in projectors.items()}
            for projectors in (self.projectors, self._ahead)
        )
        return {"projectors": states, "ahead": ahead, "facts": self._facts, "warnings": list(self._warnings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the projectors of the present stage."""
        self.projectors, self._ahead = (
            {name: Projector.from_state_dict(values) for name, values in state[which].items()}
            for which in ("projectors", "ahead")
        )
        self._facts = {name: dict(facts) for name, facts in state["facts"].items()}
        self._warnings = list(state["warnings"])

    def _layers_with_partner(self, source: nn.Module, target: nn.Module) -> list[str]:
        """Return the layers of the source whose projector can fit a layer of the target: others are not measured."""
        dimensions = {(name, in_dimension(layer)) for name, layer in observable_layers(target).items()}
        if self.match == "name":
            return [n for n, layer in observable_layers(source).items() if (n, in_dimension(layer)) in dimensions]
        anywhere = {dimension for _, dimension in dimensions}
        return [n for n, layer in observable_layers(source).items() if in_dimension(layer) in anywhere]

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            warnings.warn(f"{self.name}: {text}", stacklevel=2)

    def _observer(self, branch: nn.Module, layers: Sequence[str]) -> ActivationCovariance:
        return ActivationCovariance(branch, self.estimator, centered=self.centered, layers=layers)

    def _decompose(self, covariance: ActivationCovariance, context: Context) -> dict[str, Projector]:
        with context.measure("statistics"):
            covariance.all_reduce()
        with context.measure("decomposition"):
            projectors = flat_projectors(covariance, self.tau, self.projector_method, self.tol)
        self._facts = {
            name: {"count": float(covariance.count(name)), "trace": float(covariance.trace(name).sum())}
            for name in projectors
        }
        return dict(projectors)

    def _spectrum(self, stage: Stage, source: str, target: str, layer: str) -> dict[str, Any]:
        projector = self.projectors[layer]
        return {
            "stage": stage.index,
            "source": source,
            "target": target,
            "layer": layer,
            "dim": projector.dim,
            "groups": projector.groups,
            "rank": projector.rank,
            "route": projector.route,
            "error_bound": float(projector.error_bound),
            **self._facts[layer],
            "eigenvalues": projector.eigenvalues.tolist(),
            "projector_eigenvalues": projector.sigma.tolist(),
            "complement": float(projector.complement),
        }
