"""What a run is told: one flat set of keys, the same in YAML files, on the command line and in ``config.yaml``."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from igm_fast.data.options import DataOptions
from igm_fast.methods import METHODS
from igm_fast.methods.base import Method
from igm_fast.names import nearest

PRESETS = Path(__file__).parent.parent / "presets"
NOT_PART_OF_A_RUN = ("resume", "overwrite", "quiet")  # how the command is given, not what is trained
MAY_DIFFER_ON_RESUME = ("out", "threads", "devices", "strategy", "accelerator", "data_root", "cache", "workers")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of every training run.

    Args:
        method: how to train; the list is above.
        data: data set, by name.
        data_root: folder of a data set that lies on disk.
        protocol: a set of defaults, all printed by --print_config; paper selects on validation and trains with SAM and
            T on all layers, official is what the authors' code does (see docs/protocols.md).
        skip_bad: train without the samples whose files are broken, and list them, rather than refuse the data set.
        use_target: give text with its target entity, where the data set has one.
        validation_by: what a validation part is cut out by where the data set has none; group keeps people together.
        cache: folder that keeps decoded samples, so that they are decoded once.
        workers: processes that read files ahead; 0 reads between the steps.
        seed: draws the split, the first weights and the order of samples.
        out: run folder (default: runs/METHOD-DATA-SEED).
        epochs: passes over the training set that each modality gets in all.
        stages: rounds over the modalities in which methods that take turns divide these epochs.
        stage_epochs: epochs of each modality's turn, such as 25,50 in the order of the data set, every round anew;
            epochs is then stages times the largest.
        batch_size: samples per step, over all devices together.
        lr: learning rate at the start of a stage.
        schedule: the learning rate within a stage; cosine takes it to 0, step is a tenth from the 40th epoch on (and
            again after each 40), warmup has two thirds in the first epoch, constant keeps it.
        optimizer: update rule; adam adds the decay to the gradient, adamw takes it off the weights.
        momentum: of sgd.
        betas: of adam and adamw.
        weight_decay: of every rule.
        stage_start: weights that a stage starts from; last are those that training has reached, best those selected so
            far (a stage that never beats them is then lost).
        selection: part of the data that selects the weights; test is what the authors' code does, and no honest
            measurement.
        select_by: score of the fused prediction that decides.
        keep_stages: keep the weights at the end of each stage in checkpoints/stage-N.safetensors.
        width: features that an encoder gives its head.
        encoders: encoders other than those that the data set proposes, such as video=resnet18,audio=small.
        pretrained: weights to start encoders from, such as text=FOLDER,video=FILE.
        head_widths: layers of each modality's own head before the last, such as 256,64 with a ReLU after the first;
            without it the head is one linear layer.
        devices: processes that share each batch.
        strategy: ddp for several devices; auto chooses it when there are several.
        accelerator: where to compute.
        precision: arithmetic of forward and backward pass.
        threads: CPU threads per process; 0 leaves the choice to torch.
        resume: go on with the unfinished run in --out, bit for bit.
        overwrite: remove the run in --out first.
        quiet: say nothing but the result.

    Raises:
        ValueError: a value is out of range.
    """

    method: str = "igm"
    data: str = "watch"
    data_root: str | None = None
    protocol: Literal["paper", "official"] = "paper"
    skip_bad: bool = False
    use_target: bool = False
    validation_by: Literal["sample", "group"] = "sample"
    cache: str | None = None
    workers: int = 0
    seed: int = 0
    out: str | None = None
    epochs: int = 24
    stages: int = 4
    stage_epochs: str = ""
    batch_size: int = 64
    lr: float = 0.02
    schedule: Literal["cosine", "step", "warmup", "constant"] = "cosine"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    betas: str = "0.9,0.999"
    weight_decay: float = 1e-4
    stage_start: Literal["last", "best"] = "last"
    selection: Literal["validation", "test"] = "validation"
    select_by: Literal["accuracy", "macro_f1", "map"] = "accuracy"
    keep_stages: bool = False
    width: int = 64
    encoders: str = ""
    pretrained: str = ""
    head_widths: str = ""
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int = 0
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "stages", "width", "devices"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("workers", "threads"):
            _expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _expect(self.stages <= self.epochs, "stages", self.stages, f"at most epochs, which is {self.epochs}")
        _expect(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2³² − 1")
        least = 2 * self.devices
        _expect(self.batch_size >= least, "batch_size", self.batch_size, f"at least {least}: two samples per device")
        _expect(0 < self.lr < math.inf, "lr", self.lr, "a positive number")
        _expect(0 <= self.momentum < 1, "momentum", self.momentum, "0 ≤ momentum < 1")
        _expect(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        betas = self.both_betas
        _expect(all(0 <= beta < 1 for beta in betas), "betas", self.betas, "two numbers, each 0 ≤ beta < 1")
        for name in ("stage_epochs", "head_widths"):
            numbers = _whole_numbers(name, getattr(self, name))
            _expect(all(number >= 1 for number in numbers), name, getattr(self, name), "numbers of at least 1")
        if self.stage_epochs:
            total = epochs_of_stages(self.stage_epochs, self.stages)
            expected = f"{total}, or nothing: stage_epochs is {self.stage_epochs} in {self.stages} stages"
            _expect(self.epochs == total, "epochs", self.epochs, expected)
        named_values("encoders", self.encoders)
        named_values("pretrained", self.pretrained)
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both given; expected one of them, since they contradict")

    @property
    def both_betas(self) -> tuple[float, float]:
        """β₁ and β₂ of Adam.

        Raises:
            ValueError: ``betas`` is not two numbers.
        """
        try:
            first, second = (float(beta) for beta in self.betas.split(","))
        except ValueError:
            raise ValueError(f"betas is {self.betas!r}, expected two numbers, such as 0.9,0.999") from None
        return first, second

    @property
    def widths_of_head(self) -> tuple[int, ...]:
        """``head_widths`` as numbers."""
        return _whole_numbers("head_widths", self.head_widths)

    def stage_shares(self, modalities: Sequence[str]) -> dict[str, float]:
        """Return each modality's share of the longest turn: 1 for all without ``stage_epochs``.

        Args:
            modalities: all those of the data set, in its order.

        Raises:
            ValueError: ``stage_epochs`` has another number of entries.
        """
        if not self.stage_epochs:
            return dict.fromkeys(modalities, 1.0)
        epochs = _whole_numbers("stage_epochs", self.stage_epochs)
        expected = f"{len(modalities)} numbers, one for each of {', '.join(modalities)}"
        _expect(len(epochs) == len(modalities), "stage_epochs", self.stage_epochs, expected)
        return {name: own / max(epochs) for name, own in zip(modalities, epochs, strict=True)}

    def data_options(self) -> DataOptions:
        """Return what :func:`igm_fast.data.load_dataset` is told."""
        return DataOptions(
            root=None if self.data_root is None else Path(self.data_root),
            protocol=self.protocol,
            skip_bad=self.skip_bad,
            cache=None if self.cache is None else Path(self.cache),
            pretrained=self.sources(),
            encoders=named_values("encoders", self.encoders),
            use_target=self.use_target,
            validation_by=self.validation_by,
        )

    def sources(self) -> dict[str, Path]:
        """Return ``pretrained`` as paths by modality."""
        return {name: Path(path) for name, path in named_values("pretrained", self.pretrained).items()}


def _expect(holds: bool, name: str, given: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {given}, expected {expected}")


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{name} is {text!r}, expected whole numbers separated by commas, such as 25,50") from None


def epochs_of_stages(stage_epochs: str, stages: int) -> int:
    """Return the epochs that ``stage_epochs`` come to: those of the modality with the longest turn.

    Raises:
        ValueError: ``stage_epochs`` is no list of whole numbers.
    """
    return stages * max(_whole_numbers("stage_epochs", stage_epochs))


def named_values(name: str, text: str) -> dict[str, str]:
    """Return the pairs of a setting such as ``video=resnet18,audio=small``.

    Raises:
        ValueError: it is not of this form, or names something twice.
    """
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if len(values) < len(pairs) or any(not key or not value for key, value in values.items()):
        raise ValueError(f"{name} is {text!r}, expected NAME=VALUE pairs separated by commas, each modality once")
    return values


def method_class(name: str) -> type[Method]:
    """Return a method by name.

    Raises:
        ValueError: unknown name; the message holds the nearest ones.
    """
    if name not in METHODS:
        raise ValueError(nearest(name, METHODS, "method"))
    return METHODS[name]


def config_keys() -> list[str]:
    """Return the keys that every run has."""
    return [field.name for field in dataclasses.fields(TrainConfig)]


def option_keys(method: type[Method]) -> list[str]:
    """Return the keys that a method adds: the arguments of its constructor."""
    return list(inspect.signature(method).parameters)


def preset(data: str, protocol: str = "paper") -> dict[str, Any]:
    """Return the settings that come with a data set and a protocol; later files win.

    They are ``presets/DATA.yaml``, and for the official protocol ``presets/official.yaml`` and
    ``presets/DATA.official.yaml``, as far as they exist.
    """
    names = [data] if protocol == "paper" else [data, protocol, f"{data}.{protocol}"]
    paths = [PRESETS / f"{name}.yaml" for name in names]
    return {key: value for path in paths if path.exists() for key, value in read_yaml(path).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the flat keys of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not a flat list of ``key: value``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected YAML with one `key: value` a line")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML ({error}); expected one `key: value` a line") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or any(isinstance(value, (dict, list)) for value in content.values()):
        raise ValueError(f"{path}: expected flat `key: value` lines; see `python -m igm_fast.train --print_config`")
    return {str(key): value for key, value in content.items()}


def flat(config: TrainConfig, method: Method) -> dict[str, Any]:
    """Return all settings of a run, as ``config.yaml`` holds them."""
    options = {name: getattr(method, name) for name in option_keys(type(method))}
    common = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_PART_OF_A_RUN}
    return common | options


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    return str(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def from_flat(settings: Mapping[str, Any]) -> tuple[TrainConfig, Method]:
    """Return the configuration and the method of flat settings, such as those of a run's ``config.yaml``.

    Raises:
        ValueError: an unknown key, or a value out of range.
    """
    cls = method_class(str(settings.get("method", TrainConfig.method)))
    common, options = config_keys(), option_keys(cls)
    for key in settings:
        if key not in common and key not in options:
            raise ValueError(nearest(key, [*common, *options], f"setting of method {cls.name}"))
    config = TrainConfig(**{key: value for key, value in settings.items() if key in common})
    method = cls(**{key: value for key, value in settings.items() if key in options})
    if config.stage_start == "best" and getattr(method, "statistics", None) == "ride":
        raise ValueError(
            "stage_start is best with statistics ride, expected statistics pass: those that rode along describe "
            "weights that the next stage may throw away. Give --statistics pass, or --stage_start last"
        )
    return config, method
