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
    if content.get("failed"):
        count, names = len(content["failed"]), "; ".join(cell["name"] for cell in content["failed"])
        said = "1 run failed and is" if count == 1 else f"{count} runs failed and are"
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
            (tables.spread(summary["seconds"], 1), summary["seconds"]["mean"]),
            len(summary["seeds"]),
        ]
        for row, summary in part["methods"].items()
    ]
    columns = ["method", *METRICS.values(), *part["modalities"], "seconds", "seeds"]
    tests = [
        [test["method"], METRICS[test["metric"]], *_test_cells(test), tables.verdict(test, part["mcnemar"])]
        for test in part["tests"]
    ]
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
    return [
        page.table(f"Results on {data}", columns, rows),
        page.paragraph(tables.reading_note(content, data), "soft"),
        Markup(f"<h3>Tests over seeds, against {page.text(reference)}</h3>"),
        page.table(
            f"Paired tests on {data}",
            ["method", "metric", "paired t p", "Wilcoxon p", "Holm p", "difference, in words"],
            tests,
            words=(0, 1, 5),
        ),
        page.folded(
            "Exact McNemar tests on the test samples of each seed",
            page.table(
                f"McNemar tests on {data}",
                ["method", "seed", "only it is right", f"only {reference} is right", "p", "Holm p"],
                samples,
            ),
        ),
    ]


def _test_cells(test: Mapping[str, Any]) -> list[object]:
    return [None if test[key] is None else (f"{test[key]:.3g}", test[key]) for key in ("p_t", "p_wilcoxon", "p_holm")]


def _cells(content: Mapping[str, Any]) -> list[Markup]:
    rows = [
        [
            cell["data"],
            cell["row"],
            cell["seed"],
            (f"{cell['seconds']:.1f}", cell["seconds"]),
            Markup(f'<a href="{page.text(cell["folder"])}/report.html">report</a>'),
        ]
        for cell in content["cells"]
    ]
    failed = [
        page.folded(f"Failed: {cell['name']}", page.preformatted(cell["tail"])) for cell in content.get("failed", ())
    ]
    return [page.table("Finished runs", ["data", "method", "seed", "seconds", "page"], rows, words=(0, 1, 4)), *failed]
