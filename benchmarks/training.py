"""What does IGM's training cost? One update of each modality, split into phases, beside SGD, SAM, MLA and the authors'.

Cases: two ResNet-18 on made-up tensors of CREMA-D's shapes (a 257×188 spectrogram, a 224×224 picture, six classes), and
the embedded watch data with their small encoders. Everyone runs the methods of ``igm_fast.methods``, but for the
authors' step, which is written anew from a description of their code (see below; it has no 1-D convolutions, which the
watch's encoders are made of). Results differ by design: nothing is compared but time, and first losses must be finite.

Phases are clocked inside of the same steps: data, forward, backward, second pass (forward and backward at ω + ε) and
update. Projection is the update with projectors less the update without. Statistics and decomposition happen once a
stage; they are measured apart and shared out over the steps of a stage of so many epochs as ``STAGE_EPOCHS`` says.
SAM at every n-th step (``perturbation="periodic"``) is left out: its steps cost now those of SAM, now those of SGD.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import official, training_figure
from benchmarks.agreement import DisagreementError, Facts
from benchmarks.networks import AUDIO, VIDEO, Source, batch
from benchmarks.timing import OURS, Effort, Record, compare
from igm_fast import ActivationCovariance, flat_projectors, match_layers
from igm_fast.data import ModalitySpec
from igm_fast.data.sets import watch
from igm_fast.methods import Batch, Context, Method, Stage
from igm_fast.methods.igm import Igm
from igm_fast.methods.igm_no_sam import IgmNoSam
from igm_fast.methods.joint import Joint
from igm_fast.methods.mla import Mla
from igm_fast.methods.sam import Sam
from igm_fast.models import MultimodalModel, build_encoder, build_resnet18
from igm_fast.sam import SAM
from igm_fast.training.batches import Share, shuffled, training_batches

QUESTION = "a training step of IGM, split into phases, against SGD, SAM, MLA and the authors' algorithm"

OPTIONS: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
RHO, TAU = 0.05, 0.4
STAGE_EPOCHS = {"watch": 6, "resnet": 25}  # the package's default; the authors' shortest for CREMA-D
CREMA_D = 6698  # training samples
PHASES = ("data", "forward", "backward", "second pass", "update")
AUTHORS = "authors' algorithm"
draw = training_figure.draw


@dataclass(frozen=True)
class Case:
    """A model's inputs, and how long a stage is."""

    name: str
    specs: list[ModalitySpec]
    encoder: Callable[[ModalitySpec, int], nn.Module]
    width: int
    classes: int
    batches: list[Callable[[], Batch]]  # each makes one when it is called: the time is that of the data
    steps_per_stage: int
    looks: int  # batches that a stage's statistics look at


class Clock:
    """Seconds by phase, one list entry per step; what is in no phase is left out."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._step: defaultdict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """Begin a step."""
        self._step = defaultdict(float)

    def end(self) -> None:
        """End it."""
        self.steps.append(dict(self._step))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Book the time inside."""
        began = time.perf_counter()
        yield
        self._step[phase] += time.perf_counter() - began

    def medians(self) -> Facts:
        """Return milliseconds by phase, the first step left out."""
        steps = self.steps[1:] or self.steps
        return {f"{phase}_ms": 1e3 * float(np.median([step.get(phase, 0.0) for step in steps])) for phase in PHASES}


@dataclass
class Contestant:
    """Steps of one method; a call makes one update of each modality and books its phases."""

    parts: list[tuple[Stage, Method, Context]]
    source: Iterator[Callable[[], Batch]]
    clock: Clock

    def __call__(self) -> float:
        """Make the steps and return the first loss."""
        self.clock.begin()
        with self.clock("data"):
            given = next(self.source)()
        losses = [method.step(stage, given, 0.0, context) for stage, method, context in self.parts]
        self.clock.end()
        return float(next(iter(losses[0].values())))


class ClockedSAM(SAM):
    """Books perturb and step as update."""

    clock: Clock

    def perturb(self) -> None:
        """Perturb."""
        with self.clock("update"):
            super().perturb()

    def step(self, closure: Any = None) -> Any:
        """Step."""
        with self.clock("update"):
            return super().step(closure)


class AuthorsStep(Method):
    """A step of the authors' code (njustkmg/IJCAI25-IGM, 2025), written anew from a description of it.

    One forward pass, then gradients of the encoder and of the head (each by a call of its own, through the whole
    network and through the head), noise of a vanishing size on the head's weights, the head again on the stored
    features, one backward pass of the mixed loss, and a dense T on each linear layer of a matching shape.
    """

    name = "authors"

    def __init__(self, T: Mapping[str, Tensor]) -> None:
        self.T = T

    def schedule(self, modalities: Any, epochs: int, rounds: int) -> list[Stage]:
        """Not asked."""
        raise NotImplementedError

    def step(self, stage: Stage, batch: Batch, progress: float, context: Context) -> dict[str, Tensor]:  # noqa: ARG002
        """Update one modality."""
        branch, clock = context.model.branch(stage.trained), context.optimizer.clock  # type: ignore[attr-defined]
        head = branch.head
        assert head is not None
        with clock("forward"):
            features = branch.encoder(batch.inputs[stage.trained])
            loss = functional.cross_entropy(head(features), batch.labels)
        with clock("second pass"):
            torch.autograd.grad(loss, list(branch.encoder.parameters()), retain_graph=True)
            gradients = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
            with torch.no_grad():
                for parameter, gradient in zip(head.parameters(), gradients, strict=True):
                    parameter.add_(1e-10 * gradient / gradient.norm())
            loss = 0.7 * functional.cross_entropy(head(features), batch.labels) + 0.3 * functional.cross_entropy(
                head(features), batch.labels
            )
        with clock("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with clock("update"):
            assert head.weight.grad is not None
            for T in self.T.values():
                if T.shape[0] == head.weight.shape[1]:
                    head.weight.grad = head.weight.grad @ T
        context.optimizer.step()
        context.optimizer.zero_grad()
        return {stage.trained: loss.detach()}


def run(effort: Effort) -> Iterator[Record]:
    """Measure both cases."""
    quick = effort.scale == "quick"
    for case in (_watch(), _resnet(quick)):
        yield from _measure(case, effort)


def _measure(case: Case, effort: Effort) -> list[Record]:
    statistics = _statistics(case)
    projectors = statistics["projectors"]

    def contestant(method: Method, *, turns: bool, projected: bool = False) -> Contestant:
        return _contestant(case, method, projectors if projected else {}, turns=turns)

    ours = {
        "training IGM": contestant(Igm(rho=RHO), turns=True, projected=True),
        "training IGM w/o SAM": contestant(IgmNoSam(), turns=True, projected=True),
        "training IGM, head": contestant(Igm(rho=RHO, perturbation="head"), turns=True, projected=True),
        "training IGM, momentum": contestant(Igm(rho=RHO, perturbation="momentum"), turns=True, projected=True),
    }
    peers: dict[str, Contestant] = {}
    if statistics["dense"]:
        peers[AUTHORS] = _contestant(case, AuthorsStep(statistics["dense"]), {}, turns=True)
    references = {
        "SGD in turns": contestant(IgmNoSam(), turns=True),
        "SAM in turns": contestant(Igm(rho=RHO), turns=True),
        "joint SGD": contestant(Joint(), turns=False),
        "joint SAM": contestant(Sam(rho=RHO), turns=False),
        "MLA": contestant(Mla(), turns=False),
    }
    records = compare(case.name, ours=ours, peers=peers, references=references, agree=_finite, effort=effort)
    plain = {"training IGM": "SAM in turns", "training IGM, momentum": "SAM in turns"}
    contestants = {**ours, **peers, **references}
    phases = {name: one.clock.medians() for name, one in contestants.items()}
    for record in records:
        update = float(phases[record["name"]]["update_ms"])
        without = float(phases[plain.get(record["name"], "SGD in turns")]["update_ms"])
        projection = max(update - without, 0.0)
        mine = {**phases[record["name"]], "update_ms": update - projection, "projection_ms": projection}
        record["facts"][OURS] |= {**mine, **_per_step(case, statistics["ours"])}
        for name in peers:
            record["facts"][name] |= {**phases[name], **_per_step(case, statistics["authors"])}
        for name in references:
            record["facts"][name] = dict(phases[name])
    return records


def _finite(results: Mapping[str, float]) -> dict[str, Facts]:
    for name, loss in results.items():
        if not math.isfinite(loss):
            raise DisagreementError(f"{name}: the first loss is {loss}, expected a finite number")
    return {name: {"first_loss": loss} for name, loss in results.items()}


def _per_step(case: Case, seconds: Mapping[str, float]) -> Facts:
    """Milliseconds per step of what happens once a stage, per modality."""
    return {
        "statistics_ms": 1e3 * seconds["statistics"] * case.looks / case.steps_per_stage,
        "decomposition_ms": 1e3 * seconds["decomposition"] / case.steps_per_stage,
    }


def _statistics(case: Case) -> dict[str, Any]:
    """Projectors of both modalities, ours and the authors', and seconds: of statistics per batch, of decompositions."""
    model = _model(case, IgmNoSam()).eval()
    given = [make() for make in case.batches[:2]]
    ours: defaultdict[str, float] = defaultdict(float)
    theirs: defaultdict[str, float] = defaultdict(float)
    found: dict[str, Any] = {}
    dense: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in model.modalities:
            branch = model.branch(name)
            branch(given[0].inputs[name])  # the first call of a shape is slower
            forward = _seconds(lambda: [branch(one.inputs[name]) for one in given])  # noqa: B023
            covariance = ActivationCovariance(branch)
            with covariance:
                seen = _seconds(lambda: [branch(one.inputs[name]) for one in given])  # noqa: B023
            ours["statistics"] += max(seen - forward, 0.0) / len(given)
            ours["decomposition"] += _seconds(lambda: found.update({name: flat_projectors(covariance, TAU)}))  # noqa: B023
            if any(isinstance(layer, nn.Conv1d) for layer in branch.modules()):
                continue
            hooks = official.BatchMeanHooks(branch)
            with hooks:
                seen = _seconds(lambda: [branch(one.inputs[name]) for one in given])  # noqa: B023
            theirs["statistics"] += max(seen - forward, 0.0) / len(given)
            theirs["decomposition"] += _seconds(lambda: dense.update(official.projectors(hooks.sums, TAU)))  # noqa: B023
    return {"projectors": found, "dense": dense, "ours": ours, "authors": theirs}


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _contestant(case: Case, method: Method, projectors: Mapping[str, Any], *, turns: bool) -> Contestant:
    model = _model(case, method)
    names = tuple(model.modalities)
    contestant = Contestant([], cycle(case.batches), Clock())
    for index, stage in enumerate(((name,) for name in names) if turns else (names,)):
        parameters = [p for name in stage for p in model.branch(name).parameters()] if turns else model.parameters()
        optimizer = ClockedSAM(parameters, "sgd", rho=method.rho, **OPTIONS, **method.sam_options())
        optimizer.clock = contestant.clock
        if projectors:
            other = names[(names.index(stage[0]) + 1) % len(names)]
            branch = model.branch(stage[0])
            fitting = {
                layer: T
                for layer, T in projectors[other].items()
                if branch.get_submodule(layer).weight[0].numel() == T.dim
            }
            optimizer.set_projectors(match_layers(branch, fitting))
        contestant.parts.append((Stage(index, 0, stage, 1), method, _context(model, optimizer, contestant.clock)))
    return contestant


def _model(case: Case, method: Method) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(case.specs, case.classes, method.heads(), case.width, encoder=case.encoder)


def _context(model: MultimodalModel, optimizer: SAM, clock: Clock) -> Context:
    """What a step needs; the rest, of which these methods' steps use nothing, is left out."""

    def network(*arguments: Any) -> dict[str, Tensor]:
        with clock("second pass" if second() else "forward"):
            return model(*arguments)  # type: ignore[no-any-return]

    def backward(loss: Tensor, _branch: str) -> None:
        with clock("second pass" if second() else "backward"):
            loss.backward()  # type: ignore[no-untyped-call]

    def second() -> bool:
        return optimizer.perturbed and optimizer.direction == "gradient"

    given: dict[str, Any] = {"model": model, "network": network, "optimizer": optimizer, "backward": backward}
    given["mean_over_devices"] = lambda tensor: tensor
    return Context(**{one.name: given.get(one.name) for one in fields(Context)})


def _watch() -> Case:
    data = watch.load(seed=0)
    share, size = Share(0, 1, torch.device("cpu")), 32
    order = shuffled(len(data.train), 0)
    per_epoch = len(data.train) // size

    def make(index: int) -> Callable[[], Batch]:
        rows = order[index * size : (index + 1) * size]
        return lambda: next(training_batches(data.train, rows, size, share))

    epochs = STAGE_EPOCHS["watch"]
    looks = -(-len(data.train) // size)
    made = [make(index) for index in range(per_epoch)]
    specs = list(data.modalities)
    name = f"watch, batches of {size}"
    return Case(name, specs, build_encoder, 64, data.num_classes, made, epochs * per_epoch, looks)


def _resnet(quick: bool) -> Case:
    sources = (Source("audio", 1, 32, 24), Source("video", 3, 32, 32)) if quick else (AUDIO, VIDEO)
    size = 4 if quick else 8
    inputs = [{source.name: batch(source, size, seed) for source in sources} for seed in range(2)]
    labels = torch.arange(size) % 6
    specs = [ModalitySpec(name, "image", tuple(x.shape[1:])) for name, x in inputs[0].items()]
    made = [lambda one=one: Batch(one, labels) for one in inputs]
    per_epoch = CREMA_D // size
    steps = STAGE_EPOCHS["resnet"] * per_epoch
    name = f"two ResNet-18, batches of {size}"
    return Case(name, specs, build_resnet18, 32 if quick else 512, 6, made, steps, per_epoch)
