"""The network of digits3's modalities in float64 numpy, and an analysis as its command line runs it."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from rich.console import Console

from igm_fast.analyses import analyses
from igm_fast.analyses.loaded_run import LoadedRun


def analyze(name: str, folders: list[Path], out: Path, *options: str):
    """Run an analysis; return its finding after looking at its files."""
    module = analyses()[name]
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    module.add_arguments(parser)
    arguments = parser.parse_args([*map(str, folders), *options])
    arguments.out = out
    finding = module.run(arguments, Console(quiet=True))
    assert finding.name == name
    assert finding.figures[0] == out / f"{name}.png"
    assert finding.tables[0] == out / f"{name}.csv"
    for path in finding.figures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size <= 250_000, path
    for path in finding.tables:
        rows = read(path)
        assert rows, path
    assert "nan" not in finding.sentence
    return finding


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(loaded: LoadedRun, modality: str) -> list[np.ndarray]:
    """W1, b1, W2, b2, W, b of relu(W2 relu(W1 x + b1) + b2) and its linear head, float64."""
    branch = loaded.model.branch(modality)
    layers = (branch.encoder.fc1, branch.encoder.fc2, branch.head or loaded.model.shared_head)
    return [p.detach().double().numpy() for layer in layers for p in (layer.weight, layer.bias)]


def forward(parameters: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden units, features and logits."""
    W1, b1, W2, b2, W, b = parameters
    hidden = np.maximum(x @ W1.T + b1, 0)
    features = np.maximum(hidden @ W2.T + b2, 0)
    return hidden, features, features @ W.T + b


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def loss(parameters: list[np.ndarray], x: np.ndarray, labels: np.ndarray) -> float:
    p = softmax(forward(parameters, x)[2])
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


def gradient(parameters: list[np.ndarray], x: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross-entropy, in the order of the parameters."""
    _, _, W2, _, W, _ = parameters
    hidden, features, z = forward(parameters, x)
    dz = (softmax(z) - np.eye(z.shape[1])[labels]) / len(labels)
    df = (dz @ W) * (features > 0)
    dh = (df @ W2) * (hidden > 0)
    return [dh.T @ x, dh.sum(0), df.T @ hidden, df.sum(0), dz.T @ features, dz.sum(0)]


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


def unflat(vector: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    parts = np.split(vector, np.cumsum([array.size for array in like])[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, like, strict=True)]
