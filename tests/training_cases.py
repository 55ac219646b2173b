"""Small data and short runs that the tests of methods, training and its command lines share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch

from igm_fast.data import MultimodalData, from_tensors, load_dataset
from igm_fast.train import main
from igm_fast.training.run_folder import RunFolder

SHORT = ("--data", "digits3", "--epochs", "2", "--stages", "2", "--threads", "1", "--quiet")


def run(out: Path, *flags: str, short=SHORT) -> int:
    """Train in this process; return the exit code."""
    return main([*short, "--out", str(out), *flags])


def digits(samples: int = 100) -> MultimodalData:
    """Some samples of each part of digits3, of every class."""
    whole = load_dataset("digits3")
    chosen = {name: torch.linspace(0, len(part) - 1, samples).long() for name, part in whole.parts.items()}
    parts = [part.__getitems__(chosen[name]) for name, part in whole.parts.items()]
    return from_tensors(*parts, name="digits3", classes=whole.classes, standardize=False)


def waves(modalities=("left", "right"), samples: int = 40, classes: int = 3, seed: int = 0) -> MultimodalData:
    """Sequences for encoders with batch norm; every class has its own mean."""
    rng = np.random.default_rng(seed)

    def part(count: int):
        labels = np.arange(count) % classes
        shapes = {name: rng.normal(size=(count, 2, 24)) + labels[:, None, None] for name in modalities}
        return {name: x.astype(np.float32) for name, x in shapes.items()}, labels

    return from_tensors(part(samples), part(samples // 2), part(samples // 2), name="waves")


def vectors(
    modalities=("left", "right"), samples: int = 32, classes: int = 3, seed: int = 0, dtype=torch.float32, apart=0.4
) -> MultimodalData:
    """Vectors of 12 numbers, of which the class moves one by ``apart``: for encoders without batch norm."""
    rng = np.random.default_rng(seed)

    def part(count: int):
        labels = np.arange(count) % classes
        x = {name: rng.normal(size=(count, 12)) + apart * np.eye(classes, 12)[labels] for name in modalities}
        return {name: values.astype(np.float32) for name, values in x.items()}, labels

    data = from_tensors(part(samples), part(samples), part(samples), name="vectors")
    for dataset in data.parts.values():
        dataset.inputs = {name: values.to(dtype) for name, values in dataset.inputs.items()}
    return data


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def result(folder: Path) -> dict:
    """The result without the one number that differs between equal runs."""
    content = json.loads((folder / "result.json").read_text())
    for cost in ("seconds", "processor_seconds", "peak_memory"):
        del content[cost]
    return content


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: weights, every measurement, the result, predictions."""
    from igm_fast.training.checkpoint import load

    for name in ("last", "best"):
        a, b = (load(folder / "checkpoints" / f"{name}.safetensors", "") for folder in (one, other))
        assert list(a["model"]) == list(b["model"])
        for key, value in a["model"].items():
            torch.testing.assert_close(value, b["model"][key], rtol=0, atol=0, msg=f"{name}: {key}")
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    assert result(one) == result(other)
    first, second = (RunFolder(folder).read_json("spectra.json", []) for folder in (one, other))
    assert first == second
    with np.load(one / "predictions.npz") as a, np.load(other / "predictions.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
