"""report.html of a comparison: tables, tests and the figure of many runs, made from comparison.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igm_fast.reports import comparison as tables
from igm_fast.reports import figures, page
from igm_fast.reports.page import Markup
from igm_fast.reports.record import METRICS, read_json


def write_comparison_report(out_dir: Path) -> Path:
    """Write ``report.html`` and ``comparison.png`` from ``comparison.json`` and return the page's path.

    Raises:
        FileNotFoundError: there is no comparison.json.
    """
    out_dir = Path(out_dir)
    content = read_json(out_dir / "comparison.json", None)
    if content is None:
        raise FileNotFoundError(f"{out_dir / 'comparison.json'} is missing; `python -m igm_fast.compare` writes it.")
    reference = content["reference"]
    sections: dict[str, list[Markup]] = {"Overview": _overview(content, out_dir)}
    for data in content["data"]:
        sections[data] = _comparison_tables(content, data)
    if "tuning" in content:
        sections["Tuning"] = _tuning(content["tuning"])
    sections["Cells"] = _cells(content)
    sections["Machine"] = [
        page.table(
            "Machine and versions",
            ["fact", "value"],
            [[key, str(value)] for part in ("machine", "versions") for key, value in content.get(part, {}).items()],
            words=(0, 1),
        )
    ]
    lead = f"{len(content['cells'])} finished runs; every method is tested against {reference}."
    path = out_dir / "report.html"
    closing = "Made by igm_fast.compare. Numbers: table.csv (per run), comparison.json (everything), table.md."
    path.write_text(page.page("Comparison of methods", lead, sections, closing), encoding="utf-8")
    return path


def _overview(content: Mapping[str, Any], out_dir: Path) -> list[Markup]:
    parts = []
    if content.get("missing"):
        count, names = len(content["missing"]), "; ".join(cell["name"] for cell in content["missing"])
        said = "1 run has no result and is" if count == 1 else f"{count} runs have no result and are"
        parts.append(page.paragraph(f"{said} missing below: {names}.", "notice"))
    scores = {
        data: {
            row: {int(seed): value for seed, value in summary["fused"]["accuracy"]["values"].items()}
            for row, summary in part["methods"].items()
        }
        for data, part in content["data"].items()
    }
    if not scores:
        return [*parts, page.paragraph("No run has finished, so there is nothing to compare.", "notice")]
    source = figures.save(figures.comparison(scores, content["reference"]), out_dir / "comparison.png")
    verdicts = " ".join(f"On {data} {_verdicts(content, data)}." for data in scores)
    caption = f"Large dots are means, bars one standard deviation, small dots single seeds. {verdicts}"
    parts.append(page.figure(source, "Test accuracy per method: mean, standard deviation and seeds", caption))
    return parts


def _verdicts(content: Mapping[str, Any], data: str) -> str:
    tests = [test for test in content["data"][data]["tests"] if test["metric"] == "accuracy"]
    different = [test["method"] for test in tests if test["significant"]]
    if not any(test["significant"] is not None for test in tests):
        return "no test over seeds was possible"
    if not different:
        return f"no difference to {content['reference']} is significant"
    return f"the difference to {content['reference']} is significant for {', '.join(different)}"


def _comparison_tables(content: Mapping[str, Any], data: str) -> list[Markup]:
    part = content["data"][data]
    tuned = ["tuned settings"] if "tuning" in content else []

    def cell(row: str, column: str, modality: str | None = None) -> tuple[str, float | None]:
        summary = part["methods"][row]["fused" if modality is None else "modalities"]
        summary = (summary if modality is None else summary[modality])[column]
        shown = page.text(tables.spread(summary))
        best = row in tables.best_rows(part["methods"], column, modality)
        return Markup(f"<strong>{shown}</strong>" if best else shown), summary["mean"]

    rows = [
        [
            row,
            *(cell(row, metric) for metric in METRICS),
            *(cell(row, "accuracy", name) for name in part["modalities"]),
            *zip(tables.cost_cells(summary).values(), _cost_keys(summary), strict=True),
            *([tables.tuned_settings(content, data, row)] if tuned else []),
            len(summary["seeds"]),
        ]
        for row, summary in part["methods"].items()
    ]
    costs = [tables.COSTS["processor_seconds"], tables.COSTS["peak_memory"]]
    columns = ["method", *METRICS.values(), *part["modalities"], *costs, *tuned, "seeds"]
    samples = [
        [
            m["method"],
            m["seed"],
            m["only_first"],
            m["only_second"],
            (f"{m['p']:.3g}", m["p"]),
            (f"{m['p_holm']:.3g}", m["p_holm"]),
        ]
        for m in part["mcnemar"]
    ]
    reference = content["reference"]
    words = [column for column, name in enumerate(columns) if name in ("method", *tuned)]
    return [
        *(page.paragraph(warning, "notice") for warning in tables.warnings(content, data)),
        page.table(f"Results on {data}", columns, rows, words=words),
        page.paragraph(f"{tables.reading_note(content, data)} {tables.tuning_note(content)}", "soft"),
        Markup(f"<h3>Tests over seeds, against {page.text(reference)}</h3>"),
        _tests(part, "accuracy"),
        *(page.folded(f"The same tests of {METRICS[metric]}", _tests(part, metric)) for metric in list(METRICS)[1:]),
        page.folded(
            "Exact McNemar tests on the test samples of each seed",
            page.table(
                f"McNemar tests on {data}",
                ["method", "seed", "only it is right", f"only {reference} is right", "p", "Holm p"],
                samples,
            ),
        ),
    ]


def _tests(part: Mapping[str, Any], metric: str) -> Markup:
    rows = [
        [test["method"], *_test_cells(test), tables.verdict(test, part["mcnemar"])]
        for test in part["tests"]
        if test["metric"] == metric
    ]
    columns = ["method", "paired t p", "Wilcoxon p", "Holm p", "difference, in words"]
    return page.table(f"Paired tests of {METRICS[metric]}", columns, rows, words=(0, 4))


def _test_cells(test: Mapping[str, Any]) -> list[object]:
    return [None if test[key] is None else (f"{test[key]:.3g}", test[key]) for key in ("p_t", "p_wilcoxon", "p_holm")]


def _cost_keys(summary: Mapping[str, Any]) -> list[float | None]:
    return [summary["processor_seconds"]["mean"], summary["peak_memory"]["mean"]]


def _tuning(tuning: Mapping[str, Any]) -> list[Markup]:
    rows = [
        [
            data,
            row,
            chosen["trial"],
            chosen["validation_accuracy"],
            chosen["validation_accuracy_of_default"],
            ", ".join(f"{key} {value}" for key, value in chosen["settings"].items()),
        ]
        for data, methods in tuning["data"].items()
        for row, chosen in methods.items()
    ]
    columns = ["data", "method", "trial", "validation accuracy", "of its own settings", "chosen settings"]
    said = (
        f"{tuning['trials']} trials of every row, trial 0 with the row's own settings. The chosen trial's accuracy is "
        "the largest of these, so it is too high as an estimate; the tables above show other seeds and the test set. "
        "Every run of every trial: tuning.csv."
    )
    return [page.table("Chosen settings", columns, rows, words=(0, 1, 5)), page.paragraph(said, "soft")]


def _cells(content: Mapping[str, Any]) -> list[Markup]:
    rows = [
        [
            cell["data"],
            cell["row"],
            cell["seed"],
            (f"{cell['seconds']:.1f}", cell["seconds"]),
            *_cell_costs(cell),
            Markup(f'<a href="{page.text(cell["folder"])}/report.html">report</a>'),
        ]
        for cell in content["cells"]
    ]
    without = [
        page.folded(f"No result: {cell['name']}", page.preformatted(cell["tail"]))
        for cell in content.get("missing", ())
    ]
    columns = ["data", "method", "seed", *tables.COSTS.values(), "page"]
    return [page.table("Finished runs", columns, rows, words=(0, 1, 6)), *without]


def _cell_costs(cell: Mapping[str, Any]) -> list[tuple[str, float] | None]:
    processor, memory = cell["processor_seconds"], cell["peak_memory"]
    return [
        None if processor is None else (f"{processor:.1f}", processor),
        None if memory is None else (f"{memory / 1e6:.0f}", memory),
    ]
