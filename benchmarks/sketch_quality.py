"""How good is a sketch? Blocks of Ω against a dense one, and what a second pass buys, on a trained network.

    python -m benchmarks.sketch_quality     six minutes on two cores; writes docs/results/sketch-quality.json

The network is that of ``benchmarks.trained``, trained for fewer epochs; C is exact, so that ‖C − Ĉ‖ and ‖T − T̂‖ are
true errors. Each line is the median over five drawings of Ω and of the probes. It prints the table of docs/sketch.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks import trained
from igm_fast import ActivationCovariance
from igm_fast.data.sets import emoji
from igm_fast.projector.functions import FlatExponential
from igm_fast.projector.sketched import sketched
from igm_fast.sketch import PROBES, Sketch, draw_test_matrix

FILE = Path(__file__).parents[1] / "docs" / "results" / "sketch-quality.json"
LAYERS = ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1", "layer4.1.conv1")
TAUS = (0.4, 4.0)
SEEDS = 5
KINDS = ("blocks", "dense", "blocks, second pass")


def norm(difference: Tensor) -> float:
    """Return ‖difference‖₂ of a symmetric matrix, by Lanczos."""
    array = difference.numpy()
    operator = LinearOperator(array.shape, matvec=lambda v: array @ v, dtype=array.dtype)
    return float(abs(eigsh(operator, k=1, which="LM", return_eigenvectors=False, tol=1e-3)[0]))


def draw(kind: str, dim: int, taps: int, seed: int, start: Tensor | None = None) -> Tensor:
    """Return Ω and probes ``[1, d, k + q]`` in float64."""
    shape = (dim, 1) if kind == "dense" else (dim // taps, taps)
    return draw_test_matrix("layer", 1, *shape, seed=seed, start=start).double()


def sketch(C: Tensor, omega: Tensor) -> Sketch:
    """Return what a pass over the data would leave."""
    return Sketch(omega=omega, image=C @ omega, trace=C.trace()[None], probes=PROBES)


def measure(name: str, C: Tensor, taps: int) -> Iterator[dict[str, object]]:
    """Yield one record per kind of Ω and drawing: relative error of Ĉ, its certificates, and the error of T̂."""
    eigenvalues, vectors = torch.linalg.eigh(C)
    damping = {tau: FlatExponential(tau).values(eigenvalues, eigenvalues[0], eigenvalues[-1]) for tau in TAUS}
    exact = {tau: (vectors * damping[tau]) @ vectors.mT for tau in TAUS}
    for kind, seed in product(KINDS, range(SEEDS)):
        one = sketch(C, draw(kind, len(C), taps, seed))
        if kind.endswith("second pass"):
            one = sketch(C, draw(kind, len(C), taps, seed, start=one.eigh()[1]))
        known, basis = one.eigh()
        certain, probable = (float(bound[0]) for bound in one.error(known, basis))
        error = norm(C - (basis[0] * known[0]) @ basis[0].mT)
        assert error <= min(certain, probable) * (1 + 1e-6), (name, kind, seed)
        largest = float(eigenvalues[-1])
        row: dict[str, object] = {"layer": name, "d": len(C), "omega": kind, "seed": seed, "error": error / largest}
        row["bound"] = min(certain, probable) / largest
        for tau in TAUS:
            projector = sketched(one, FlatExponential(tau))
            row[f"T error, τ={tau:g}"] = norm(exact[tau] - projector.dense().double())
            row[f"T bound, τ={tau:g}"] = projector.error_bound
        yield row


def table(rows: list[dict[str, object]]) -> str:
    """Return medians over the drawings, as Markdown."""
    columns = [key for key in rows[0] if key not in ("layer", "d", "omega", "seed")]
    lines = ["| layer | d | Ω | " + " | ".join(columns) + " |", "| --- | ---: | --- |" + " ---: |" * len(columns)]
    for layer, kind in product(LAYERS, KINDS):
        mine = [row for row in rows if row["layer"] == layer and row["omega"] == kind]
        medians = [f"{np.median([float(str(row[column])) for row in mine]):.1e}" for column in columns]
        lines.append(f"| {layer} | {mine[0]['d']} | {kind} | " + " | ".join(medians) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, write the records and print the table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.sketch_quality", description=__doc__.partition("\n")[0]
    ).parse_args()
    data = emoji.load(seed=0)
    network = trained.train(data, phases=((64, 4), (100, 1)))
    encoder = network.get_submodule("0")
    with torch.no_grad(), ActivationCovariance(encoder, estimator="full", layers=LAYERS) as covariance:
        for pictures, _ in trained.batches(data.train, 100):
            encoder(pictures)
    rows: list[dict[str, object]] = []
    for name in LAYERS:
        rows += measure(name, covariance[name].double(), 9)
        print(f"{name}: done", flush=True)
    about = {
        "test_accuracy": round(trained.accuracy(network, data.test), 3),
        "samples": len(data.train),
        "torch": torch.__version__,
    }
    FILE.write_text(json.dumps({"about": about, "records": rows}, indent=1, ensure_ascii=False) + "\n")
    print(about)
    print(table(rows))


if __name__ == "__main__":
    main()
