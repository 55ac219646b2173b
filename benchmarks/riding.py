"""How far does T move when the statistics ride along with training instead of having a pass of their own?

    python -m benchmarks.riding        two minutes on two cores; writes docs/results/riding.json and prints a table

IGM trains on the embedded watch data with ``statistics="ride"``, exact covariances. At the start of each stage the pass
in evaluation mode is made, too, and ‖T_ride − T_pass‖₂ noted per layer, for each every-n-th batch that was looked at.
T's eigenvalues lie in [e^{−τ}, 1]: at τ = 0.4 two projectors differ by 0.33 at most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from igm_fast import train
from igm_fast.methods import METHODS, Context, Stage
from igm_fast.methods.igm import Igm

FILE = Path(__file__).parents[1] / "docs" / "results" / "riding.json"
SEEDS, EVERY = range(3), (1, 4, 16)


@dataclass
class Measured(Igm):
    """IGM that makes both projectors and trains with those that rode along."""

    distances: ClassVar[list[dict[str, Any]]] = []

    def prepare(self, stage: Stage, previous: Stage | None, context: Context) -> list[dict[str, Any]]:
        """Note how far apart they are."""
        rows = super().prepare(stage, previous, context)
        passed = Igm(tau=self.tau, estimator=self.estimator, tol=self.tol)
        passed.prepare(stage, previous, context)
        for name, T in self.projectors.items():
            distance = float(torch.linalg.matrix_norm(T.dense() - passed.projectors[name].dense(), ord=2))
            entry = {"every": self.statistics_every, "stage": stage.index, "layer": name, "distance": distance}
            self.distances.append(entry)
        return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write and print."""
    argparse.ArgumentParser(prog="python -m benchmarks.riding", description=__doc__.partition("\n")[0]).parse_args(argv)
    Measured.__doc__ = Igm.__doc__  # the command line reads what options mean there
    METHODS["igm"] = Measured
    rows: list[dict[str, Any]] = []
    for every in EVERY:
        for seed in SEEDS:
            Measured.distances.clear()
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--statistics", "ride", "--statistics_every", str(every), "--estimator", "full"]
                train.main([*flags, "--seed", str(seed), "--tol", "1e-6", "--out", f"{folder}/run", "--quiet", "true"])
            rows += [{**entry, "seed": seed} for entry in Measured.distances]
    FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    print("| looked at | " + " | ".join(layers) + " |\n| --- |" + " ---: |" * len(layers))
    for every in EVERY:
        cells = []
        for layer in layers:
            found = [row["distance"] for row in rows if row["every"] == every and row["layer"] == layer]
            cells.append(f"{np.median(found):.4f} (≤ {max(found):.4f})")
        print(f"| every {every}. batch | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
