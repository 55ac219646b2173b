"""IGM: modalities take turns; each turn's gradient is sharpness-aware and bent by what the modality before it uses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from torch import nn

from igm_fast.covariance import ActivationCovariance, Estimator
from igm_fast.layers import MatchRule, in_dimension, match_layers, observable_layers
from igm_fast.methods.base import Context, Method, Stage, alternating, check_choice, check_range
from igm_fast.projector import Projector, Route, flat_projectors


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
        estimator: how C is measured; full is exact, sketch needs no d×d matrix, batch_mean is the authors'.
        centered: subtract the mean activation: variance instead of second moment.
        projector_method: how T is made of C; auto takes the cheapest route that keeps tol.
        tol: largest error of T, in operator norm, that truncated routes may leave.
        match: which layer of v is the partner of a layer of a; name is the safest.
    """

    name: ClassVar[str] = "igm"
    tau: float = 0.4
    rho: float = 0.05
    estimator: Estimator = "sketch"
    centered: bool = False
    projector_method: Route = "auto"
    tol: float = 5e-3
    match: MatchRule = "name"
    projectors: dict[str, Projector] = field(default_factory=dict, init=False, repr=False)
    _warnings: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range(self.name, "tau", self.tau, above=0.0)
        check_range(self.name, "rho", self.rho, least=0.0)
        check_range(self.name, "tol", self.tol, above=0.0)
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
        if len(available) < 2:
            raise ValueError(
                f"{self.name}: the data have one modality, {available[0]}; expected at least two to interact"
            )
        return list(available)

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the turns of the modalities."""
        return alternating(modalities, epochs, rounds)

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
        with context.measure("statistics"):
            covariance = ActivationCovariance(branch, self.estimator, centered=self.centered, layers=layers)
            with covariance:
                for batch in context.training_set():
                    branch(batch.inputs[source])
            covariance.all_reduce()
        with context.measure("decomposition"):
            self.projectors = dict(flat_projectors(covariance, self.tau, self.projector_method, self.tol))
        return [self._spectrum(stage, source, target, name, covariance) for name in self.projectors]

    def attach(self, stage: Stage, context: Context) -> None:
        """Give the projectors to the optimizer."""
        if self.projectors:
            (target,) = stage.modalities
            context.optimizer.set_projectors(match_layers(context.model.branch(target), self.projectors, by=self.match))

    def warnings(self) -> list[str]:
        """Return the stages that had nothing to project."""
        return list(self._warnings)

    def state_dict(self) -> dict[str, Any]:
        """Return the projectors of the present stage."""
        states = {name: projector.state_dict() for name, projector in self.projectors.items()}
        return {"projectors": states, "warnings": list(self._warnings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the projectors of the present stage."""
        self.projectors = {name: Projector.from_state_dict(values) for name, values in state["projectors"].items()}
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

    def _spectrum(
        self, stage: Stage, source: str, target: str, layer: str, covariance: ActivationCovariance
    ) -> dict[str, Any]:
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
            "count": float(covariance.count(layer)),
            "trace": float(covariance.trace(layer).sum()),
            "eigenvalues": projector.eigenvalues.tolist(),
            "projector_eigenvalues": projector.sigma.tolist(),
            "complement": float(projector.complement),
        }
