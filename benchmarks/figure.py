"""The figure of a run: per case and peer a bar that ends at peer's time ÷ our time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.table import by_name, digits
from benchmarks.timing import Record

# Okabe and Ito (2008): distinguishable with any colour vision. References, which are no competitors, are grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREYS = ("#777777", "#bbbbbb", "#444444")
_WIDTH, _BAR, _PANEL = 7.0, 0.17, 0.9  # inches


def ratios(records: Sequence[Record]) -> Figure:
    """Return one panel per record name, cases from top to bottom; right of the line at 1 ours is faster."""
    groups = by_name(records)
    bars = [sum(len(record["ratios"]) + 1 for record in group) for group in groups.values()]
    heights = [_PANEL + _BAR * count for count in bars]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        _draw(axes, name, group)
    panels[-1].set_xlabel("time of the other ÷ time of ours (medians; line: 95 % bootstrap interval)")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=150, facecolor="white")


def _draw(axes: Axes, title: str, group: Sequence[Record]) -> None:
    peers = list(dict.fromkeys(name for record in group for name in record["peers"]))
    references = list(dict.fromkeys(name for record in group for name in record["references"]))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(peers)}
    colours |= {name: _GREYS[i % len(_GREYS)] for i, name in enumerate(references)}
    place, ticks, ends = 0.0, list[float](), list[float]()
    legend: dict[str, BarContainer] = {}
    for record in group:
        ticks.append(place + (len(record["ratios"]) - 1) / 2)
        for name, ratio in record["ratios"].items():
            value = ratio["ratio"]
            bar = axes.barh(place, value - 1, left=1, height=0.85, color=colours[name])
            legend.setdefault(name, bar)
            low, high = ratio["low"] or value, ratio["high"] or value
            axes.plot((low, high), (place, place), color="black", linewidth=0.9)
            ends += [low, high]
            end = (max(1.0, high), place)
            axes.annotate(f"{digits(value)}×", end, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
            place += 1
        place += 1
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, 0.9 * min(ends)), max(1.5, 1.8 * max(ends)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=0.8)
    labels = [f"{record['case']}\nours {digits(record['ours_ms'])} ms" for record in group]
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(place - 1, -1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.legend(
        list(legend.values()), list(legend), fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
