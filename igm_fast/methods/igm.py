"""IGM: modalities take turns; each turn's gradient is sharpness-aware and bent by what the modality before it uses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from igm_fast.covariance import ActivationCovariance, Estimator
from igm_fast.data.seeds import derived_seed
from igm_fast.layers import MatchRule, match_layers
from igm_fast.methods.base import (
    Batch,
    Context,
    Method,
    Selection,
    Stage,
    alternating,
    at_least_two,
    check_choice,
    check_range,
    check_share,
)
from igm_fast.methods.contributions import features_during
from igm_fast.methods.mixup import Mixed, mix, unmixed
from igm_fast.methods.partners import Layers, layers_with_partner, spectrum_row
from igm_fast.names import nearest
from igm_fast.projector import (
    FlatExponential,
    Projector,
    RidgeComplement,
    Route,
    mean_flat_projectors,
    spectral_projectors,
)

Perturbation = Literal["full", "periodic", "head", "momentum", "official"]
Statistics = Literal["pass", "ride"]
Spectrum = Literal["flat", "mla"]
Partners = Literal["previous", "all"]
Mixup = Literal["none", "plain", "official"]


@dataclass
class Igm(Method):
    """IGM: interactive learning via flat gradient modification.

    Q.-Y. Jiang, Z. Chi, Y. Yang, *Interactive Multimodal Learning via Flat Gradient Modification*, IJCAI 2025. Before
    modality a trains, the modality v that trained just before is looked at. For every layer, with C the second moment
    of what enters the layer of v over the training set, C = U Λ Uᵀ:

        T = U exp(−τ (Λ − λmin I)/(λmax − λmin)) Uᵀ;   ε = ρ g/‖g‖;   ωᵃ ← ωᵃ − η ∇L(ωᵃ + ε) T

    T acts on the input side of each weight of a that has a partner in v; other weights and biases are not projected.
    The first stage has T = I. Prediction: mean over m of softmax(zᵐ).

    Deviations from the authors' code: it averages activations over the batch before the outer product, projects the
    linear layers of the heads only, multiplies one gradient by the T of every layer of equal shape, trains on mixed
    samples with one more loss, and its "SAM" noise is below float32 resolution and never taken off; here every layer
    with a partner is projected once, by the partner's T, and SAM is that of Foret et al. (2021). It selects the model
    on the test set and starts each stage from it; here selection is on validation and training never goes back.

    Its form is ``--protocol official``, which sets estimator, layers, match, mixup and perturbation among others. The
    step is then, with features h of mixed samples x̃ = λx + (1 − λ)x′, labels y and y′, logits z = head_w(h):

        M(z) = λ CE(z, y) + (1 − λ) CE(z, y′);   ε = noise_ratio ∇M/‖∇M‖ for each tensor of the head's w
        w ← w + ε for good;   gradient of (1 − flat_ratio) M(z) + flat_ratio CE(head_{w+ε}(h), y)

    Args:
        tau: strength of the projector; eigenvalues of T lie in [exp(−tau), 1], and with 0 nothing is projected.
        rho: radius of SAM; 0 is the plain optimizer.
        perturbation: what SAM costs: full is a second forward and backward pass in every step; periodic one in every
            n-th, whose direction the steps between re-use (LookSAM); head perturbs the classifier alone and takes the
            second pass through it from the stored features; momentum perturbs along the momentum and needs none;
            official adds the authors' noise to the classifier, without rho.
        every: n of periodic.
        noise_ratio: length of official's noise, for each tensor.
        mixup: plain trains on blends of two samples; official adds the loss of the blend against the first's label.
        mixup_alpha: shares of the blends are drawn from Beta(alpha, alpha).
        flat_ratio: weight of official mixup's added loss, and of the loss at official's noise.
        layers: which layers are projected; none trains as without the projector.
        projector: flat is T above; mla is α/(α + Λ) in place of the exponential.
        alpha: of mla.
        partners: previous takes T from the modality trained just before, all from the mean of the exponents of all
            others trained so far.
        projected_targets: modalities whose gradient is projected, separated by commas; all is all.
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
    noise_ratio: float = 1e-10
    mixup: Mixup = "none"
    mixup_alpha: float = 1.0
    flat_ratio: float = 0.3
    layers: Layers = "all"
    projector: Spectrum = "flat"
    alpha: float = 0.1
    partners: Partners = "previous"
    projected_targets: str = "all"
    estimator: Estimator = "sketch"
    statistics: Statistics = "ride"
    statistics_every: int = 1
    centered: bool = False
    projector_method: Route = "auto"
    tol: float = 5e-3
    match: MatchRule = "name"
    projectors: dict[str, Projector] = field(default_factory=dict, init=False, repr=False)
    _stages: int = field(default=0, init=False, repr=False)
    _epoch: int = field(default=0, init=False, repr=False)
    _batches: int = field(default=0, init=False, repr=False)  # of this epoch, so far
    _riding: ActivationCovariance | None = field(default=None, init=False, repr=False)
    _ahead: dict[str, Projector] = field(default_factory=dict, init=False, repr=False)  # for the next stage
    _facts: dict[str, dict[str, float]] = field(default_factory=dict, init=False, repr=False)  # of their statistics
    _warnings: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for option, known in (
            ("perturbation", Perturbation),
            ("mixup", Mixup),
            ("layers", Layers),
            ("projector", Spectrum),
            ("partners", Partners),
            ("statistics", Statistics),
            ("estimator", Estimator),
            ("projector_method", Route),
            ("match", MatchRule),
        ):
            check_choice(self.name, option, getattr(self, option), get_args(known))
        for option in ("tau", "rho", "noise_ratio"):
            check_range(self.name, option, getattr(self, option), least=0.0)
        for option in ("tol", "alpha", "mixup_alpha"):
            check_range(self.name, option, getattr(self, option), above=0.0)
        for option in ("every", "statistics_every"):
            check_range(self.name, option, getattr(self, option), least=1)
        check_share(self.name, "flat_ratio", self.flat_ratio)
        # Said now, not after the first stage, when the first projector is due.
        needs_matrix = self.projector_method in ("eigh", "polynomial", "truncated")
        if needs_matrix == (self.estimator == "sketch") and self.projector_method != "auto":
            raise ValueError(
                f"{self.name}: projector_method is {self.projector_method} with estimator {self.estimator}, "
                "expected auto, or sketch with sketch, or the others with full or batch_mean"
            )
        given = (self.estimator != "sketch", self.statistics, self.match, self.projector)
        if self.partners == "all" and given != (True, "pass", "name", "flat"):
            raise ValueError(
                f"{self.name}: partners is all with estimator {self.estimator}, statistics {self.statistics}, match "
                f"{self.match} and projector {self.projector}; expected full or batch_mean, pass, name and flat: "
                "exponents of several modalities are added as matrices, by the layer's name"
            )

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; there must be two at least."""
        for name in self._targets():
            if name not in available:
                raise ValueError(f"{self.name}: projected_targets: {nearest(name, available, 'modality')}")
        return at_least_two(self.name, available, "to interact")

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the turns of the modalities."""
        stages = alternating(modalities, epochs, rounds)
        self._stages = len(stages)
        return stages

    def prepare(self, stage: Stage, previous: Stage | None, context: Context) -> list[dict[str, Any]]:
        """Measure the modality trained before, or all of them, and make the projectors."""
        self.projectors = {}
        (target,) = stage.modalities
        if previous is None or not self._projects(target):
            return []
        sources = self._sources(stage, previous, context)
        layers = {source: names for source in sources if (names := self._observed(source, target, context))}
        if not layers:
            whom = " or ".join(sources)
            self._warn(f"no layer of {target} has a partner in {whom} (match={self.match}): trained without projection")
            return []
        if self.statistics == "ride":
            self.projectors, self._ahead = self._ahead, {}
        else:
            self.projectors = self._decompose(
                [self._measured(source, names, stage, context) for source, names in layers.items()], context
            )
        seen = "+".join(layers)
        return [spectrum_row(stage, seen, target, n, T, self._facts[n]) for n, T in self.projectors.items()]

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:
        """Begin to look at the modality that trains, if the next one will ask for it and this is the last occasion."""
        self._riding, self._epoch, self._batches = None, epoch, 0
        if self.statistics == "pass" or epoch + 1 < stage.epochs or stage.index + 1 == self._stages:
            return
        names = context.model.modalities
        (source,) = stage.modalities
        target = names[(names.index(source) + 1) % len(names)]
        if self._projects(target) and (layers := self._observed(source, target, context)):
            self._riding = self._observer(source, layers, context)

    def end_epoch(
        self,
        stage: Stage,  # noqa: ARG002
        epoch: int,  # noqa: ARG002
        scores: Mapping[str, Mapping[str, float]],  # noqa: ARG002
        context: Context,
    ) -> None:
        """Make the next stage's projectors of what was seen; they are saved with the epoch."""
        if self._riding is not None:
            self._ahead = self._decompose([self._riding], context)
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
        """Return the loss of the stage's modality, whose activations may be looked at on the way."""
        mixed = self._mixed(stage, batch, context)
        logits = self._logits(stage, mixed, context)
        return self._total(mixed, logits, logits)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        """Train on one batch; see :class:`Igm` for what ``perturbation`` changes."""
        losses = self._step(stage, batch, progress, context)
        self._batches += 1
        return losses

    def _step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:
        if self.perturbation == "official":
            return self._noisy_step(stage, batch, context)
        if self.rho == 0 or self.perturbation in ("full", "periodic"):
            return super().step(stage, batch, progress, context)
        optimizer, branch = context.optimizer, stage.trained
        if self.perturbation == "momentum":
            optimizer.perturb()  # along what earlier batches have left
            loss = self.loss(stage, batch, context) * batch.weight
            context.backward(loss, branch)
        else:
            mixed = self._mixed(stage, batch, context)
            with features_during(context.model) as features:
                logits = self._logits(stage, mixed, context)
            loss = self._total(mixed, logits, logits) * batch.weight
            head = self._head(branch, context)
            parameters = list(head.parameters())
            # Only through the head, from this device's share: with several devices each has its own ε (m-sharpness).
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.perturb()
            optimizer.zero_grad()
            again = head(features[branch].to(parameters[0].dtype))  # bfloat16 under autocast
            context.backward(self._total(mixed, again, again) * batch.weight, branch)
        optimizer.step()
        optimizer.zero_grad()
        return {branch: loss.detach()}

    def _noisy_step(self, stage: Stage, batch: Batch, context: Context) -> dict[str, Tensor]:
        """The authors' step: noise on the head, which stays, and a second pass through it from the stored features."""
        branch, mixed = stage.trained, self._mixed(stage, batch, context)
        with features_during(context.model) as features:
            logits = self._logits(stage, mixed, context)
        head = self._head(branch, context)
        parameters = dict(head.named_parameters())
        gradients = torch.autograd.grad(mixed.loss(logits) * batch.weight, list(parameters.values()), retain_graph=True)
        noise = {
            name: _of_length(self.noise_ratio, context.mean_over_devices(gradient))
            for name, gradient in zip(parameters, gradients, strict=True)
        }
        moved = {name: parameter + noise[name] for name, parameter in parameters.items()}
        again = functional_call(head, moved, features[branch].to(gradients[0].dtype))  # bfloat16 under autocast
        loss = self._total(mixed, logits, again) * batch.weight
        context.backward(loss, branch)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(noise[name])
        context.optimizer.step()
        context.optimizer.zero_grad()
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

    def _targets(self) -> list[str]:
        return [] if self.projected_targets == "all" else [name.strip() for name in self.projected_targets.split(",")]

    def _projects(self, target: str) -> bool:
        """Whether a modality's gradient is projected at all."""
        named = self.projected_targets == "all" or target in self._targets()
        return named and self.layers != "none" and (self.projector == "mla" or self.tau > 0)

    def _sources(self, stage: Stage, previous: Stage, context: Context) -> list[str]:
        """Return the modalities that a stage's projectors are made of."""
        if self.partners == "previous":
            return list(previous.modalities)
        names, (target,) = context.model.modalities, stage.modalities
        return [name for name in (names if stage.round > 0 else names[: names.index(target)]) if name != target]

    def _observed(self, source: str, target: str, context: Context) -> list[str]:
        branch = context.model.branch
        return layers_with_partner(branch(source), branch(target), self.match, self.layers)

    def _head(self, modality: str, context: Context) -> nn.Module:
        head = context.model.branch(modality).head
        assert head is not None
        return head

    def _mixed(self, stage: Stage, batch: Batch, context: Context) -> Mixed:
        """The batch as it trains; asked again, also by another process, it is the same."""
        if self.mixup == "none":
            return unmixed(batch)
        seed = derived_seed("mixup", context.seed, stage.index, self._epoch, self._batches)
        return mix(batch, stage.trained, self.mixup_alpha, np.random.default_rng(seed))

    def _logits(self, stage: Stage, mixed: Mixed, context: Context) -> Tensor:
        second = context.optimizer.perturbed and self.perturbation != "momentum"
        riding = None if second or self._batches % self.statistics_every else self._riding
        with nullcontext() if riding is None else riding:
            return context.network(mixed.inputs, stage.modalities)[stage.trained]

    def _total(self, mixed: Mixed, logits: Tensor, again: Tensor) -> Tensor:
        """The loss from the logits, and from those of a second pass through the head where there was one."""
        if again is logits and self.mixup != "official":
            return mixed.loss(logits)
        added = functional.cross_entropy(again, mixed.labels) if self.mixup == "official" else mixed.loss(again)
        return (1.0 - self.flat_ratio) * mixed.loss(logits) + self.flat_ratio * added

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            warnings.warn(f"{self.name}: {text}", stacklevel=2)

    def _observer(self, source: str, layers: Sequence[str], context: Context) -> ActivationCovariance:
        branch = context.model.branch(source)
        return ActivationCovariance(branch, self.estimator, centered=self.centered, layers=layers)

    def _measured(self, source: str, layers: Sequence[str], stage: Stage, context: Context) -> ActivationCovariance:
        """Look at a modality in a pass of its own."""
        samples = context.training_set()
        if self.estimator == "batch_mean":  # means of the batches that training makes, as they come
            generator = np.random.default_rng(derived_seed("statistics", context.seed, stage.index))
            samples = context.batches(Selection(torch.from_numpy(generator.permutation(context.samples))))
        with context.measure("statistics"), self._observer(source, layers, context) as covariance:
            for batch in samples:
                context.model.branch(source)(batch.inputs[source])
        return covariance

    def _decompose(self, sources: Sequence[ActivationCovariance], context: Context) -> dict[str, Projector]:
        with context.measure("statistics"):
            for covariance in sources:
                covariance.all_reduce()
        with context.measure("decomposition"):
            if self.partners == "all":
                projectors = mean_flat_projectors(sources, self.tau, self.projector_method, self.tol)
            else:
                function = FlatExponential(self.tau) if self.projector == "flat" else RidgeComplement(self.alpha)
                projectors = spectral_projectors(sources[0], function, self.projector_method, self.tol)
        self._facts = {
            name: {
                "count": math.fsum(source.count(name) for source in sources if name in source),
                "trace": math.fsum(float(source.trace(name).sum()) for source in sources if name in source),
            }
            for name in projectors
        }
        return dict(projectors)


def _of_length(length: float, direction: Tensor) -> Tensor:
    """The direction with another length; 0 where it is 0."""
    norm: Tensor = torch.linalg.vector_norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction * (length / norm)
