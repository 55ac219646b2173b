"""What a run is told: one flat set of keys, the same in YAML files, on the command line and in ``config.yaml``."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from igm_fast.methods import METHODS
from igm_fast.methods.base import Method
from igm_fast.names import nearest

PRESETS = Path(__file__).parent.parent / "presets"
NOT_PART_OF_A_RUN = ("resume", "overwrite", "quiet")  # how the command is given, not what is trained
MAY_DIFFER_ON_RESUME = ("out", "threads", "devices", "strategy", "accelerator")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of every training run.

    Args:
        method: how to train; the list is above.
        data: data set, by name.
        seed: draws the split, the first weights and the order of samples.
        out: run folder (default: runs/METHOD-DATA-SEED).
        epochs: passes over the training set that each modality gets in all.
        stages: rounds over the modalities in which methods that take turns divide these epochs.
        batch_size: samples per step, over all devices together.
        lr: learning rate at the start of a stage; a cosine takes it to 0 at the stage's end.
        optimizer: update rule.
        momentum: of sgd.
        weight_decay: of either rule.
        width: features that an encoder gives its head.
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
    seed: int = 0
    out: str | None = None
    epochs: int = 24
    stages: int = 4
    batch_size: int = 64
    lr: float = 0.02
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    width: int = 64
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
        _expect(self.stages <= self.epochs, "stages", self.stages, f"at most epochs, which is {self.epochs}")
        _expect(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2³² − 1")
        least = 2 * self.devices
        _expect(self.batch_size >= least, "batch_size", self.batch_size, f"at least {least}: two samples per device")
        _expect(0 < self.lr < math.inf, "lr", self.lr, "a positive number")
        _expect(0 <= self.momentum < 1, "momentum", self.momentum, "0 ≤ momentum < 1")
        _expect(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        _expect(self.threads >= 0, "threads", self.threads, "0 (torch's choice) or more")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both given; expected one of them, since they contradict")


def _expect(holds: bool, name: str, given: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {given}, expected {expected}")


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


def preset(data: str) -> dict[str, Any]:
    """Return the settings that come with a data set (``presets/DATA.yaml``); none for a set without a file."""
    path = PRESETS / f"{data}.yaml"
    return read_yaml(path) if path.exists() else {}


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
    return config, cls(**{key: value for key, value in settings.items() if key in options})
