"""The README's table: ratios per case with their intervals, the machine, and plainly where ours is slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.table import by_name, duration, interval, machine_line
from benchmarks.timing import OURS, Ratio, Record

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
GPU_BEGIN, GPU_END = "<!-- gpu-benchmarks:begin -->", "<!-- gpu-benchmarks:end -->"
NO_GPU = "The CUDA kernels have not been timed on a GPU yet; `benchmarks/gpu.sh` does it on a machine that has one."
# Columns that a benchmark adds from its facts.
COLUMNS: dict[str, dict[str, Callable[[Record], str]]] = {
    "covariance": {"extra memory: ours, first peer": lambda record: _memory(record)},
    "projector": {
        "rank": lambda record: str(record["facts"][OURS]["rank"]),
        "certified": lambda record: f"{record['facts'][OURS]['error_bound']:.1e}",
        "true error": lambda record: f"{record['facts'][OURS]['error']:.1e}",
    },
    "stage": {"statistics + decomposition": lambda record: _phases(record)},
    "training": {
        "of it projection": lambda record: duration(float(record["facts"][OURS]["projection_ms"])),
        "beside it, statistics and decomposition": lambda record: _shared_out(record),
    },
}
HOW_TO_READ = (
    "Each cell: median time of the peer ÷ median time of ours, so 2.0× means ours takes half the time; in brackets a "
    "95 % bootstrap interval. *Italic* columns are references with another result (such as a bound), not competitors."
)


def markdown(records: Sequence[Record]) -> str:
    """Return the block's content.

    Raises:
        ValueError: a table would mix machines or settings. Tables may differ in them: each has its line below.
    """
    parts = [HOW_TO_READ]
    for name, group in by_name(records).items():
        machines = {(r["machine"]["cpu"], r["machine"]["threads"], r["machine"]["torch"]) for r in group}
        if len(machines) != 1:
            raise ValueError(
                f"results of {name} come from different machines or settings: {sorted(machines)}. "
                f"Run `python -m benchmarks {name.split()[0]}` again"
            )
    shown = [record for record in records if record["headline"]]
    parts += [f"**{name}**\n\n{_table(group)}" for name, group in by_name(shown).items()]
    parts.append(_slower(records))
    runs: dict[str, list[str]] = {}  # machine → the benchmarks that ran on it in that state
    for record in records:
        benchmarks = runs.setdefault(machine_line(record["machine"]), [])
        if (benchmark := record["name"].split()[0]) not in benchmarks:
            benchmarks.append(benchmark)
    parts += [f"Machine ({', '.join(benchmarks)}): {machine}." for machine, benchmarks in runs.items()]
    return "\n\n".join(parts)


def rewrite(path: Path, content: str, begin: str = BEGIN, end: str = END) -> None:
    """Put content between the two markers of a file; doing it twice changes nothing.

    Raises:
        ValueError: the markers are not there exactly once, in order.
    """
    text = path.read_text(encoding="utf-8")
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end or begin in rest or end in before + after:
        raise ValueError(f"{path}: expected {begin} and then {end}, each once; put them where the table belongs")
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


def _table(group: Sequence[Record]) -> str:
    peers = list(dict.fromkeys(peer for record in group for peer in record["peers"]))
    references = list(dict.fromkeys(reference for record in group for reference in record["references"]))
    columns = COLUMNS.get(group[0]["name"].split()[0], {})
    titles = ["case", "ours", *peers, *(f"*{reference}*" for reference in references), *columns]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for record in group:
        cells = [interval(record["ratios"][name]) if name in record["ratios"] else "" for name in (*peers, *references)]
        said = [column(record) for column in columns.values()]
        rows.append([record["case"], duration(record["ours_ms"]), *cells, *said])
    # A column of which no record has anything says nothing.
    used = [any(row[place] for row in rows[2:]) for place in range(len(titles))]
    return "\n".join(f"| {' | '.join(cell for cell, keep in zip(row, used, strict=True) if keep)} |" for row in rows)


def _memory(record: Record) -> str:
    first = next(iter(record["peers"]))
    megabytes = [record["facts"][name].get("peak_bytes") for name in (OURS, first)]
    return ", ".join("–" if size is None else f"{float(size) / 1e6:.1f} MB" for size in megabytes)


def _phases(record: Record) -> str:
    facts = record["facts"][OURS]
    if "statistics_ms" not in facts:
        return ""
    return f"{duration(float(facts['statistics_ms']))} + {duration(float(facts['decomposition_ms']))}"


def _shared_out(record: Record) -> str:
    facts = record["facts"][OURS]
    return duration(float(facts["statistics_ms"]) + float(facts["decomposition_ms"]))


def _slower(records: Sequence[Record]) -> str:
    """All comparisons in the files count, also those of which there is no row above."""
    pairs: dict[str, list[tuple[Ratio, str]]] = {}
    for record in records:
        for peer in record["peers"]:
            pairs.setdefault(f"{record['name']} than {peer}", []).append((record["ratios"][peer], record["case"]))
    compared = [ratio for cases in pairs.values() for ratio, _ in cases]
    count = sum(_is_slower(ratio) for ratio in compared)
    said = (
        f"Of all {len(compared)} comparisons in benchmarks/results, ours is slower in {count}, and "
        f"{sum(map(_is_undecided, compared))} show no difference beyond their interval."
    )
    lines = [said]
    for pair, cases in pairs.items():
        slower = [(ratio, case) for ratio, case in cases if _is_slower(ratio)]
        if slower:
            ratio, case = min(slower, key=lambda item: item[0]["ratio"])
            lines.append(f"- slower: {pair}: {len(slower)} of {len(cases)}, at worst {interval(ratio)} at {case}")
    return "\n".join([lines[0], *(["", *lines[1:]] if lines[1:] else [])])


def _is_slower(ratio: Ratio) -> bool:
    return ratio["ratio"] < 1 and not _is_undecided(ratio)


def _is_undecided(ratio: Ratio) -> bool:
    return ratio["low"] is not None and ratio["high"] is not None and ratio["low"] <= 1 <= ratio["high"]
