"""Calibration, classes, modalities and projectors of one or several runs, from the files that training wrote.

- Reliability of the fused probabilities on test, and the expected calibration error over ten bins of confidence (Guo,
  Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017).
- Accuracy by true class.
- Modality gap: largest minus smallest validation accuracy of a modality, over training.
- Effective rank by d and mean eigenvalue of IGM's T over its stages (mean over layers), and of MLA's P at the end:
  whether the directions left to learn in become fewer, or all become narrow. Beside it the eigenvalues themselves,
  exp(−τλ̃) against α/(α + nλ).
- MLA's entropy weights of the modalities on test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from igm_fast.analyses import drawing
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.loaded_run import mla_projector
from igm_fast.analyses.spectra import effective_rank
from igm_fast.reports import figures
from igm_fast.reports.record import Run, Spectrum, read_run

KIND = "runs"
BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Samples, mean confidence and accuracy by bin of confidence ``[bins]``; NaN in bins without a sample."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Σ n_b/N |accuracy_b − confidence_b|."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.counts[filled] * gaps).sum() / self.counts.sum())


@dataclass(frozen=True)
class Profile:
    """Eigenvalues of a T or P, ascending ``[d]``; ``done`` is the share of training after which it was made."""

    run: str
    layer: str
    done: float
    values: NDArray[np.float64]

    @property
    def share(self) -> float:
        """Effective rank exp(H(σ/Σσ)) as a share of d."""
        return effective_rank(self.values) / len(self.values)

    @property
    def mean(self) -> float:
        """Trace by d: what is left of a gradient without preferred direction."""
        return float(self.values.mean())


@dataclass(frozen=True)
class Diagnosis:
    """What is said of one run."""

    record: Run
    label: str
    reliability: dict[str, Reliability]  # by branch
    by_class: dict[str, NDArray[np.float64]]  # branch → [classes]; NaN for a class without a sample
    gap: list[tuple[float, float]]  # share of training, gap
    profiles: list[Profile]
    weights: dict[str, NDArray[np.float64]]  # of MLA: modality → [N]

    @property
    def headline(self) -> str:
        """Fused, or the only modality."""
        return self.record.headline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the runs are all that is asked for."""


def run(arguments: argparse.Namespace, console: Console) -> Finding:  # noqa: ARG001 - quick enough to say nothing
    """Read, draw, and say what is to be seen."""
    records = {str(folder): read_run(folder) for folder in arguments.runs}
    names = {record.result["data"] for record in records.values()}
    if len(names) > 1:
        raise ValueError(f"the runs are of the data sets {', '.join(sorted(names))}; expected one. Give them by set")
    labels = drawing.unique_labels({folder: _label(record) for folder, record in records.items()})
    found = [diagnose(record, labels[folder]) for folder, record in records.items()]
    out: Path = arguments.out
    picture = drawing.save(draw(found), out / "diagnostics.png")
    tables = [
        write_csv(out / "diagnostics.csv", COLUMNS, [row for one in found for row in _summary(one)]),
        write_csv(
            out / "diagnostics-reliability.csv",
            ("run", "branch", "bin_from", "bin_to", "samples", "confidence", "accuracy"),
            [row for one in found for row in _reliability_rows(one)],
        ),
        write_csv(
            out / "diagnostics-classes.csv",
            ("run", "branch", "class", "accuracy"),
            [row for one in found for row in _class_rows(one)],
        ),
    ]
    return Finding("diagnostics", "Diagnostics", _sentence(found), [picture], tables)


def _label(record: Run) -> str:
    return f"{record.result['method']}, seed {record.result['seed']}"


def diagnose(record: Run, label: str) -> Diagnosis:
    """Return what the files of a finished run say.

    Raises:
        ValueError: it has no predictions.
    """
    if record.labels is None:
        raise ValueError(
            f"{record.folder} has no predictions.npz, expected that of a finished run. Train it again with --overwrite"
        )
    probabilities = {name: np.asarray(p, dtype=np.float64) for name, p in record.probabilities.items()}
    is_mla = record.result["method"] == "mla"
    modalities = [name for name in probabilities if name != "fused"]
    return Diagnosis(
        record,
        label,
        {name: reliability(p, record.labels) for name, p in probabilities.items()},
        {name: class_accuracy(p, record.labels) for name, p in probabilities.items()},
        modality_gap(record),
        profiles(record, label),
        entropy_weights({name: probabilities[name] for name in modalities}) if is_mla else {},
    )


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Return the reliability of ``[N, classes]`` over bins of equal width of the largest probability."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    numbers = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(numbers, minlength=bins)
    sums = [np.bincount(numbers, weights=values, minlength=bins) for values in (confidence, correct)]
    means = [np.where(counts > 0, values / np.maximum(counts, 1), np.nan) for values in sums]
    return Reliability(counts, *means)


def class_accuracy(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each class's samples that are classified correctly; NaN for a class without a sample."""
    classes = probabilities.shape[1]
    correct = probabilities.argmax(axis=1) == labels
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=correct, minlength=classes)
    shares: NDArray[np.float64] = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    return shares


def modality_gap(record: Run) -> list[tuple[float, float]]:
    """Return (share of training, largest − smallest validation accuracy of a modality) after each epoch."""
    modalities = [name for name in record.branches if name != "fused"]
    if len(modalities) < 2:
        return []
    series = [{m.global_epoch: m.value for m in record.series("validation", name, "accuracy")} for name in modalities]
    epochs = sorted(set.intersection(*(set(values) for values in series)))
    return [
        ((epoch + 1) / (epochs[-1] + 1), max(v[epoch] for v in series) - min(v[epoch] for v in series))
        for epoch in epochs
    ]


def profiles(record: Run, label: str) -> list[Profile]:
    """Return the eigenvalues of the run's projectors: T for each layer and stage, or P at the end."""
    stages = record.stages()
    epochs = stages[-1][3] + 1 if stages else 1
    begins = {stage: first / epochs for stage, _, first, _ in stages}
    found = [Profile(label, s.layer, begins.get(s.stage, 1.0), all_of_projector(s)) for s in record.spectra]
    P = mla_projector(record.folder)
    if P is not None:
        found.append(Profile(label, "shared head", 1.0, torch.linalg.eigvalsh(P.double().cpu()).clamp_min(0.0).numpy()))
    return found


def all_of_projector(spectrum: Spectrum) -> NDArray[np.float64]:
    """Return all d eigenvalues of T, ascending: the known ones, and the complement for the others."""
    others = np.full(max(spectrum.dim - spectrum.projector_eigenvalues.size, 0), spectrum.complement)
    return np.sort(np.concatenate([spectrum.projector_eigenvalues, others]))


def entropy_weights(probabilities: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return λ = softmax over modalities of −entropy, ``[N]`` each, as MLA weighs logits (Zhang et al., CVPR 2024)."""
    stacked = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in probabilities.values()])
    weights = (-torch.special.entr(stacked).sum(dim=2)).softmax(dim=0)
    return dict(zip(probabilities, weights.numpy(), strict=True))


COLUMNS = ("run", "subject", "of", "value")


def _summary(one: Diagnosis) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [(one.label, "ece", name, f"{r.ece:.5g}") for name, r in one.reliability.items()]
    rows += [(one.label, "modality gap", f"{done:.0%} of training", f"{gap:.5g}") for done, gap in one.gap]
    rows += [
        (one.label, "effective rank / d", f"{p.layer}, after {p.done:.0%} of training", f"{p.share:.5g}")
        for p in one.profiles
    ]
    rows += [
        (one.label, "mean eigenvalue", f"{p.layer}, after {p.done:.0%} of training", f"{p.mean:.5g}")
        for p in one.profiles
    ]
    return rows + [(one.label, "mean entropy weight", name, f"{w.mean():.5g}") for name, w in one.weights.items()]


def _reliability_rows(one: Diagnosis) -> list[tuple[Any, ...]]:
    return [
        (one.label, name, b / BINS, (b + 1) / BINS, r.counts[b], *(_number(x[b]) for x in (r.confidence, r.accuracy)))
        for name, r in one.reliability.items()
        for b in range(BINS)
    ]


def _class_rows(one: Diagnosis) -> list[tuple[Any, ...]]:
    classes = one.record.result["classes"]
    return [
        (one.label, branch, name, _number(value))
        for branch, values in one.by_class.items()
        for name, value in zip(classes, values, strict=True)
    ]


def _number(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:.5g}"


def _sentence(found: Sequence[Diagnosis]) -> str:
    parts = []
    for one in found:
        values = one.by_class[one.headline]
        worst = int(np.nanargmin(values))
        text = (
            f"{one.label}: calibration error {one.reliability[one.headline].ece:.3f}, "
            f"worst class {one.record.result['classes'][worst]} at {values[worst]:.2f}"
        )
        if one.gap:
            text += f", modality gap {one.gap[0][1]:.2f} at first and {one.gap[-1][1]:.2f} at last"
        if one.profiles:
            last = [p for p in one.profiles if p.done == max(p.done for p in one.profiles)]
            kind = "P" if one.weights else "T"
            text += (
                f", {kind} at last with effective rank {np.mean([p.share for p in last]):.1%} of d "
                f"and mean eigenvalue {np.mean([p.mean for p in last]):.3f}"
            )
        if one.weights:
            text += ", mean entropy weights " + ", ".join(f"{n} {w.mean():.2f}" for n, w in one.weights.items())
        parts.append(text)
    return "; ".join(parts) + "."


# ---- figure ----------------------------------------------------------------------------------------------------------


@figures.styled
def draw(found: Sequence[Diagnosis]) -> Figure:
    """A panel for each subject that at least one run has something to show for."""
    colours = drawing.palette([one.label for one in found])
    panels: list[Callable[[Axes, Sequence[Diagnosis], Mapping[str, Any]], None]] = [_draw_reliability, _draw_classes]
    if any(one.gap for one in found):
        panels.append(_draw_gap)
    if any(one.profiles for one in found):
        panels += [_draw_ranks, _draw_profiles]
    if any(one.weights for one in found):
        panels.append(_draw_weights)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(figures.WIDTH, 0.9 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes, found, colours)
        axes.title.set_fontsize(9)
        axes.xaxis.label.set_fontsize(8.5)
        axes.yaxis.label.set_fontsize(8.5)
        axes.tick_params(labelsize=7.5)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _draw_reliability(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    for one in found:
        of_run = one.reliability[one.headline]
        filled = of_run.counts > 0
        x, y = of_run.confidence[filled], of_run.accuracy[filled]
        axes.plot(x, y, marker="o", markersize=3, color=colours[one.label], label=one.label)
    axes.set(title=f"reliability, {found[0].headline}", xlabel="confidence", ylabel="accuracy on test")


def _draw_classes(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:
    for place, one in enumerate(found):
        values = one.by_class[one.headline]
        x = np.arange(len(values)) + 0.6 * ((place + 0.5) / len(found) - 0.5)
        axes.plot(x, values, "o", markersize=3, color=colours[one.label])
    classes = found[0].record.result["classes"]
    axes.set_xticks(range(len(classes)), classes, rotation=90 if len(classes) > 12 else 45, ha="right")
    axes.set(title="accuracy by class", ylabel="accuracy on test")


def _draw_gap(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:
    for one in found:
        axes.plot([x for x, _ in one.gap], [y for _, y in one.gap], color=colours[one.label], linewidth=1.3)
    axes.set(title="modality gap", xlabel="share of training", ylabel="largest − smallest accuracy")


def _draw_ranks(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:
    for one in found:
        done = sorted({p.done for p in one.profiles})
        for name, line in (("share", "-"), ("mean", "--")):
            values = [float(np.mean([getattr(p, name) for p in one.profiles if p.done == at])) for at in done]
            axes.plot(done, values, line, marker="o", markersize=3, color=colours[one.label], linewidth=1.3)
    axes.set(title="T or P: effective rank / d (line), mean (dashes)", xlabel="share of training", xlim=(-0.03, 1.05))
    axes.set_ylim(0, 1.05)


def _draw_profiles(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:
    for one in found:
        last = max((p.done for p in one.profiles), default=0.0)
        for p in (p for p in one.profiles if p.done == last):
            x = np.arange(1, len(p.values) + 1) / len(p.values)
            axes.plot(x, p.values, color=colours[one.label], linewidth=1.1)
    axes.set(title="eigenvalues of the last T, by layer, or P", xlabel="number / d", ylabel="eigenvalue")
    axes.set_ylim(-0.03, 1.05)


def _draw_weights(axes: Axes, found: Sequence[Diagnosis], colours: Mapping[str, Any]) -> None:  # noqa: ARG001
    """Colours are those of modalities here; with several runs of MLA the first one is shown."""
    one = next(one for one in found if one.weights)
    for name, colour in figures.branch_colours(list(one.weights)).items():
        if name in one.weights:
            axes.hist(one.weights[name], bins=30, range=(0, 1), histtype="step", color=colour, label=name)
    axes.legend(fontsize=7)
    axes.set(title=f"entropy weights, {one.label}", xlabel="weight on a test sample", ylabel="samples")
