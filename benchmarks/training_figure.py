"""The figure of training steps: stacked phases per method, one panel per case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figure import COLOURS
from benchmarks.timing import OURS, Record

PHASES = ("data", "forward", "backward", "second pass", "statistics", "decomposition", "projection", "update")
_COLOURS = dict(zip(PHASES, (*COLOURS, "#888888", "#222222", "#bbbbbb", "#5e3c99"), strict=False))


def draw(records: Sequence[Record]) -> Figure:
    """Return the figure of all records of ``benchmarks.training``."""
    cases = list(dict.fromkeys(record["case"] for record in records))
    figure = Figure(figsize=(10.5, 3.4 * len(cases)), layout="constrained")
    for axes, case in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        mine = [record for record in records if record["case"] == case]
        bars = {name: mine[0]["facts"][name] for name in mine[0]["references"]}
        bars |= {record["name"].removeprefix("training "): record["facts"][OURS] for record in mine}
        bars |= {name: mine[0]["facts"][name] for name in mine[0]["peers"]}
        _bars(axes, bars, case)
    handles = {
        name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, fontsize=8, frameon=False, ncols=len(PHASES), loc="outside lower left")
    return figure


def _bars(axes: Axes, bars: Mapping[str, Mapping[str, float | str]], title: str) -> None:
    left = dict.fromkeys(bars, 0.0)
    for phase in PHASES:
        ms = {name: float(facts.get(f"{phase}_ms", 0.0)) for name, facts in bars.items()}
        if any(ms.values()):
            axes.barh(
                list(bars), list(ms.values()), left=list(left.values()), color=_COLOURS[phase], label=phase, height=0.7
            )
        left = {name: left[name] + ms[name] for name in bars}
    for name, total in left.items():
        axes.annotate(
            f"{total:.3g} ms", (total, name), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(left.values()))
    axes.set_xlabel(
        "milliseconds for one update of each modality, its share of the stage's statistics included", fontsize=8
    )
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
