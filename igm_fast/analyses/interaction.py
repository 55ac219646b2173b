"""Interactive enhancement: accuracy after each stage, for IGM and with the projector of one modality switched off.

"without m-GM" is IGM in which the projector made of modality m is not applied to the modality that trains after m.
Measured on the test set with the weights at the end of each stage; "initial" is the model before any training. The
lower panel is forgetting: how the accuracy of modalities that a stage does not train changes in it. IGM has a head per
modality and training never goes back, so it is 0 there; anything else would be a defect.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from igm_fast.analyses.finding import Finding, NotApplicable, write_csv
from igm_fast.analyses.grid import (
    Row,
    difference_words,
    modality_names,
    set_title,
    setting_words,
    spread,
    tests_against,
    train_grid,
    with_quick_note,
)
from igm_fast.evaluate import rebuild
from igm_fast.reports import figures, statistics
from igm_fast.training import checkpoint, evaluation
from igm_fast.training.building import build_model, load_sources
from igm_fast.training.run_folder import RunFolder

KIND = "grid"
NAME = "interaction"
IGM = "IGM"
KEPT = ("--keep_stages", "true")


@dataclass(frozen=True)
class Course:
    """Test accuracy of one run before training (entry 0) and at the end of each stage."""

    trained: tuple[str, ...]  # modality of each stage
    accuracy: dict[str, list[float]]  # branch → stages + 1 values

    def forgetting(self) -> dict[str, list[float]]:
        """Return, by modality, its change of accuracy in each stage; NaN in the stages that train it."""
        return {
            name: [
                float("nan") if trained == name else after - before
                for trained, before, after in zip(self.trained, values, values[1:], strict=False)
            ]
            for name, values in self.accuracy.items()
            if name != "fused"
        }


Courses = dict[str, dict[int, Course]]  # variant → seed → course


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the grid's options are all."""


def run(arguments: argparse.Namespace, console: Console) -> Finding:
    """Train the variants, measure them stage by stage, and say what the projectors change."""
    rows = variants(modality_names(arguments))
    runs = train_grid(NAME, list(rows.values()), arguments, console)
    console.print("measuring the weights at the end of each stage on the test set")
    courses: Courses = {
        variant: {seed: measure(one.folder) for seed, one in runs[row.label].items()} for variant, row in rows.items()
    }
    chance = 1 / len(next(iter(runs[rows[IGM].label].values())).result["classes"])
    picture = arguments.out / f"{NAME}.png"
    figures.save(draw(courses, chance, setting_words(arguments, runs)), picture)
    tables = [
        write_csv(
            arguments.out / f"{NAME}.csv",
            ("variant", "stage", "trained", "branch", "seeds", "accuracy_mean", "accuracy_std"),
            summary_rows(courses),
        ),
        write_csv(
            arguments.out / f"{NAME}-stages.csv",
            ("variant", "seed", "stage", "trained", "branch", "accuracy"),
            seed_rows(courses),
        ),
        arguments.out / f"{NAME}-runs.csv",
    ]
    sentence = with_quick_note(say(courses, chance), arguments)
    return Finding(NAME, "Interactive enhancement", sentence, [picture], tables)


def variants(modalities: Sequence[str]) -> dict[str, Row]:
    """Return the rows: IGM, and for each modality IGM without the projector that is made of it.

    Raises:
        NotApplicable: there is one modality only.
    """
    if len(modalities) < 2:
        raise NotApplicable(f"the data have one modality, {modalities[0]}; interaction needs two at least")
    rows = {IGM: Row("igm-stages", "igm", KEPT)}
    for source, target in zip(modalities, [*modalities[1:], modalities[0]], strict=True):
        others = ",".join(name for name in modalities if name != target)
        flags = (*KEPT, "--projected_targets", others)
        rows[f"without {source}-GM"] = Row(f"igm-stages-without-{source}-gm", "igm", flags)
    return rows


def measure(folder: Path) -> Course:
    """Return a run's test accuracy before training and at the end of each stage.

    Raises:
        CheckpointError: the weights of a stage are missing or damaged.
        ValueError: the data have changed since.
    """
    rebuilt, run = rebuild(folder, "last"), RunFolder(folder)
    data, method, device = rebuilt.data, rebuilt.method, rebuilt.device
    untrained = build_model(method, data, rebuilt.config)
    load_sources(untrained, rebuilt.config)
    stages = method.schedule(untrained.modalities, rebuilt.config.epochs, rebuilt.config.stages)
    states = [untrained.state_dict()]
    way_out = "Remove that run's folder and give the same command again."
    states += [checkpoint.load(run.stage(stage.index), way_out)["model"] for stage in stages]
    accuracy: dict[str, list[float]] = {}
    for state in states:
        rebuilt.model.load_state_dict(state)
        outputs = evaluation.predict(rebuilt.model, method, data.test, device)
        for branch, branch_scores in evaluation.all_scores(outputs, data.test.labels).items():
            accuracy.setdefault(branch, []).append(branch_scores["accuracy"])
    return Course(tuple(stage.trained for stage in stages), accuracy)


def seed_rows(courses: Courses) -> list[list[object]]:
    """Return one line per variant, seed, stage and branch; stage 0 is the untrained model."""
    return [
        [variant, seed, stage, (None, *course.trained)[stage], branch, value]
        for variant, by_seed in courses.items()
        for seed, course in by_seed.items()
        for branch, values in course.accuracy.items()
        for stage, value in enumerate(values)
    ]


def summary_rows(courses: Courses) -> list[list[object]]:
    """Return one line per variant, stage and branch: mean and spread over seeds."""
    lines: list[list[object]] = []
    for variant, by_seed in courses.items():
        first = next(iter(by_seed.values()))
        for branch in first.accuracy:
            for stage, trained in enumerate((None, *first.trained)):
                summary = statistics.summarize([course.accuracy[branch][stage] for course in by_seed.values()])
                lines.append([variant, stage, trained, branch, summary.count, summary.mean, summary.std])
    return lines


def say(courses: Courses, chance: float) -> str:
    """Return what is to be seen: where the accuracy ends, what each projector changes, what is forgotten."""
    final = {
        variant: {seed: course.accuracy["fused"][-1] for seed, course in by_seed.items()}
        for variant, by_seed in courses.items()
    }
    initial = {seed: course.accuracy["fused"][0] for seed, course in courses[IGM].items()}
    tests = tests_against(IGM, final)
    without = "; ".join(
        f"{variant} {spread(final[variant])}, {difference_words(test)}" for variant, test in tests.items()
    )
    lost = most_forgotten(courses[IGM])
    forgetting = (
        "No modality changes in a stage that does not train it"
        if lost == 0
        else f"A modality changes by up to {lost:.3f} in a stage that does not train it; separate heads rule that out, "
        "unless stages start from the best weights: look into it"
    )
    return (
        f"IGM goes from {spread(initial)} untrained (chance: {chance:.3f}) to a fused test accuracy of "
        f"{spread(final[IGM])} after the last stage; against it: {without} (paired t-test over seeds, Holm-adjusted "
        f"for {len(tests)} comparison{'' if len(tests) == 1 else 's'}). {forgetting}."
    )


def most_forgotten(by_seed: Mapping[int, Course]) -> float:
    """Return the largest change of accuracy, up or down, of a modality that was not being trained."""
    changes = [change for course in by_seed.values() for values in course.forgetting().values() for change in values]
    return float(np.nanmax(np.abs(changes)))


@figures.styled
def draw(courses: Courses, chance: float, setting: str) -> Figure:
    """Fused accuracy, what it loses without each projector, accuracy of each modality, forgetting: stage by stage."""
    figure = Figure(figsize=(figures.WIDTH, 8.4), layout="constrained")
    fused, without, single, forgetting = panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 2))
    course = next(iter(courses[IGM].values()))
    modalities = [name for name in course.accuracy if name != "fused"]
    colours = figures.branch_colours([*modalities, "fused"])
    for axes in panels:
        for stage, trained in enumerate(course.trained, start=1):
            axes.axvspan(stage - 0.5, stage + 0.5, color=colours[trained], alpha=0.1, linewidth=0)
    whole = _table(courses[IGM], "fused")
    _stairs(fused, whole, color=colours["fused"], label=f"{IGM}, fused")
    fused.axhline(chance, color="#666666", linestyle=":", linewidth=1)
    fused.annotate("chance", (len(course.trained) + 0.5, chance), ha="right", va="bottom", fontsize=9)
    for place, variant in enumerate(name for name in courses if name != IGM):
        difference = _table(courses[variant], "fused") - whole
        _stairs(without, difference, color=("#111111", "#882255", "#117733", "#999933")[place % 4], label=variant)
    for name in modalities:
        _stairs(single, _table(courses[IGM], name), color=colours[name], label=name)
        changes = np.array([one.forgetting()[name] for one in courses[IGM].values()]).mean(axis=0)
        forgetting.plot(np.arange(1, len(changes) + 1), changes, color=colours[name], marker="o", markersize=4)
    fused.set(ylabel="fused accuracy")
    without.set(ylabel="fused, variant\nminus IGM")
    single.set(ylabel="IGM,\neach modality")
    forgetting.set(
        ylabel="IGM, change\nwhen not trained", xlabel="stage (0: untrained); bands have the colour of what is trained"
    )
    forgetting.set_xticks(range(len(course.trained) + 1))
    without.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    single.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(modalities), borderaxespad=0.1)
    set_title(figure, f"{setting}; test set, mean ± std")
    return figure


def _table(by_seed: Mapping[int, Course], branch: str) -> NDArray[np.float64]:
    """Accuracy ``[seeds, stages + 1]`` of a branch."""
    return np.array([course.accuracy[branch] for course in by_seed.values()])


def _stairs(axes: Axes, table: NDArray[np.float64], *, color: str, label: str) -> None:
    """Draw seeds × stages as a stair of means, with a band of ± std."""
    mean = table.mean(axis=0)
    std = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros_like(mean)
    edges = np.arange(len(mean) + 1) - 0.5
    axes.stairs(mean, edges, baseline=None, color=color, linewidth=1.6, label=label)
    low, high = (np.append(side, side[-1]) for side in (mean - std, mean + std))
    axes.fill_between(edges, low, high, step="post", color=color, alpha=0.12, linewidth=0)
