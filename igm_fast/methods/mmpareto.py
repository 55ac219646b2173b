"""MMPareto: each encoder follows the joint and its own loss, along the shortest vector between them in a conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.methods.base import Batch, Context, Method, Stage, check_range, together
from igm_fast.models.multimodal import Head


@dataclass
class MmPareto(Method):
    """MMPareto: unimodal losses assist the joint loss and give way where they conflict with it.

    Y. Wei, D. Hu, *MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance*, ICML 2024. L is the
    cross-entropy of a joint head on all features side by side, L_m that of modality m's own head. For each encoder,
    with g = ∇L and u = ∇L_m over all its parameters in one vector:

        ⟨g, u⟩ > 0: α = ½;   otherwise α = ⟨u, u − g⟩/‖g − u‖²: the shortest vector between g and u
        G = 2(αg + (1 − α)u),   θᵐ ← θᵐ − η γ G max(1, ‖g + u‖/‖G‖)

    Heads follow the sum of the losses. Without conflict this is the plain sum of the losses with γ times the gradient.
    Prediction: softmax of the joint logits.

    Deviations from the authors' code: it takes α over the encoder but lengthens G tensor by tensor, here both are the
    encoder's, as in the equations; it keeps α within [0.001, 0.999], here the shortest vector is exact; opposite
    gradients, of which nothing is left, do not move the encoder (there 0/0), and a gradient that is zero is in conflict
    with nothing; its learning rate is constant (a schedule is made and never stepped), here the cosine of every
    method. One forward pass and two backward passes, there four: no encoder has a part in another one's own loss.

    Args:
        gamma: how much longer an encoder's step is than that of the plain sum of losses.
    """

    name: ClassVar[str] = "mmpareto"
    head: ClassVar[Head] = "both"
    gamma: float = 1.5

    def __post_init__(self) -> None:
        check_range(self.name, "gamma", self.gamma, above=0.0)

    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:  # noqa: ARG002
        """Return the one stage."""
        return together(modalities, epochs)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:  # noqa: ARG002
        """Train on one batch with the encoders' two gradients combined."""
        # Gradients are averaged over devices here: the angle that counts is that of the whole batch's two gradients.
        with context.unsynchronized():
            logits = context.network(batch.inputs)
            losses = {"fused": functional.cross_entropy(logits["joint"], batch.labels) * batch.weight}
            for name in stage.modalities:
                losses[name] = functional.cross_entropy(logits[name], batch.labels) * batch.weight
            context.backward(losses["fused"], "fused", retain_graph=True)
            encoders = {name: context.model.branch(name).encoder for name in stage.modalities}
            joint = {name: context.mean_over_devices(_gradient(encoder)) for name, encoder in encoders.items()}
            for encoder in encoders.values():
                encoder.zero_grad()
            context.backward(torch.stack([losses[name] for name in stage.modalities]).sum(), stage.trained)
        for name, encoder in encoders.items():
            own = context.mean_over_devices(_gradient(encoder))
            _set_gradient(encoder, pareto_gradient(joint[name], own, self.gamma))
        heads = [context.model.joint_head, *(context.model.branch(name).head for name in stage.modalities)]
        for head in heads:
            assert head is not None
            _set_gradient(head, context.mean_over_devices(_gradient(head)))
        context.optimizer.step()
        context.optimizer.zero_grad()
        return {branch: loss.detach() for branch, loss in losses.items()}

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return softmax(z)."""
        return logits["joint"].softmax(dim=1)


def pareto_gradient(joint: Tensor, own: Tensor, gamma: float) -> Tensor:
    """Return γ G max(1, ‖g + u‖/‖G‖) for g = ``joint`` and u = ``own``, both ``[P]``; see :class:`MmPareto`.

    >>> pareto_gradient(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 1.0)  # at right angles: α = 4/5
    tensor([2.0000, 1.0000])
    """
    between, lengths = joint @ own, torch.stack([joint.norm(), own.norm()])
    conflict = (between <= 0) & (lengths > 0).all()
    # In a conflict 0 < α < 1 by itself: both numerator and the difference to the denominator are squares − ⟨g, u⟩.
    shortest = (lengths[1] ** 2 - between) / (joint - own).norm().square()
    alpha = torch.where(conflict, shortest, 0.5)
    combined = 2 * (alpha * joint + (1 - alpha) * own)
    length = combined.norm()
    # Of opposite gradients only rounding errors are left, whose direction means nothing.
    vanished = conflict & (length <= torch.finfo(joint.dtype).eps ** 0.5 * lengths.min())
    factor = torch.where(length > 0, ((joint + own).norm() / length).clamp_min(1.0), 1.0)
    return torch.where(vanished, 0.0, gamma * factor * combined)


def _gradient(module: nn.Module) -> Tensor:
    """Return the gradients of all parameters in one new vector; a parameter without a gradient counts as zero."""
    gradients = ((p, p.grad) for p in module.parameters() if p.requires_grad)
    return torch.cat([(torch.zeros_like(p) if grad is None else grad).flatten() for p, grad in gradients])


def _set_gradient(module: nn.Module, vector: Tensor) -> None:
    """Take over a vector as :func:`_gradient` gives it; parameters without a gradient stay so."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    parts = vector.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(part.view_as(parameter))
