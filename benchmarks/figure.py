"""The figure of a run: a row per case, and in it a mark per peer at peer's time ÷ our time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.table import by_name, duration
from benchmarks.timing import Record

# Okabe and Ito (2008): distinguishable with any colour vision. References, which are no competitors, are grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREYS = ("#777777", "#bbbbbb", "#444444")
_MARKS = "os^vDP"
_WIDTH, _ROW, _PANEL = 9.0, 0.2, 0.75  # inches


def ratios(records: Sequence[Record]) -> Figure:
    """Return one panel per record name, cases from top to bottom; right of the line at 1 ours is faster."""
    groups = by_name(records)
    heights = [_PANEL + _ROW * len(group) for group in groups.values()]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        _draw(axes, name, group)
    panels[-1].set_xlabel("time of the other ÷ time of ours (medians; line: 95 % bootstrap interval)", fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=150, facecolor="white")


def _draw(axes: Axes, title: str, group: Sequence[Record]) -> None:
    peers = list(dict.fromkeys(name for record in group for name in record["peers"]))
    references = list(dict.fromkeys(name for record in group for name in record["references"]))
    styles = {name: (COLOURS[i % len(COLOURS)], _MARKS[i % len(_MARKS)]) for i, name in enumerate(peers)}
    styles |= {name: (_GREYS[i % len(_GREYS)], "|") for i, name in enumerate(references)}
    ends = [1.0]
    for name, (colour, mark) in styles.items():
        rows = [(place, record["ratios"][name]) for place, record in enumerate(group) if name in record["ratios"]]
        values = [ratio["ratio"] for _, ratio in rows]
        size = 9 if mark == "|" else 5
        axes.plot(values, [place for place, _ in rows], mark, color=colour, markersize=size, label=name, alpha=0.9)
        for place, ratio in rows:
            low, high = ratio["low"] or ratio["ratio"], ratio["high"] or ratio["ratio"]
            axes.plot((low, high), (place, place), color=colour, linewidth=1.2)
            ends += [low, high]
    axes.set_xscale("log")
    axes.set_xlim(0.8 * min(ends), 1.25 * max(ends))
    axes.axvspan(0.8 * min(ends), 1, color="#fbeee6", zorder=0)
    axes.axvline(1, color="black", linewidth=0.8)
    span = max(ends) / min(ends)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(group)), [f"{record['case']}   {duration(record['ours_ms'])}" for record in group])
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"{title}: case, time of ours", loc="left", fontsize=9, fontweight="bold")
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
