"""report.html of one run: one file that holds its figures and tables and asks no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from igm_fast.reports import figures, page, statistics
from igm_fast.reports.page import Markup
from igm_fast.reports.record import METRICS, Run, read_run

NO_PROJECTORS = "This method computes no projectors."


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a run folder, finished or not, and return the page's path.

    Raises:
        FileNotFoundError: ``run_dir`` is no run folder.
        ValueError: a file of the run is damaged; the message names it.
    """
    run = read_run(Path(run_dir))
    result = run.result
    title = f"{result.get('method', 'Run')} on {result.get('data', run.folder.name)}"
    if "seed" in result:
        title += f", seed {result['seed']}"
    sections = {
        "Result": _result(run),
        "Curves": _curves(run),
        "Stages": _stages(run),
        "Spectra": _spectra(run),
        "Time": _time(run),
        "Confusion": _confusion(run),
        "Configuration": _configuration(run),
    }
    lead = _lead(run) if run.finished else "This run is not finished; the page shows what it has written so far."
    path = run.folder / "report.html"
    path.write_text(page.page(title, lead, sections, _closing(run)), encoding="utf-8")
    return path


def _lead(run: Run) -> str:
    branch = run.headline
    parts = [f"Test accuracy of {_branch_words(branch)}: {run.result['test'][branch]['accuracy']:.3f}."]
    if run.labels is not None:
        parts.append(f"{run.labels.size} test samples, {len(run.result['classes'])} classes.")
    if run.result.get("selected_on") == "test":
        parts.append(
            "The weights were selected on this test split: these numbers do not say what to expect of new data."
        )
    else:
        parts.append("The weights were selected on the validation split; the test split was evaluated once.")
    return " ".join(parts)


def _branch_words(branch: str) -> str:
    return "the fused prediction" if branch == "fused" else branch


def _result(run: Run) -> list[Markup]:
    if not run.finished:
        return [page.paragraph("No test result yet: it is measured once, at the end of training.", "notice")]
    test, validation = run.result["test"], run.result.get("validation", {})
    samples = None if run.labels is None else int(run.labels.size)

    def interval(branch: str) -> tuple[float, float] | None:
        correct = round(test[branch]["accuracy"] * samples) if samples else 0
        return statistics.binomial_interval(correct, samples) if samples else None

    best = interval(run.headline)
    head = test[run.headline]
    cards = [
        (
            "accuracy",
            f"{head['accuracy']:.3f}",
            "" if best is None else f"95 % interval {best[0]:.3f} to {best[1]:.3f}",
        ),
        ("MAP", _number(head.get("map")), "mean average precision over classes"),
        ("macro-F1", _number(head.get("macro_f1")), "unweighted mean over classes"),
    ]
    if run.labels is not None:
        majority = np.bincount(run.labels).max() / run.labels.size
        cards.append(("chance", f"{majority:.3f}", "always the most frequent test class"))
    rows = []
    for branch in sorted(test, key=lambda name: (name == "fused", list(test).index(name))):
        low_high = interval(branch)
        shown = None if low_high is None else (f"{low_high[0]:.3f} to {low_high[1]:.3f}", low_high[0])
        scores = [test[branch].get(metric) for metric in METRICS]
        rows.append([branch, *scores[:1], shown, *scores[1:], validation.get(branch, {}).get("accuracy")])
    columns = ["branch", "test accuracy", "95 % interval", "MAP", "macro-F1", "validation accuracy"]
    return [
        *(page.paragraph(f"Warning: {warning.rstrip('.')}.", "notice") for warning in run.result.get("warnings", ())),
        page.cards(cards),
        page.table("Test results per modality and fused", columns, rows),
        page.paragraph(
            "The interval is Wilson's binomial one for a single test set and takes samples as independent; it does not "
            "contain the spread over seeds. A comparison of methods needs several: python -m igm_fast.compare.",
            "soft",
        ),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _curves(run: Run) -> list[Markup]:
    if not any(run.series("validation", branch, "accuracy") for branch in run.branches):
        return [page.paragraph("No epoch has been evaluated yet.", "notice")]
    source = figures.save(figures.curves(run), run.folder / "figures" / "curves.png")
    headline = "fused" if "fused" in run.branches else run.branches[-1]
    points = run.series("validation", headline, "accuracy")
    best = max(points, key=lambda point: point.value)
    caption = (
        f"Validation accuracy of {_branch_words(headline)} ends at {points[-1].value:.3f}; its highest value is "
        f"{best.value:.3f} at epoch {best.global_epoch}. "
    )
    if len(run.stages()) > 1:
        caption += (
            "Bands show which modality a stage trained: the curve of a modality outside its own bands stays flat \
unless something of it is shared. "
        )
    caption += "Training loss is drawn where its modality was trained."
    return [page.figure(source, "Validation accuracy and training loss per epoch", caption)]


def _stages(run: Run) -> list[Markup]:
    spans = run.stages()
    if not spans:
        return [page.paragraph("No stage has been recorded yet.", "notice")]
    seconds = {row.get("stage"): row for row in run.timing.get("per_stage") or () if isinstance(row, Mapping)}
    rows = []
    for stage, trained, first, last in spans:

        def within(split: str, branch: str, metric: str, first: int = first, last: int = last) -> list[float | None]:
            return [p.value for p in run.series(split, branch, metric) if first <= p.global_epoch <= last]

        losses = next((found for branch in (trained, *run.branches) if (found := within("train", branch, "loss"))), [])
        accuracy = [(within("validation", branch, "accuracy") or [None])[-1] for branch in run.branches]
        spent = sum(figures.phase_seconds(seconds.get(stage, {})).values())
        took = (f"{spent:.1f}", spent) if spent else None
        rows.append(
            [stage, trained, last - first + 1, *(losses[:1] or [None]), *(losses[-1:] or [None]), *accuracy, took]
        )
    columns = ["stage", "trained", "epochs", "first loss", "last loss", *run.branches, "seconds"]
    return [
        page.table("Stages", columns, rows, words=(1,)),
        page.paragraph("Columns named after branches: validation accuracy at the end of the stage.", "soft"),
    ]


def _spectra(run: Run) -> list[Markup]:
    rows = run.last_spectra()
    if not rows:
        finished = NO_PROJECTORS if run.finished else "No projector has been computed so far."
        return [page.paragraph(finished)]
    ranked = [s for s in rows if s.ranked]
    source = figures.save(figures.spectra(run), run.folder / "figures" / "spectra.png") if ranked else None
    steep = [s for s in ranked if s.eigenvalues.size > 1 and s.eigenvalues[0] > 0]
    ratio = np.median([s.eigenvalues[1] / s.eigenvalues[0] for s in steep]) if steep else None
    caption = (
        "Above: eigenvalues of the activations' second moment, divided by the largest. Below: eigenvalues of T; 1 lets \
a gradient direction pass, lower values damp it. "
    )
    if ratio is not None:
        caption += f"The second eigenvalue is {ratio:.1%} of the largest (median over layers)"
        caption += ": mostly one direction is damped." if ratio < 0.1 else ": several directions are damped."
    if len(ranked) < len(rows):
        caption += f" Not shown: {len(rows) - len(ranked)} whose T is a polynomial of C, made without its spectrum."
    table = page.table(
        "Projectors of the last stage",
        [
            "source",
            "layer",
            "d",
            "rank",
            "route",
            "certified error",
            "strongest damping",
            "damped, random",
            "damped, along activations",
        ],
        [
            [
                s.source,
                s.layer or "(module)",
                s.dim,
                s.rank,
                s.route,
                (f"{s.error_bound:.1e}", s.error_bound),
                1.0 - float(s.projector_eigenvalues.min(initial=1.0)),
                (f"{s.damped_random:.1%}", s.damped_random),
                (f"{s.damped_along_activations:.1%}", s.damped_along_activations) if s.ranked else ("–", None),
            ]
            for s in rows
        ],
        words=(0, 1, 4),
    )
    note = (
        "Certified error bounds ‖T − T̂‖₂. The last two columns are the share of a gradient's energy that T takes away: "
        "for a random gradient, and for one distributed like the source's activations (over the known eigenvalues)."
    )
    title = "Eigenvalues of the activation statistics and of the projectors T"
    return [
        page.figure(source, title, caption) if source else page.paragraph(caption, "soft"),
        table,
        page.paragraph(note, "soft"),
    ]


def _time(run: Run) -> list[Markup]:
    seconds = figures.phase_seconds(run.timing)
    if not seconds:
        return [page.paragraph("No times have been recorded yet.", "notice")]
    source = figures.save(figures.time_per_phase(run), run.folder / "figures" / "time.png")
    total = sum(seconds.values())
    largest = max(seconds, key=lambda phase: seconds[phase])
    caption = f"{total:.1f} s in all, most of it ({seconds[largest] / total:.0%}) for {largest}. "
    if run.spectra:
        share = (seconds.get("statistics", 0.0) + seconds.get("decomposition", 0.0)) / total
        caption += f"Statistics and decomposition, which only the projectors need, take {share:.1%}."
    else:
        caption += NO_PROJECTORS
    return [page.figure(source, "Seconds per phase", caption)]


def _confusion(run: Run) -> list[Markup]:
    if run.labels is None or not run.finished:
        return [page.paragraph("No test predictions yet.", "notice")]
    classes = [str(name) for name in run.result["classes"]]
    branch = "fused" if "fused" in run.probabilities else next(iter(run.probabilities))
    predicted = run.probabilities[branch].argmax(axis=1)
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (run.labels, predicted), 1)
    source = figures.save(figures.confusion(matrix, classes), run.folder / "figures" / "confusion.png")
    wrong = matrix - np.diag(np.diag(matrix))
    caption = "Every test sample is classified correctly."
    if wrong.any():
        true, guess = np.unravel_index(wrong.argmax(), wrong.shape)
        caption = (
            f"Rows are true classes. Most frequent confusion of {_branch_words(branch)}: {classes[true]} taken for \
{classes[guess]}, {wrong[true, guess]} of {matrix[true].sum()} samples."
        )
    return [page.figure(source, "Confusion matrix on the test set", caption)]


def _configuration(run: Run) -> list[Markup]:
    facts = [[key, value if isinstance(value, (str, int)) else str(value)] for key, value in run.environment.items()]
    facts += [
        [name, str(run.result[key])]
        for key, name in (("num_parameters", "parameters of the model"), ("data_fingerprint", "data fingerprint"))
        if key in run.result
    ]
    return [
        page.folded("config.yaml", page.preformatted(run.config or "not written yet")),
        page.folded("Environment", page.table("Environment", ["fact", "value"], facts, words=(0, 1))),
    ]


def _closing(run: Run) -> str:
    return f"Made by igm_fast from the files in {run.folder.name}/; its figures are also in figures/ as PNG."
