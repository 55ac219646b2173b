"""What the figures of several analyses share: their files, and a colour for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from igm_fast.analyses.loaded_run import LoadedRun
from igm_fast.reports.figures import MODALITY_COLOURS

DPI = 130


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a small PNG and return its path."""
    figure.savefig(path, dpi=DPI, pil_kwargs={"optimize": True})
    return path


def palette(names: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each name."""
    if len(names) <= len(MODALITY_COLOURS):
        return dict(zip(names, MODALITY_COLOURS, strict=False))
    return {name: colormaps["viridis"](0.9 * i / (len(names) - 1)) for i, name in enumerate(names)}


def unique_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels by folder, with the folder's name where two are equal."""
    given = list(labels.values())
    return {
        folder: label if given.count(label) == 1 else f"{label} ({Path(folder).name})"
        for folder, label in labels.items()
    }


def run_labels(runs: Sequence[LoadedRun]) -> dict[str, str]:
    """Return what each run is called, by its folder: method and seed."""
    return unique_labels({str(run.folder): run.label for run in runs})


def run_colours(runs: Sequence[LoadedRun]) -> dict[str, Any]:
    """Return a colour for each run, by its label."""
    return palette(list(run_labels(runs).values()))


def method_colours(runs: Sequence[LoadedRun]) -> dict[str, tuple[str, Any]]:
    """Return each run's name in the legend and its colour, by its label: those of its method if there are several."""
    labels = run_labels(runs)
    methods = list(dict.fromkeys(run.method.name for run in runs))
    if len(methods) == 1:
        return {label: (label, colour) for label, colour in run_colours(runs).items()}
    colours = palette(methods)
    return {labels[str(run.folder)]: (run.method.name, colours[run.method.name]) for run in runs}
