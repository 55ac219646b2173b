"""The figure of a stage: where the time goes, for all and for ours alone, and how it grows with the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from benchmarks.figure import COLOURS
from benchmarks.timing import OURS, Record

_PHASES = {"statistics_ms": ("statistics", COLOURS[0]), "decomposition_ms": ("decomposition", COLOURS[1])}


def draw(records: Sequence[Record]) -> Figure:
    """Return the figure of all records of ``benchmarks.stage``."""
    wholes = [record for record in records if "statistics_ms" in record["facts"].get(OURS, {})]
    growing = [record for record in wholes if "forward" not in record["case"]]
    largest = growing[-1]["case"]
    bars = {
        record["name"].removeprefix("stage "): record["facts"][OURS] for record in growing if record["case"] == largest
    }
    (authors,) = wholes[0]["peers"]
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    whole, ours, growth = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.1))
    reference = next(record["facts"][authors] for record in growing if record["case"] == largest)
    _bars(whole, {authors: reference, **bars}, f"{largest}, all", compare_with=authors)
    _bars(ours, bars, "ours alone")
    _growth(growth, growing, authors)
    figure.legend(*whole.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=2, loc="outside lower left")
    return figure


def _bars(
    axes: Axes, phases: Mapping[str, Mapping[str, float | str]], title: str, compare_with: str | None = None
) -> None:
    totals = {name: sum(float(facts[key]) for key in _PHASES) / 1e3 for name, facts in phases.items()}
    left = dict.fromkeys(phases, 0.0)
    for key, (label, colour) in _PHASES.items():
        seconds = [float(facts[key]) / 1e3 for facts in phases.values()]
        axes.barh(list(phases), seconds, left=list(left.values()), height=0.6, color=colour, label=label)
        left = {name: left[name] + value for name, value in zip(phases, seconds, strict=True)}
    for name, total in totals.items():
        said = f"{total:.3g} s"
        if compare_with is not None and name != compare_with:
            ratio = totals[compare_with] / total
            said += f" ({ratio:.3g}× faster)" if ratio >= 1 else f" ({1 / ratio:.3g}× slower)"
        axes.annotate(said, (total, name), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(totals.values()))
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")


def _growth(axes: Axes, records: Sequence[Record], authors: str) -> None:
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        count = int(record["case"].split()[0])
        for name, ms in (
            (record["name"].removeprefix("stage "), record["ours_ms"]),
            (authors, record["peers"][authors]),
        ):
            counts, seconds = lines.setdefault(name, ([], []))
            if count not in counts:
                counts.append(count)
                seconds.append(ms / 1e3)
    colours = {authors: "#444444"} | dict(zip((name for name in lines if name != authors), COLOURS[2:], strict=False))
    for name, (counts, seconds) in lines.items():
        axes.plot(counts, seconds, marker="o", markersize=4, color=colours[name])
    lowest = 0.0
    for name, (counts, seconds) in sorted(lines.items(), key=lambda item: item[1][1][-1]):
        height = max(seconds[-1], lowest)  # names of lines that end close together stand one above the other
        axes.text(1.1 * counts[-1], height, name, va="center", fontsize=8, color=colours[name])
        lowest = 1.4 * height
    ticks = next(iter(lines.values()))[0]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0.9 * ticks[0], 4.0 * ticks[-1])
    axes.set_xlabel("batches of 8, both encoders", fontsize=8)
    axes.set_ylabel("seconds", fontsize=8)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("growth with the data", loc="left", fontsize=9, fontweight="bold")
