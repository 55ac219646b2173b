"""The training loop: stages, epochs, batches, in the order of the paper's algorithm box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from igm_fast.data import MultimodalData, PartDataset
from igm_fast.methods.base import Batch, Context, Method, Selection, Stage
from igm_fast.models import MultimodalModel
from igm_fast.sam import SAM
from igm_fast.training import batches, checkpoint, evaluation
from igm_fast.training.building import build_model, build_optimizer, freeze_all_but, load_sources
from igm_fast.training.clock import Clock
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import broadcast_buffers, broadcast_state, mean_over_devices
from igm_fast.training.progress import TrainingProgress
from igm_fast.training.run_folder import RunFolder
from igm_fast.training.schedules import learning_rate, with_shares

SELECTED_ON_TEST = (
    "the weights were selected on the test set (--selection test): its scores say how well it was searched, not what "
    "to expect of new data"
)


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
        if saved is None:
            self._load_sources()
        self.network = fabric.setup_module(self.model)
        shares = config.stage_shares([spec.name for spec in data.modalities])
        self.schedule = with_shares(method.schedule(self.model.modalities, config.epochs, config.stages), shares)
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
        if self.config.selection == "test":
            self.progress.say(f"warning: {SELECTED_ON_TEST}")
        for stage in self.schedule[self.position.stage :]:
            self.clock.enter_stage(stage.index, stage.trained)
            if self.config.stage_start == "best" and stage.index > 0 and self.position.epoch == 0:
                self._return_to_best()
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
                    measured = self._measure(stage, epoch, losses, rates)
                    self._keep_if_best(stage, epoch, measured)
                    scores = measured["validation"]
                self.method.end_epoch(stage, epoch, self.fabric.broadcast(scores), context)
                if self.run is not None:
                    self._save(context.optimizer)
                    if self.config.keep_stages and epoch + 1 == stage.epochs:
                        checkpoint.save(self.run.stage(stage.index), self._weights(stage, epoch, scores))
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
            training_set=partial(
                batches.ordered_batches,
                self.data.train,
                evaluation.EVALUATION_BATCH,
                self._share,
                workers=self.config.workers,
            ),
            samples=len(self.data.train),
            mean_over_devices=partial(mean_over_devices, self.fabric),
            unsynchronized=partial(self.fabric.no_backward_sync, network, enabled=several),  # type: ignore[arg-type]
            measure=self.clock,
            batches=self._batches,
            twin=lambda copy: self._context(stage, copy, self.fabric.setup_module(copy)),
            seed=self.config.seed,
        )

    def _batches(self, selection: Selection) -> Iterator[Batch]:
        stage = self.schedule[self.position.stage]
        return batches.training_batches(
            self.data.train,
            selection.rows,
            self.config.batch_size,
            self._share,
            selection.kept,
            key=(self.config.seed, stage.round, stage.index, self.position.epoch),
            workers=self.config.workers,
        )

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
            done = self._batch / self._per_epoch
            rate = learning_rate(self.config.schedule, self.config.lr, epoch, done, stage.epochs)
            for group in context.optimizer.param_groups:
                group["lr"] = rate * factors.get(group.get("modality", ""), 1.0)
            losses = self.method.step(stage, batch, done, context)
            for branch, loss in losses.items():
                sums[branch] = sums.get(branch, 0.0) + loss
        means = {branch: mean_over_devices(self.fabric, total / self._per_epoch) for branch, total in sums.items()}
        common = learning_rate(self.config.schedule, self.config.lr, epoch, 0.0, stage.epochs)
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

    def _measure(
        self, stage: Stage, epoch: int, losses: Mapping[str, float], rates: Mapping[str, float]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Measure every branch on the validation split, and on the one that selects; write the epoch's rows."""
        assert self.run is not None
        place = (self.position.global_epoch - 1, stage.index, epoch, stage.trained)
        rows = [(*place, "train", branch, "loss", loss) for branch, loss in losses.items()]
        rows += [(*place, "train", branch, "lr", rate) for branch, rate in rates.items()]
        measured: dict[str, dict[str, dict[str, float]]] = {}
        for split in dict.fromkeys(("validation", self.config.selection)):
            part = self.data.parts[split]
            with self.clock("evaluation"):
                outputs = self._predict(part)
                scores = evaluation.all_scores(outputs, part.labels)
                measured[split] = {
                    branch: {"loss": evaluation.loss(probabilities, part.labels), **scores[branch]}
                    for branch, probabilities in outputs.items()
                }
            for branch, values in measured[split].items():
                rows += [(*place, split, branch, metric, value) for metric, value in values.items()]
        self.run.log(rows)
        self.position.rows += len(rows)
        return measured

    def _predict(self, part: PartDataset) -> dict[str, Tensor]:
        return evaluation.predict(self.model, self.method, part, self.fabric.device, self.config.workers)

    def _keep_if_best(
        self, stage: Stage, epoch: int, measured: Mapping[str, Mapping[str, Mapping[str, float]]]
    ) -> None:
        """Keep the weights if they are the best so far."""
        assert self.run is not None
        score = measured[self.config.selection][self._headline][self.config.select_by]
        if not self._is_candidate(stage, score):
            return
        self.position.best_epoch, self.position.best_score = self.position.global_epoch - 1, score
        with self.clock("checkpoint"):
            if self.config.stage_start == "best":
                # Killed before `last` is written, a run may be a stage behind its best weights, and begins from others.
                checkpoint.keep_previous(self.run.best, self.run.best_before)
            checkpoint.save(self.run.best, self._weights(stage, epoch, measured["validation"]))

    def _is_candidate(self, stage: Stage, score: float) -> bool:
        if self.config.stage_start == "best":  # as in the authors' code: every epoch, and ties go to the earlier one
            return score > self.position.best_score
        trained = {name for earlier in self.schedule[: stage.index + 1] for name in earlier.modalities}
        # Before each modality had its turn, the fused prediction holds untrained branches. Ties: the later epoch.
        return len(trained) == len(self.model.modalities) and score >= self.position.best_score

    def _weights(self, stage: Stage, epoch: int, validation: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """Return the present weights and where they are from."""
        scores = {b: {metric: values[metric] for metric in evaluation.METRICS} for b, values in validation.items()}
        return {
            "model": self.model.state_dict(),
            "validation": scores,
            "fingerprint": self.data.fingerprint,
            "stage": stage.index,
            "epoch": epoch,
            "global_epoch": self.position.global_epoch - 1,
        }

    def _return_to_best(self) -> None:
        """Begin a stage from the weights selected so far."""
        if self.run is not None:
            self.model.load_state_dict(self.run.load_best(self.position.best_epoch)["model"])
        broadcast_state(self.fabric, self.model)

    def _load_sources(self) -> None:
        """Load pretrained encoders, and say what fitted."""
        loaded = load_sources(self.model, self.config)
        if self.run is None or not loaded:
            return
        for name, report in loaded.items():
            self.progress.say(f"{name} from {report}")
        self.run.write_json("pretrained.json", {name: asdict(report) for name, report in loaded.items()})

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
        best = self.run.load_best(self.position.best_epoch)
        self.model.load_state_dict(best["model"])
        labels = self.data.test.labels
        with self.clock("evaluation"):
            outputs = self._predict(self.data.test)
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
            "selected_on": self.config.selection,
            "selected_by": self.config.select_by,
            "validation": best["validation"],
            "test": scores,
            "num_test": len(labels),
            "class_counts": {
                part: torch.bincount(samples.labels, minlength=self.data.num_classes).tolist()
                for part, samples in self.data.parts.items()
            },
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "warnings": self._warnings(),
            "skipped": [str(problem) for problem in self.data.skipped],
            "seconds": self.clock.total,
            "processor_seconds": self.clock.processor,
            "peak_memory": self.clock.peak_memory,
        }
        self.run.write_json("result.json", result)
        self.run.close()
        return result

    def _warnings(self) -> list[str]:
        """Return what the user must know about the result."""
        skipped = len(self.data.skipped)
        left_out = f"{skipped} broken samples were left out (--skip_bad); result.json lists them under skipped"
        return [
            *([SELECTED_ON_TEST] if self.config.selection == "test" else []),
            *([left_out] if skipped else []),
            *map(str, self.data.remarks),
            *self.method.warnings(),
        ]
