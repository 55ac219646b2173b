"""Many runs as one table: mean ± std over seeds, paired tests against one method, Markdown and CSV of it.

The comparison is a plain dictionary (it *is* comparison.json), so that pages and figures can be made again from the
file alone.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from igm_fast.reports import statistics
from igm_fast.reports.record import METRICS, Run, read_run

COSTS = {"seconds": "seconds", "processor_seconds": "CPU seconds", "peak_memory": "memory MB"}  # key in files → words
_PER_RUN = frozenset({"seed", "out", "resume", "overwrite", "config"})  # settings in which seeds of one row may differ


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a comparison: a method (with its modality, where it trains only one) on a data set with a seed.

    ``flags`` go to the training of this row alone, before those of all; ``label``, where there is one, is what the row
    is called.
    """

    data: str
    method: str
    modality: str | None
    seed: int
    label: str = ""
    flags: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """The table row this cell counts for."""
        return self.label or (f"{self.method}-{self.modality}" if self.modality else self.method)

    @property
    def folder(self) -> Path:
        """The run folder, relative to the comparison's folder."""
        return Path("cells") / self.data / self.row / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.data} {self.row} seed {self.seed}"


def finished_runs(out: Path, cells: Iterable[Cell]) -> dict[Cell, Run]:
    """Read the cells that have a result.

    Args:
        out: folder of the comparison.
        cells: cells to read; those without a result are left out.

    Raises:
        ValueError: two of them cannot share a table: other data, or other settings in one row.
    """
    runs = {cell: read_run(out / cell.folder) for cell in cells if (out / cell.folder / "result.json").exists()}
    check_same_data(runs)
    check_same_configuration(runs)
    return runs


def compare_runs(runs: Mapping[Cell, Run], reference: str) -> dict[str, Any]:
    """Return summaries and tests of finished runs; a missing cell only makes the counts smaller.

    Holm's correction covers, in one data set and one metric, all rows tested against the reference.
    """
    return {
        "reference": reference,
        "confidence": statistics.CONFIDENCE,
        "data": {
            data: _compare_rows({cell: run for cell, run in runs.items() if cell.data == data}, reference)
            for data in dict.fromkeys(cell.data for cell in runs)
        },
        "cells": [
            asdict(cell)
            | {"row": cell.row, "folder": cell.folder.as_posix()}
            | {key: run.result.get(key) for key in COSTS}
            for cell, run in runs.items()
        ],
    }


def check_same_data(runs: Mapping[Cell, Run]) -> None:
    """Refuse results that were not measured on the same samples.

    Raises:
        ValueError: two cells of one data set and seed differ in their data fingerprint or test labels.
    """
    first: dict[tuple[str, int], tuple[Cell, Run]] = {}
    for cell, run in runs.items():
        other_cell, other = first.setdefault((cell.data, cell.seed), (cell, run))
        ours, theirs = run.result.get("data_fingerprint"), other.result.get("data_fingerprint")
        labels = None if run.labels is None else run.labels.tolist()
        other_labels = None if other.labels is None else other.labels.tolist()
        if ours != theirs or (labels and other_labels and labels != other_labels):
            raise ValueError(
                f"{cell.folder} and {other_cell.folder} were measured on different data (fingerprints {ours} and "
                f"{theirs}), so they cannot share a table. Remove the outdated folder or choose another --out."
            )


def check_same_configuration(runs: Mapping[Cell, Run]) -> None:
    """Refuse a row whose seeds were trained with different settings.

    Raises:
        ValueError: two cells of one row differ in a setting other than the seed and the place of the run.
    """
    first: dict[tuple[str, str], tuple[Cell, dict[str, Any]]] = {}
    for cell, run in runs.items():
        settings = {key: value for key, value in _settings(run.config).items() if key not in _PER_RUN}
        other_cell, others = first.setdefault((cell.data, cell.row), (cell, settings))
        different = [key for key in sorted(settings.keys() | others.keys()) if settings.get(key) != others.get(key)]
        if different:
            values = ", ".join(f"{key}: {settings.get(key)} and {others.get(key)}" for key in different)
            raise ValueError(
                f"{cell.folder} and {other_cell.folder} were trained with different settings ({values}), so they "
                "cannot share a row. Remove the outdated folder or choose another --out."
            )


def _compare_rows(runs: Mapping[Cell, Run], reference: str) -> dict[str, Any]:
    rows: dict[str, dict[int, Run]] = {}
    for cell, run in runs.items():
        rows.setdefault(cell.row, {})[cell.seed] = run
    modalities = list(dict.fromkeys(name for run in runs.values() for name in run.result["modalities"]))
    return {
        "modalities": modalities,
        "fingerprints": {str(cell.seed): run.result.get("data_fingerprint") for cell, run in runs.items()},
        "test_samples": {str(c.seed): len(run.labels) for c, run in runs.items() if run.labels is not None},
        "protocol": _common(_settings(run.config).get("protocol") for run in runs.values()),
        "selected_on_test": [row for row, by_seed in rows.items() if _selects_on_test(by_seed)],
        "methods": {row: _summaries(by_seed, modalities) for row, by_seed in rows.items()},
        "tests": [test for metric in METRICS for test in _tests_over_seeds(rows, reference, metric)],
        "mcnemar": [test for seed in sorted({c.seed for c in runs}) for test in _tests_in_seed(rows, reference, seed)],
    }


@functools.cache
def _settings(config: str) -> Mapping[str, Any]:
    return dict(yaml.safe_load(config) or {})


def _selects_on_test(by_seed: Mapping[int, Run]) -> bool:
    return any(_settings(run.config).get("selection") == "test" for run in by_seed.values())


def _common(values: Iterable[str | None]) -> str | None:
    """Return what the values have in common: the value, their list where they differ, None where there is none."""
    return ", ".join(dict.fromkeys(value for value in values if value is not None)) or None


def _scores(by_seed: Mapping[int, Run], branch: str | None, metric: str) -> dict[int, float]:
    scores = {}
    for seed, run in sorted(by_seed.items()):
        value = run.result["test"].get(branch or run.headline, {}).get(metric)
        if value is not None:
            scores[seed] = float(value)
    return scores


def _costs(by_seed: Mapping[int, Run], key: str) -> dict[int, float]:
    return {seed: float(run.result[key]) for seed, run in sorted(by_seed.items()) if run.result.get(key) is not None}


def _summaries(by_seed: Mapping[int, Run], modalities: Sequence[str]) -> dict[str, Any]:
    def summary(scores: Mapping[int, float]) -> dict[str, Any]:
        values = {str(seed): value for seed, value in scores.items()}
        return asdict(statistics.summarize(list(scores.values()))) | {"values": values}

    return {
        "seeds": sorted(by_seed),
        "fused": {metric: summary(_scores(by_seed, None, metric)) for metric in METRICS},
        "modalities": {name: {m: summary(_scores(by_seed, name, m)) for m in METRICS} for name in modalities},
        **{key: summary(_costs(by_seed, key)) for key in COSTS},
        "num_parameters": next(iter(by_seed.values())).result.get("num_parameters"),
    }


def _tests_over_seeds(rows: Mapping[str, Mapping[int, Run]], reference: str, metric: str) -> list[dict[str, Any]]:
    if reference not in rows:
        return []
    others = [row for row in rows if row != reference]
    base = _scores(rows[reference], None, metric)
    tests = [statistics.paired_test(_scores(rows[row], None, metric), base) for row in others]
    adjusted = statistics.holm([test.p for test in tests])
    return [
        {"method": row, "against": reference, "metric": metric}
        | asdict(test)
        | {"p_holm": p, "significant": None if p is None else p < statistics.SIGNIFICANCE}
        for row, test, p in zip(others, tests, adjusted, strict=True)
    ]


def _tests_in_seed(rows: Mapping[str, Mapping[int, Run]], reference: str, seed: int) -> list[dict[str, Any]]:
    """McNemar's tests on the test samples of one seed; Holm's correction covers the rows of that seed."""
    correct = {}
    for row, by_seed in rows.items():
        if seed in by_seed and by_seed[seed].labels is not None:
            run = by_seed[seed]
            prediction = run.probabilities.get("fused", run.probabilities.get(run.headline))
            if prediction is not None:
                correct[row] = prediction.argmax(axis=1) == run.labels
    base = correct.pop(reference, None)
    if base is None:
        return []
    tests = {row: statistics.mcnemar(right, base) for row, right in correct.items()}
    adjusted = statistics.holm([test.p for test in tests.values()])
    return [
        {"method": row, "against": reference, "seed": seed} | asdict(test) | {"p_holm": p}
        for (row, test), p in zip(tests.items(), adjusted, strict=True)
    ]


def spread(summary: Mapping[str, Any], digits: int = 3) -> str:
    """Return ``mean ± std``; without a second value only the mean, without any a dash."""
    if summary["mean"] is None:
        return "–"
    mean = f"{summary['mean']:.{digits}f}"
    return mean if summary["std"] is None else f"{mean} ± {summary['std']:.{digits}f}"


def best_rows(methods: Mapping[str, Any], column: str, modality: str | None = None) -> set[str]:
    """Return the rows with the highest printed mean in a column (several where they print alike)."""
    printed = {}
    for row, summary in methods.items():
        mean = (summary["fused"] if modality is None else summary["modalities"][modality])[column]["mean"]
        if mean is not None:
            printed[row] = round(mean, 3)
    return {row for row, mean in printed.items() if mean == max(printed.values())}


def verdict(test: Mapping[str, Any], mcnemar: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return one test in words: difference, interval, adjusted p, and "not significant" where it is not.

    With one seed only McNemar's test on that seed's samples is possible; it is named as such.
    """
    if test["mean_difference"] is None:
        return str(test["note"])
    words = f"{test['mean_difference']:+.3f}"
    if test["interval"] is not None:
        words += f" [{test['interval'][0]:+.3f}, {test['interval'][1]:+.3f}]"
    if test["p_holm"] is None:
        single = [m for m in mcnemar if m["method"] == test["method"] and m["seed"] in test["seeds"]]
        if test["metric"] != "accuracy" or len(single) != 1:
            return f"{words}; {test['note']}"
        p, significant, name = single[0]["p_holm"], single[0]["p_holm"] < statistics.SIGNIFICANCE, "one seed, McNemar p"
    else:
        p, significant, name = test["p_holm"], test["significant"], "p" if test["p_t"] is not None else "Wilcoxon p"
    return f"{words}, {name} {_p_words(p)}{'' if significant else ', not significant'}"


def _p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def cost_cells(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return a row's costs as they are shown, by column: processor time with its spread, memory as its mean.

    Processor time stands for time, because other work on the machine leaves it alone.
    """
    memory = summary["peak_memory"]["mean"]
    return {
        COSTS["processor_seconds"]: spread(summary["processor_seconds"], 1),
        COSTS["peak_memory"]: "–" if memory is None else f"{memory / 1e6:.0f}",
    }


def tuned_settings(comparison: Mapping[str, Any], data: str, row: str) -> str | None:
    """Return the settings that tuning chose for a row, as far as they differ from its own; None without tuning."""
    if "tuning" not in comparison:
        return None
    changed = comparison["tuning"]["data"].get(data, {}).get(row, {}).get("changed", {})
    return ", ".join(f"{key} {value}" for key, value in changed.items()) or "its own"


def markdown(comparison: Mapping[str, Any]) -> str:
    """Return one Markdown table for each data set, best means in bold, tests in words, and how to read it."""
    parts = []
    for data, content in comparison["data"].items():
        most = max(len(summary["seeds"]) for summary in content["methods"].values())
        methods, modalities = content["methods"], content["modalities"]
        costs = [COSTS["processor_seconds"], COSTS["peak_memory"]]
        tuned = ["tuned settings"] if "tuning" in comparison else []
        head = ["method", *METRICS.values(), *modalities, *costs, *tuned]
        head.append(f"accuracy against {comparison['reference']}")
        parts += [f"### {data}", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        best = {metric: best_rows(methods, metric) for metric in METRICS}
        best |= {name: best_rows(methods, "accuracy", name) for name in modalities}
        tests = {test["method"]: test for test in content["tests"] if test["metric"] == "accuracy"}
        for row, summary in methods.items():
            columns = {metric: spread(summary["fused"][metric]) for metric in METRICS}
            columns |= {name: spread(summary["modalities"][name]["accuracy"]) for name in modalities}
            cells = [f"**{shown}**" if row in best[column] else shown for column, shown in columns.items()]
            said = verdict(tests[row], content["mcnemar"]) if row in tests else "reference"
            said = said if row in tests or row == comparison["reference"] else "–"
            count = len(summary["seeds"])
            name = row if count == most else f"{row} ({count} of {most} seeds)"
            cells += cost_cells(summary).values()
            cells += [str(tuned_settings(comparison, data, row))] if tuned else []
            parts.append(f"| {name} | {' | '.join(cells)} | {said} |")
        for warning in warnings(comparison, data):
            parts += ["", f"**{warning}**"]
        parts += ["", f"{reading_note(comparison, data)} {tuning_note(comparison)}", ""]
    return "\n".join(parts)


def warnings(comparison: Mapping[str, Any], data: str) -> list[str]:
    """Return what the table of a data set must not be taken for."""
    content, said = comparison["data"][data], []
    if comparison.get("quick"):
        said.append(
            "A check that every method runs, no result: after a few epochs and with two seeds, figures and tests mean "
            "nothing. Leave --quick out to compare."
        )
    on_test = content.get("selected_on_test", [])
    if on_test:
        which = "all rows" if len(on_test) == len(content["methods"]) else ", ".join(on_test)
        said.append(
            f"Selected on the test set (protocol {content['protocol']}): {which}. Such a figure is the best of many "
            "epochs on these very samples, and no estimate of what other samples would give."
        )
    return said


def tuning_note(comparison: Mapping[str, Any]) -> str:
    """Return the sentences that say whether, and how, the settings of the rows were tuned."""
    if "tuning" not in comparison:
        return "Not tuned: the settings of every row are those of the data set and of the command."
    tuning = comparison["tuning"]
    return (
        f"Tuned: {tuning['trials']} settings of every row, the row's own among them, each with seeds "
        f"{' and '.join(map(str, tuning['seeds']))}; the best mean validation accuracy decided. Where the seed draws "
        "the split, samples that tuning saw are also among the test samples of other seeds."
    )


def reading_note(comparison: Mapping[str, Any], data: str) -> str:
    """Return the sentences that belong under every table: what ± is, which test, which correction, which limits."""
    methods = comparison["data"][data]["methods"]
    counts = sorted({len(summary["seeds"]) for summary in methods.values()})
    span = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    seeds = "one seed" if counts == [1] else f"{span} seeds"
    test = "95 % interval and paired t-test over seeds"
    if counts == [1]:
        test = "exact McNemar test on the test samples, taken as independent (one seed allows no test over seeds)"
    tests = max(len(methods) - 1, 0)
    return (
        f"Test set, {seeds}: mean ± sample standard deviation, best mean in bold. Mean difference to "
        f"{comparison['reference']} with {test}, Holm-adjusted for {tests} "
        f"comparison{'' if tests == 1 else 's'}; 'not significant' where the adjusted p ≥ {statistics.SIGNIFICANCE}. "
        "Seeds share one data set, so p speaks of other splits and initialisations of these data, not of other data. "
        "CPU seconds are a run's processor time, memory its largest resident size with all libraries."
    )


def tidy_csv(runs: Mapping[Cell, Run]) -> str:
    """Return one line per run and branch: data, method, seed, branch, test metrics, cost (memory in bytes)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    facts = (*COSTS, "selected_epoch", "num_parameters", "data_fingerprint")
    writer.writerow(["data", "method", "seed", "branch", *METRICS, *facts])
    for cell, run in runs.items():
        for branch, scores in run.result["test"].items():
            values = [scores.get(metric) for metric in METRICS] + [run.result.get(key) for key in facts]
            writer.writerow([cell.data, cell.row, cell.seed, branch, *values])
    return buffer.getvalue()
