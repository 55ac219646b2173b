"""What a training method is: which head, who trains when, one step, how predictions are fused, what must be saved."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from igm_fast.batch_statistics import frozen_batch_statistics
from igm_fast.models import MultimodalModel
from igm_fast.models.multimodal import Head
from igm_fast.names import nearest
from igm_fast.sam import SAM


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs in which some modalities train and the others are frozen.

    ``index`` counts the stages of a run, ``round`` the turns of one modality.
    """

    index: int
    round: int
    modalities: tuple[str, ...]
    epochs: int

    @property
    def trained(self) -> str:
        """The trained modalities in one word, for tables and files."""
        return "+".join(self.modalities)


@dataclass(frozen=True)
class Selection:
    """The samples of one epoch in their order; every process must hold the same.

    Args:
        rows: ``[N]`` int64, places in the training set; a sample may be left out or come several times.
        kept: ``[N, M]`` bool: which of the model's modalities each of these samples is trained with; None: all. It
            reaches the method as ``batch.kept``; what it means is the method's business.
    """

    rows: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Inputs ``{modality: [B, ...]}`` and labels ``[B]``; losses are multiplied by ``weight`` (1 on one device).

    ``rows`` ``[B]`` int64 (on the CPU) are the samples' places in the training set, ``kept`` ``[B, M]`` is their part
    of the :class:`Selection`.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weight: float = 1.0
    rows: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What a method gets to work with in one stage."""

    model: MultimodalModel  # for its parts; on one device the same as `network`
    network: Callable[..., dict[str, Tensor]]  # the model's forward, whose backward averages gradients over devices
    optimizer: SAM  # fresh in every stage, over the parameters that train in it
    backward: Callable[..., None]  # (loss, branch, retain_graph=False); a loss that is not finite ends the run
    training_set: Callable[[], Iterator[Batch]]  # this device's share, once, in order, without augmentation
    samples: int  # of the training set, on all devices together
    mean_over_devices: Callable[[Tensor], Tensor]
    unsynchronized: Callable[[], AbstractContextManager[None]]  # inside, gradients are this device's alone
    measure: Callable[[str], AbstractContextManager[None]]  # books the time inside on a phase
    batches: Callable[[Selection], Iterator[Batch]]  # this device's share of training batches, as in an epoch
    twin: Callable[[MultimodalModel], Context]  # the same for a copy of the model, with a fresh optimizer
    seed: int = 0  # of the run: what is drawn from it and the place in the run alone needs no state to resume


class Method(ABC):
    """A training method. Subclasses are dataclasses whose fields are the method's options.

    The first line of a subclass's docstring and its ``Args`` section are what ``--help`` shows.
    """

    name: ClassVar[str]
    head: ClassVar[Head] = "separate"
    rho: float = 0.0  # SAM radius; 0 = the plain optimizer

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return the modalities of a data set that this method uses, or raise a ValueError."""
        return list(available)

    @abstractmethod
    def schedule(self, modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
        """Return the stages of a run: see :func:`alternating` and :func:`together`."""

    def prepare(self, stage: Stage, previous: Stage | None, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002
        """Do what the start of a stage asks for; return rows for ``spectra.json``. Not called again on resume."""
        return []

    def sam_options(self) -> dict[str, Any]:
        """Return further options of the stage's :class:`igm_fast.SAM`, beside the radius."""
        return {}

    def heads(self) -> Head:
        """Return which heads the model gets: those of the class, unless an option of the method decides."""
        return self.head

    def attach(self, stage: Stage, context: Context) -> None:  # noqa: B027 - most methods have nothing to connect
        """Connect the state with the stage's new optimizer; called after :meth:`prepare`, and on resume."""

    def learning_rate_factors(self, stage: Stage) -> Mapping[str, float]:  # noqa: ARG002
        """Return by what the learning rate of single modalities is multiplied; asked once per epoch.

        The modalities named at the start of a stage get parameter groups of their own, and must be named in all its
        epochs; everything else has the common rate.
        """
        return {}

    def begin_epoch(self, stage: Stage, epoch: int, context: Context) -> None:  # noqa: B027 - as above
        """Do what an epoch needs before its first batch, in evaluation mode without gradients, as :meth:`prepare` is.

        Called for each epoch on every process, also for the first after a resume: what it sets anew each time needs no
        place in :meth:`state_dict`. Its time is booked where ``context.measure`` says.
        """

    def order(self, stage: Stage, epoch: int, shuffled: Tensor, context: Context) -> Selection:  # noqa: ARG002
        """Return the samples of an epoch in order, called after :meth:`begin_epoch`: here all, as they were shuffled.

        Args:
            stage: the present stage.
            epoch: within the stage.
            shuffled: ``[N]`` int64, a permutation of the training set that depends on seed, round and epoch.
            context: model and optimizer.
        """
        return Selection(shuffled)

    def loss(self, stage: Stage, batch: Batch, context: Context) -> Tensor:
        """Return the mean loss of a batch: here the cross-entropy of the stage's modality."""
        logits = context.network(batch.inputs, stage.modalities)[stage.trained]
        return functional.cross_entropy(logits, batch.labels)

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:  # noqa: ARG002
        """Train on one batch; return its weighted loss per branch.

        With rho > 0 twice forward and backward: the second gradient is that at ω + ε, and the step starts from ω
        (Foret et al. 2021: ε = rho g/‖g‖). Running statistics of batch norm see the first pass only.

        Args:
            stage: the present stage.
            batch: this device's share.
            progress: share of the epoch's batches that came before, 0 ≤ progress < 1.
            context: model and optimizer.
        """
        branch = stage.trained if len(stage.modalities) == 1 else "fused"
        loss = self.loss(stage, batch, context) * batch.weight
        context.backward(loss, branch)
        if self.rho > 0:
            context.optimizer.perturb()
            if context.optimizer.perturbed:  # SAM(every=n) leaves steps out
                context.optimizer.zero_grad()
                with frozen_batch_statistics(context.model):
                    context.backward(self.loss(stage, batch, context) * batch.weight, branch)
        self.modify(stage, context)
        context.optimizer.step()
        context.optimizer.zero_grad()
        return {branch: loss.detach()}

    def modify(self, stage: Stage, context: Context) -> None:  # noqa: B027 - as above
        """Change the gradients (``parameter.grad``, averaged over devices) between backward pass and step."""

    def end_epoch(  # noqa: B027 - as above
        self, stage: Stage, epoch: int, scores: Mapping[str, Mapping[str, float]], context: Context
    ) -> None:
        """Draw conclusions from an epoch; called on every process, before the checkpoint to resume from is written.

        The epoch was a candidate for selection before that: weights that change here are judged after the next epoch.

        Args:
            stage: the present stage.
            epoch: within the stage.
            scores: on the validation split, per modality and for ``"fused"``: ``loss``, ``accuracy``, ``map`` and
                ``macro_f1``. The same numbers on every process.
            context: model and optimizer.
        """

    def fuse(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return fused probabilities ``[B, classes]``: here the mean of the modalities' softmax."""
        return torch.stack([value.softmax(dim=1) for value in logits.values()]).mean(dim=0)

    def warnings(self) -> list[str]:
        """Return what the user must know about the result; it is written into ``result.json``."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, None, dicts, lists and tuples."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - as above
        """Take over what :meth:`state_dict` returned."""


def alternating(modalities: Sequence[str], epochs: int, rounds: int) -> list[Stage]:
    """Return stages in which modalities take turns; each trains ``epochs`` epochs in all, divided over the rounds.

    >>> [(stage.trained, stage.epochs) for stage in alternating(["a", "b"], 5, 2)]
    [('a', 3), ('b', 3), ('a', 2), ('b', 2)]
    """
    shortest, longer = divmod(epochs, rounds)
    return [
        Stage(turn * len(modalities) + place, turn, (name,), shortest + (turn < longer))
        for turn in range(rounds)
        for place, name in enumerate(modalities)
    ]


def together(modalities: Sequence[str], epochs: int) -> list[Stage]:
    """Return the one stage in which all modalities train."""
    return [Stage(0, 0, tuple(modalities), epochs)]


def at_least_two(method: str, available: Sequence[str], purpose: str) -> list[str]:
    """Return the modalities of a data set for a method that relates modalities to one another.

    Raises:
        ValueError: there is only one.
    """
    if len(available) < 2:
        raise ValueError(f"{method}: the data have one modality, {available[0]}; expected at least two {purpose}")
    return list(available)


def check_range(method: str, name: str, value: float, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """Raise a ValueError unless an option is finite, greater than ``above`` and at least ``least``."""
    if not (above < value < math.inf and value >= least):
        expected = f"a number > {above:g}" if above > -math.inf else f"a number ≥ {least:g}"
        raise ValueError(f"{method}: {name} is {value}, expected {expected}")


def check_share(method: str, name: str, value: float) -> None:
    """Raise a ValueError unless an option is a share: at least 0, less than 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{method}: {name} is {value}, expected a share: at least 0, less than 1")


def check_choice(method: str, name: str, value: str, known: Sequence[str]) -> None:
    """Raise a ValueError unless an option is one of the known words."""
    if value not in known:
        raise ValueError(f"{method}: {nearest(value, known, name)}")
