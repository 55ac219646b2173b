"""Results at the console: one rich table per kind of record, and the machine in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.timing import OURS, Ratio, Record


def results(records: Sequence[Record]) -> Group:
    """Return a table per record name: below each case ours, its peers, then the references in grey."""
    parts: list[Table | Text] = []
    for name, group in by_name(records).items():
        table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("case")
        table.add_column("what")
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("quartiles", justify="right", no_wrap=True)
        table.add_column("rounds", justify="right", no_wrap=True)
        table.add_column("time ÷ ours", no_wrap=True)
        for record in group:
            table.add_row(record["case"], *_cells(record, OURS, record["ours_ms"]))
            for peers, style in ((record["peers"], ""), (record["references"], "dim")):
                for peer, ms in peers.items():
                    ratio = record["ratios"][peer]
                    colour = style or ("green" if ratio["ratio"] >= 1 else "red")
                    words = Text(interval(ratio), style=colour)
                    table.add_row("", *_cells(record, peer, ms), words, style=style)
            for peer, reason in record["unavailable"].items():
                table.add_row("", Text(f"{peer}: {reason}"), style="dim")
        parts += [table, Text("")]
    return Group(*parts)


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return records grouped by name, in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["name"], []).append(record)
    return groups


def interval(ratio: Ratio) -> str:
    """Return such as ``4.6× [4.3, 4.8]``."""
    said = f"{digits(ratio['ratio'])}×"
    if ratio["low"] is None or ratio["high"] is None:
        return said
    return f"{said} [{digits(ratio['low'])}, {digits(ratio['high'])}]"


def digits(value: float) -> str:
    """Return three digits, such as 0.0120, 1.23, 12.3 and 123, and all those before the point: never 1e+02."""
    if value < 0.995:
        return f"{value:#.3g}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def duration(ms: float) -> str:
    """Return such as ``0.446 ms``, ``49.7 ms`` and ``1.06 s``."""
    return f"{digits(ms)} ms" if ms < 999.5 else f"{digits(ms / 1e3)} s"


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return what a reader needs to know of the machine."""
    if "device" in machine:
        return _device_line(machine)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']} kernels, {machine['threads']} threads, load "
        f"{machine['load'] or 0:.1f}; copies {machine['peak_bytes_per_s'] / 1e9:.0f} GB/s, float32 products "
        f"{machine['peak_flops_per_s'] / 1e9:.0f} GFLOP/s; torch {machine['torch']}, igm_fast {machine['igm_fast']} at "
        f"{machine['commit']}, {machine['date'][:10]}"
    )


def _device_line(machine: Mapping[str, Any]) -> str:
    products = ", ".join(f"{name} {flops / 1e12:.0f}" for name, flops in machine["products_flops_per_s"].items())
    return (
        f"{machine['device']}, compute capability {machine['capability']}, driver {machine['driver']}; copies "
        f"{machine['peak_bytes_per_s'] / 1e9:.0f} GB/s, products in TFLOP/s: {products}; torch {machine['torch']}, "
        f"igm_fast {machine['igm_fast']} at {machine['commit']} with kernels {machine['route']}, {machine['date'][:10]}"
    )


def _cells(record: Record, name: str, ms: float) -> tuple[str, ...]:
    low, high = record["quartiles_ms"][name]
    return name, digits(ms), f"{digits(low)}–{digits(high)}", str(record["rounds"][name])
