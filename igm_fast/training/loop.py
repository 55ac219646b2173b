"""The training loop: stages, epochs, batches, in the order of the paper's algorithm box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from igm_fast.data import ModalitySpec, MultimodalData
from igm_fast.methods.base import Batch, Context, Method, Selection, Stage
from igm_fast.models import MultimodalModel, build_encoder
from igm_fast.sam import SAM
from igm_fast.training import batches, checkpoint, evaluation
from igm_fast.training.clock import Clock
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import broadcast_buffers, mean_over_devices
from igm_fast.training.progress import TrainingProgress
from igm_fast.training.run_folder import RunFolder


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what to try."""


@dataclass
class Position:
    """The next epoch to train, and the best one so far."""

    stage: int = 0
    epoch: int = 0  # within the stage
    global_epoch: int = 0
    rows: int = 0  # lines of metrics.csv
    best_epoch: int = -1  # a global epoch
    best_score: float = -math.inf


def build_model(method: Method, data: MultimodalData, config: TrainConfig) -> MultimodalModel:
    """Return the model that a method trains, with first weights that depend on the seed.

    Each modality has a seed of its own: its first weights are the same in every method and beside any other modality,
    so that methods compared on one seed start from the same point.

    Raises:
        ValueError: the method cannot use the data's modalities.
    """
    specs = {spec.name: spec for spec in data.modalities}
    used = [specs[name] for name in method.modalities(list(specs))]

    def seeded_encoder(spec: ModalitySpec, width: int) -> nn.Module:
        torch.manual_seed(batches.derived_seed("weights", config.seed, spec.name))  # also for the branch's head
        return build_encoder(spec, width)

    model = MultimodalModel(used, data.num_classes, method.heads(), config.width, encoder=seeded_encoder)
    torch.manual_seed(config.seed)
    return model


def build_optimizer(config: TrainConfig, method: Method, model: nn.Module, apart: Iterable[str] = ()) -> SAM:
    """Return a fresh optimizer over the parameters that train now.

    Args:
        config: learning rate, rule and decay.
        method: whose radius of SAM it has.
        model: what trains.
        apart: modalities whose parameters make a group of their own, with the modality's name under ``"modality"``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for name in apart:
        assert isinstance(model, MultimodalModel)
        own = set(model.branch(name).parameters())
        groups.append({"params": [parameter for parameter in parameters if parameter in own], "modality": name})
        parameters = [parameter for parameter in parameters if parameter not in own]
    if parameters or not groups:
        groups.append({"params": parameters})
    return SAM(
        groups,
        base=config.optimizer,
        lr=config.lr,
        rho=method.rho,
        weight_decay=config.weight_decay,
        momentum=config.momentum if config.optimizer == "sgd" else 0.0,
        **method.sam_options(),
    )


def freeze_all_but(model: MultimodalModel, modalities: Sequence[str]) -> None:
    """Let some branches train; the others keep every bit: no gradients, and batch norm in evaluation mode."""
    model.train()
    for name in model.modalities:
        branch = model.branch(name)
        branch.requires_grad_(name in modalities)
        branch.train(name in modalities)


class Trainer:
    """Trains one method on one data set.

    Args:
        config: settings.
        method: what to train.
        data: what to train on.
        fabric: launched.
        run: the run's folder; None on every process but the first.
        progress: entered.
        saved: the content of the checkpoint to resume from.

    Raises:
        ValueError: method and data do not fit together.
    """

    def __init__(
        self,
        config: TrainConfig,
        method: Method,
        data: MultimodalData,
        fabric: Fabric,
        run: RunFolder | None,
        progress: TrainingProgress,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.method, self.data = config, method, data
        self.fabric, self.run, self.progress = fabric, run, progress
        self.model = build_model(method, data, config)
        self.network = fabric.setup_module(self.model)
        self.schedule = method.schedule(self.model.modalities, config.epochs, config.stages)
        self.position, self.clock = Position(), Clock()
        self._share = batches.Share(fabric.global_rank, fabric.world_size, fabric.device)
        self._per_epoch = self._count_batches(len(data.train))  # an epoch may have others: Method.order
        self._batch = 0  # for messages
        self._saved = saved
        if saved is not None:
            self.position, self.clock = Position(**saved["position"]), Clock(saved["timing"])
            self.model.load_state_dict(saved["model"])
            method.load_state_dict(saved["method"])
            checkpoint.set_random_state(saved["random"])

    def train(self) -> dict[str, Any]:
        """Train what is left to train; return the content of ``result.json`` (on the first process).

        Raises:
            TrainingError: a loss is not finite.
        """
        self.progress.begin(self.schedule, self.position.global_epoch)
        for stage in self.schedule[self.position.stage :]:
            self.clock.enter_stage(stage.index, stage.trained)
            freeze_all_but(self.model, stage.modalities)
            context = self._context(stage)
            if self.position.epoch == 0:
                self._prepare(stage, context)
            self.method.attach(stage, context)
            if self.position.epoch > 0 and self._saved is not None:
                context.optimizer.load_state_dict(self._saved["optimizer"])
            for epoch in range(self.position.epoch, stage.epochs):
                with evaluation.evaluation_mode(self.model):
                    self.method.begin_epoch(stage, epoch, context)
                with self.clock("train"):
                    losses, rates = self._train_epoch(stage, epoch, context)
                    broadcast_buffers(self.fabric, self.model)
                self._advance(stage, epoch)
                scores: dict[str, dict[str, float]] = {}
                if self.run is not None:
                    scores = self._validate(stage, epoch, losses, rates)
                    self._keep_if_best(stage, epoch, scores)
                self.method.end_epoch(stage, epoch, self.fabric.broadcast(scores), context)
                if self.run is not None:
                    self._save(context.optimizer)
                    self.progress.epoch(stage, epoch, losses, scores)
        result = self._finish() if self.run is not None else {}
        self.fabric.barrier()
        return result

    def _context(
        self, stage: Stage, model: MultimodalModel | None = None, network: Callable[..., Any] | None = None
    ) -> Context:
        model = self.model if model is None else model

        def backward(loss: Tensor, branch: str, *, retain_graph: bool = False) -> None:
            # Read at once, not at the epoch's end: a step with a NaN would spoil the weights before anyone looks.
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss of {branch} is {value} in stage {stage.index + 1} ({stage.trained}), epoch "
                    f"{self.position.epoch + 1}, batch {self._batch + 1} of {self._per_epoch}; expected a finite "
                    "number. Look for NaN in the inputs, or lower --lr"
                )
            self.fabric.backward(loss, retain_graph=retain_graph)

        network = self.network if network is None else network
        several = self.fabric.world_size > 1
        return Context(
            model=model,
            network=network,
            optimizer=build_optimizer(self.config, self.method, model, self.method.learning_rate_factors(stage)),
            backward=backward,
            training_set=partial(batches.ordered_batches, self.data.train, evaluation.EVALUATION_BATCH, self._share),
            samples=len(self.data.train),
            mean_over_devices=partial(mean_over_devices, self.fabric),
            unsynchronized=partial(self.fabric.no_backward_sync, network, enabled=several),  # type: ignore[arg-type]
            measure=self.clock,
            batches=self._batches,
            twin=lambda copy: self._context(stage, copy, self.fabric.setup_module(copy)),
        )

    def _batches(self, selection: Selection) -> Iterator[Batch]:
        size, share = self.config.batch_size, self._share
        return batches.training_batches(self.data.train, selection.rows, size, share, selection.kept)

    def _prepare(self, stage: Stage, context: Context) -> None:
        previous = self.schedule[stage.index - 1] if stage.index > 0 else None
        with evaluation.evaluation_mode(self.model):
            spectra = self.method.prepare(stage, previous, context)
        if self.run is not None and spectra:
            self.run.add_spectra(spectra)

    def _train_epoch(self, stage: Stage, epoch: int, context: Context) -> tuple[dict[str, float], dict[str, float]]:
        """Return mean losses by branch, and the epoch's first learning rates by what they are for."""
        shuffled = batches.shuffled(len(self.data.train), self.config.seed, stage.round, epoch)
        selection = self.method.order(stage, epoch, shuffled, context)
        self._per_epoch = self._count_batches(len(selection.rows))
        factors = self.method.learning_rate_factors(stage)
        sums: dict[str, Tensor] = {}
        stream = self._batches(selection)
        for self._batch, batch in enumerate(stream):
            done = (epoch + self._batch / self._per_epoch) / stage.epochs
            for group in context.optimizer.param_groups:
                group["lr"] = cosine(self.config.lr, done) * factors.get(group.get("modality", ""), 1.0)
            losses = self.method.step(stage, batch, self._batch / self._per_epoch, context)
            for branch, loss in losses.items():
                sums[branch] = sums.get(branch, 0.0) + loss
        means = {branch: mean_over_devices(self.fabric, total / self._per_epoch) for branch, total in sums.items()}
        common = cosine(self.config.lr, epoch / stage.epochs)
        whole = stage.trained if len(stage.modalities) == 1 else "fused"
        rates = {whole: common} | {name: common * factor for name, factor in factors.items()}
        return {branch: float(mean) for branch, mean in means.items()}, rates

    def _count_batches(self, samples: int) -> int:
        count = batches.batches_per_epoch(samples, self.config.batch_size, self.fabric.world_size)
        if count == 0:
            least = 2 * self.fabric.world_size
            raise ValueError(f"{samples} training samples, expected at least {least}: two per device")
        return count

    def _advance(self, stage: Stage, epoch: int) -> None:
        self.position.global_epoch += 1
        self.position.epoch = epoch + 1
        if self.position.epoch == stage.epochs:
            self.position.stage, self.position.epoch = stage.index + 1, 0

    def _validate(
        self, stage: Stage, epoch: int, losses: Mapping[str, float], rates: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        """Measure every branch on the validation split and write the epoch's rows."""
        assert self.run is not None
        labels = self.data.validation.labels
        with self.clock("evaluation"):
            outputs = evaluation.predict(self.model, self.method, self.data.validation, self.fabric.device)
            scores = evaluation.all_scores(outputs, labels)
            measured = {b: {"loss": evaluation.loss(p, labels), **scores[b]} for b, p in outputs.items()}
        place = (self.position.global_epoch - 1, stage.index, epoch, stage.trained)
        rows = [(*place, "train", branch, "loss", loss) for branch, loss in losses.items()]
        rows += [(*place, "train", branch, "lr", rate) for branch, rate in rates.items()]
        for branch, values in measured.items():
            rows += [(*place, "validation", branch, metric, value) for metric, value in values.items()]
        self.run.log(rows)
        self.position.rows += len(rows)
        return measured

    def _keep_if_best(self, stage: Stage, epoch: int, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Keep the weights if they are the best so far."""
        assert self.run is not None
        score = measured[self._headline]["accuracy"]
        trained = {name for earlier in self.schedule[: stage.index + 1] for name in earlier.modalities}
        # Before each modality had its turn, the fused prediction holds untrained branches. Ties: the later epoch.
        if len(trained) < len(self.model.modalities) or score < self.position.best_score:
            return
        self.position.best_epoch, self.position.best_score = self.position.global_epoch - 1, score
        scores = {b: {metric: values[metric] for metric in evaluation.METRICS} for b, values in measured.items()}
        best = {"model": self.model.state_dict(), "validation": scores, "fingerprint": self.data.fingerprint}
        place = {"stage": stage.index, "epoch": epoch, "global_epoch": self.position.best_epoch}
        with self.clock("checkpoint"):
            checkpoint.save(self.run.best, {**best, **place})

    def _save(self, optimizer: SAM) -> None:
        """Write the checkpoint to resume from."""
        assert self.run is not None
        with self.clock("checkpoint"):
            self.run.save_last(
                {
                    "position": asdict(self.position),
                    "model": self.model.state_dict(),
                    "optimizer": optimizer.state_dict() if self.position.epoch > 0 else None,
                    "method": self.method.state_dict(),
                    "random": checkpoint.random_state(),
                    "timing": self.clock.timing(),
                    "global_epoch": self.position.global_epoch - 1,
                    "fingerprint": self.data.fingerprint,
                }
            )
        self.run.write_json("timing.json", self.clock.timing())

    @property
    def _headline(self) -> str:
        """The branch that selects: fused, or the only modality."""
        return "fused" if len(self.model.modalities) > 1 else self.model.modalities[0]

    def _finish(self) -> dict[str, Any]:
        """Evaluate the selected weights on test, once, and write the result."""
        assert self.run is not None
        best = self.run.load_best()
        if best["global_epoch"] != self.position.best_epoch:
            raise checkpoint.CheckpointError(
                f"{self.run.best} holds epoch {best['global_epoch']}, expected the selected epoch "
                f"{self.position.best_epoch}. The folder was changed, or resumed where sums round differently; "
                "train again with --overwrite"
            )
        self.model.load_state_dict(best["model"])
        labels = self.data.test.labels
        with self.clock("evaluation"):
            outputs = evaluation.predict(self.model, self.method, self.data.test, self.fabric.device)
            scores = evaluation.all_scores(outputs, labels)
        place = (best["global_epoch"], best["stage"], best["epoch"], self.schedule[best["stage"]].trained)
        self.run.log([(*place, "test", b, metric, v) for b, values in scores.items() for metric, v in values.items()])
        self.run.write_predictions(labels, outputs)
        self.run.write_json("timing.json", self.clock.timing())
        result = {
            "method": self.method.name,
            "data": self.data.name,
            "seed": self.config.seed,
            "classes": list(self.data.classes),
            "modalities": self.model.modalities,
            "data_fingerprint": self.data.fingerprint,
            "selected_epoch": best["global_epoch"],
            "validation": best["validation"],
            "test": scores,
            "num_test": len(labels),
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "warnings": self.method.warnings(),
            "seconds": self.clock.total,
            "processor_seconds": self.clock.processor,
            "peak_memory": self.clock.peak_memory,
        }
        self.run.write_json("result.json", result)
        self.run.close()
        return result


def cosine(lr: float, done: float) -> float:
    """Return the learning rate after a share of a stage: half a cosine from ``lr`` to 0."""
    return lr * 0.5 * (1.0 + math.cos(math.pi * done))
