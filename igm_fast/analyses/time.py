"""Training time by phase: seconds and processor time per run, per stage and per encoder update, and peak memory.

Methods run seed by seed, one run at a time unless --jobs says otherwise, so that what else the machine does falls on
all alike; processor time leaves other work alone. Runs have equal epochs: every modality trains the same number of
them. "Per 1000 encoder updates" puts methods side by side that update their encoders unequally often: an update is one
step of one modality's encoder; steps on copies of the model are work, but no updates. The first epoch is included.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from rich.console import Console

from igm_fast import compare
from igm_fast.analyses.finding import Finding, write_csv
from igm_fast.analyses.grid import Row, Runs, modality_names, set_title, setting_words, train_grid, with_quick_note
from igm_fast.data import load_dataset
from igm_fast.names import nearest
from igm_fast.reports import figures
from igm_fast.reports.record import PHASES, Run
from igm_fast.training.batches import batches_per_epoch
from igm_fast.training.config import from_flat

KIND = "grid"
NAME = "time"
DEFAULT_METHODS = ("unimodal", "joint", "late", "mla", "sam", "igm-no-sam", "igm")
BASES = ("late", "joint")  # methods without extras, to which the others are put in relation
COST = ("seconds", "processor_seconds", "processor_per_1000_updates", "peak_memory_mb")
STAGE_COLUMNS = ("row", "seed", "stage", "trained", "phase", "seconds")


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    phases: dict[str, float]  # seconds
    seconds: float
    processor_seconds: float
    peak_memory_mb: float
    epochs: int  # over all stages
    updates: dict[str, int]  # of each modality's encoder

    @property
    def processor_per_1000_updates(self) -> float:
        """Seconds of processor time per 1000 encoder updates, all modalities together."""
        return 1000 * self.processor_seconds / sum(self.updates.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of methods; runs side by side would disturb one another's seconds."""
    parser.set_defaults(jobs=1)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT_METHODS),
        metavar="NAME",
        help="methods, or 'all'; 'unimodal' makes one row per modality (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Train every method and say where its time goes."""
    rows = plan(arguments)
    runs = train_grid(NAME, rows, arguments, console)
    costs = {row.label.removeprefix(f"{NAME}-"): measure(runs[row.label]) for row in rows}
    picture = arguments.out / f"{NAME}.png"
    beside = "" if arguments.jobs == 1 else f"; {arguments.jobs} runs side by side"
    figures.save(draw(costs, setting_words(arguments, runs) + beside), picture)
    tables = [
        write_csv(arguments.out / f"{NAME}.csv", *summary_table(costs)),
        write_csv(arguments.out / f"{NAME}-stages.csv", STAGE_COLUMNS, per_stage(runs)),
        arguments.out / f"{NAME}-runs.csv",
    ]
    return Finding(NAME, "Training time", with_quick_note(say(costs), arguments), [picture], tables)


def plan(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows; their labels keep them apart from runs that were trained beside others.

    Raises:
        ValueError: an unknown method.
    """
    known = compare.known_methods()
    names = known if arguments.methods == ["all"] else list(dict.fromkeys(arguments.methods))
    rows = []
    for name in names:
        if name not in known:
            raise ValueError(nearest(name, known, "method"))
        modalities = modality_names(arguments) if name == "unimodal" else [None]
        rows += [Row(f"{NAME}-{name}{f'-{one}' if one else ''}", name, modality=one) for one in modalities]
    return rows


def measure(by_seed: Mapping[int, Run]) -> list[Cost]:
    """Return the cost of each seed's run."""
    return [
        Cost(
            phases=figures.phase_seconds(one.timing),
            seconds=float(one.timing["total"]),
            processor_seconds=float(one.timing["processor"]),
            peak_memory_mb=one.timing["peak_memory"] / 1e6,
            epochs=1 + max(m.global_epoch for m in one.metrics),
            updates=encoder_updates(one),
        )
        for one in by_seed.values()
    ]


def encoder_updates(run: Run) -> dict[str, int]:
    """Return the steps that each modality's encoder took: epochs in which it was trained × batches of an epoch."""
    config, _ = from_flat(yaml.safe_load(run.config))
    samples = len(load_dataset(config.data, config.seed, config.data_options()).train)
    batches = batches_per_epoch(samples, config.batch_size, config.devices)
    epochs = {(m.global_epoch, m.trained) for m in run.metrics if m.split == "train"}
    counts = dict.fromkeys(run.result["modalities"], 0)
    for _, trained in epochs:
        for name in trained.split("+"):
            counts[name] += batches
    return counts


def summary_table(costs: Mapping[str, Sequence[Cost]]) -> tuple[list[str], list[list[object]]]:
    """Return columns and one line per row: median and interquartile range over seeds, phases, per epoch, updates."""
    columns = ["row", "seeds", *(f"{name}_{of}" for name in COST for of in ("median", "q1", "q3"))]
    columns += ["seconds_per_epoch_median", *(f"{phase}_seconds_median" for phase in (*PHASES, "other"))]
    columns += ["updates_per_modality"]
    lines: list[list[object]] = []
    for row, of_seeds in costs.items():
        line: list[object] = [row, len(of_seeds)]
        for name in COST:
            low, middle, high = quartiles([getattr(cost, name) for cost in of_seeds])
            line += [middle, low, high]
        line.append(quartiles([cost.seconds / cost.epochs for cost in of_seeds])[1])
        line += [quartiles([cost.phases.get(phase, 0.0) for cost in of_seeds])[1] for phase in (*PHASES, "other")]
        line.append("; ".join(f"{name}: {count}" for name, count in of_seeds[0].updates.items()))
        lines.append(line)
    return columns, lines


def per_stage(runs: Runs) -> list[list[object]]:
    """Return one line per run, stage and phase."""
    return [
        [label, seed, stage["stage"], stage["trained"], phase, stage[phase]]
        for label, by_seed in runs.items()
        for seed, one in by_seed.items()
        for stage in one.timing["per_stage"]
        for phase in PHASES
        if phase in stage
    ]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile."""
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def say(costs: Mapping[str, Sequence[Cost]]) -> str:
    """Return what is to be seen: cost of each row relative to a plain one, what the projector takes, memory."""
    processor = {row: quartiles([cost.processor_seconds for cost in seeds])[1] for row, seeds in costs.items()}
    base = next((row for row in BASES if row in costs), min(processor, key=lambda row: processor[row]))
    relative = ", ".join(f"{row} {value / processor[base]:.2f}×" for row, value in processor.items() if row != base)
    sentence = f"Median processor time of a run is {processor[base]:.1f} s for {base}"
    sentence += f"; relative to it: {relative}. " if relative else ". "
    if "igm" in costs:
        shares = [
            (cost.phases.get("statistics", 0.0) + cost.phases.get("decomposition", 0.0)) / cost.seconds
            for cost in costs["igm"]
        ]
        sentence += f"Of igm's seconds, {quartiles(shares)[1]:.1%} go to statistics and decomposition for T. "
    memory = [quartiles([cost.peak_memory_mb for cost in seeds])[1] for seeds in costs.values()]
    return f"{sentence}Peak memory is between {min(memory):.0f} and {max(memory):.0f} MB, libraries and data included."


@figures.styled
def draw(costs: Mapping[str, Sequence[Cost]], setting: str) -> Figure:
    """Seconds of a run stacked by phase, and processor time per 1000 encoder updates: medians with quartiles."""
    figure = Figure(figsize=(figures.WIDTH, 1.6 + 0.32 * len(costs)), layout="constrained")
    stacked, updates = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    left = np.zeros(len(costs))
    for phase, colour in figures.PHASE_COLOURS.items():
        width = np.array([quartiles([cost.phases.get(phase, 0.0) for cost in seeds])[1] for seeds in costs.values()])
        if width.any():
            stacked.barh(list(costs), width, left=left, color=colour, label=phase, height=0.7)
            left += width
    for place, seeds in enumerate(costs.values()):
        processor = quartiles([cost.processor_seconds for cost in seeds])[1]
        stacked.plot(processor, place, marker="D", color="#111111", markersize=4, linestyle="none")
        low, middle, high = quartiles([cost.processor_per_1000_updates for cost in seeds])
        error = [[middle - low], [high - middle]]
        updates.errorbar(middle, place, xerr=error, fmt="D", color="#111111", markersize=4, capsize=2)
    stacked.plot([], [], marker="D", color="#111111", markersize=4, linestyle="none", label="processor time")
    stacked.set(xlabel="seconds of a run (median)")
    updates.set(xlabel="processor seconds per\n1000 encoder updates")
    updates.set_xlim(left=0)
    stacked.set_ylim(len(costs) - 0.5, -0.5)
    for axes in (stacked, updates):
        axes.grid(visible=False, axis="y")
    set_title(figure, f"{setting}; median, quartiles")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
