"""A finished run brought back for an analysis: its model, the samples it is looked at with, and its losses."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data import MultimodalData
from igm_fast.data.seeds import derived_seed
from igm_fast.evaluate import rebuild
from igm_fast.methods.base import Batch, Method
from igm_fast.methods.mla import Mla
from igm_fast.models import MultimodalModel
from igm_fast.names import nearest
from igm_fast.training.config import TrainConfig, from_flat, read_yaml
from igm_fast.training.run_folder import RunFolder

SPLITS = ("train", "validation", "test")
CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class LoadedRun:
    """A run with the weights of one of its checkpoints, the model in evaluation mode."""

    folder: Path
    config: TrainConfig
    method: Method
    data: MultimodalData
    model: MultimodalModel
    checkpoint: str
    device: torch.device

    @property
    def label(self) -> str:
        """Method and seed, for legends and tables."""
        return f"{self.method.name}, seed {self.config.seed}"

    @property
    def branches(self) -> list[str]:
        """The modalities, and ``fused`` where there are several."""
        return [*self.model.modalities, *(["fused"] if len(self.model.modalities) > 1 else [])]

    def double(self) -> LoadedRun:
        """Return the run with a copy of its model in float64."""
        return replace(self, model=copy.deepcopy(self.model).double())


def load_run(folder: Path, checkpoint: str = "best") -> LoadedRun:
    """Return a run with the weights of its ``"best"`` (selected) or ``"last"`` checkpoint.

    Raises:
        FileNotFoundError: no run there.
        CheckpointError: the checkpoint is missing or damaged.
        ValueError: the data are not those the run was trained on.
    """
    found = rebuild(folder, checkpoint)
    return LoadedRun(folder, found.config, found.method, found.data, found.model.eval(), checkpoint, found.device)


def load_runs(folders: Sequence[Path], checkpoint: str = "best") -> list[LoadedRun]:
    """Return runs that may stand side by side.

    Raises:
        ValueError: they are of different data sets; a folder is given twice. And as for :func:`load_run`.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"a run is given twice among {', '.join(map(str, folders))}; expected each folder once")
    runs = [load_run(folder, checkpoint) for folder in folders]
    names = {run.data.name for run in runs}
    if len(names) > 1:
        raise ValueError(f"the runs are of the data sets {', '.join(sorted(names))}; expected one. Give them by set")
    return runs


def mla_projector(folder: Path) -> Tensor | None:
    """Return MLA's P ``[width, width]`` float64 as training left it; None for other methods, or where there is none.

    Raises:
        CheckpointError: the last checkpoint is missing or damaged; the selected one holds weights only.
    """
    _, method = from_flat(read_yaml(folder / "config.yaml"))
    if not isinstance(method, Mla):
        return None
    P: Tensor | None = RunFolder(folder).load_last()["method"]["projector"]
    return P


def add_sample_arguments(parser: argparse.ArgumentParser, split: str, samples: int) -> None:
    """Add ``--checkpoint``, ``--split`` and ``--samples``."""
    add_checkpoint_argument(parser)
    parser.add_argument("--split", choices=SPLITS, default=split, help="part of the data (default: %(default)s)")
    parser.add_argument(
        "--samples", type=positive, default=samples, help="samples of it, the same for all runs (default: %(default)s)"
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="best",
        help="best: weights that were selected; last: the final ones",
    )


def positive(text: str) -> int:
    """Return a whole number ≥ 1 of a command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return number


def positive_numbers(text: str) -> list[float]:
    """Return the numbers > 0 of a command line that are separated by commas."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers > 0 with commas between them, as 0.01,0.05")
    return numbers


def fixed_samples(loaded: LoadedRun, split: str, samples: int, *, batch_size: int = 512) -> list[Batch]:
    """Return what :func:`stream_samples` yields."""
    return list(stream_samples(loaded, split, samples, batch_size=batch_size))


def stream_samples(loaded: LoadedRun, split: str, samples: int, *, batch_size: int = 512) -> Iterator[Batch]:
    """Yield the first samples of a permutation of a split, in batches on the run's device, as evaluation sees them.

    The permutation depends on the split alone, so that runs on the same data are looked at with the same samples.
    Floating-point inputs have the precision of the model. Data that do not fit into memory may be streamed.
    """
    part = loaded.data.parts[split]
    generator = torch.Generator().manual_seed(derived_seed("analysis", split, len(part)))
    rows = torch.randperm(len(part), generator=generator)[:samples]
    dtype = next(loaded.model.parameters()).dtype
    for chosen in rows.split(batch_size):
        inputs, labels = part.__getitems__(chosen)
        moved = {
            name: x.to(loaded.device, dtype) if x.is_floating_point() else x.to(loaded.device)
            for name, x in inputs.items()
        }
        yield Batch(moved, labels.to(loaded.device), rows=chosen)


def branch_logits(model: MultimodalModel, inputs: dict[str, Tensor], branch: str) -> Tensor:
    """Return the logits of one modality, with their gradient.

    With one joint head on all features these are its logits where the features of the others are zero, Wᵐhᵐ + b: the
    shares of the model's own forward carry no gradient.
    """
    if model.head != "joint":
        own: Tensor = model(inputs, [branch])[branch]
        return own
    (feature,) = model.features(inputs, [branch]).values()
    features = {name: feature if name == branch else torch.zeros_like(feature) for name in model.modalities}
    joint: Tensor = model.classify(features)["joint"]
    return joint


def branch_loss(loaded: LoadedRun, batch: Batch, branch: str) -> Tensor:
    """Return the mean −log p[y] of a modality, or of the method's fused prediction, with its gradient.

    Raises:
        ValueError: an unknown branch.
    """
    if branch not in loaded.branches:
        raise ValueError(nearest(branch, loaded.branches, "branch"))
    if branch != "fused":
        return functional.cross_entropy(branch_logits(loaded.model, batch.inputs, branch), batch.labels)
    probabilities = loaded.method.fuse(loaded.model(batch.inputs))
    return functional.nll_loss(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), batch.labels)


def layer_weight(module: nn.Module, layer: str) -> nn.Parameter:
    """Return the weight of a layer by the layer's name."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight
