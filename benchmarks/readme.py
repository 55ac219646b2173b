"""The README's table: ratios per case with their intervals, the machine, and plainly where ours is slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import by_name, digits, interval, machine_line
from benchmarks.timing import Ratio, Record

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
HOW_TO_READ = (
    "Each cell: median time of the peer ÷ median time of ours, so 2.0× means ours takes half the time; in brackets a "
    "95 % bootstrap interval. *Italic* columns are references with another result (such as a bound), not competitors."
)


def markdown(records: Sequence[Record]) -> str:
    """Return the block's content.

    Raises:
        ValueError: records of different machines or settings, which one table must not mix.
    """
    machines = {(r["machine"]["cpu"], r["machine"]["threads"], r["machine"]["torch"]) for r in records}
    if len(machines) != 1:
        raise ValueError(
            f"results come from different machines or settings: {sorted(machines)}. Run `python -m benchmarks` again"
        )
    parts = [HOW_TO_READ]
    shown = [record for record in records if record["headline"]]
    parts += [f"**{name}**\n\n{_table(group)}" for name, group in by_name(shown).items()]
    parts.append(_slower(shown))
    runs: dict[str, list[str]] = {}  # machine → the benchmarks that ran on it in that state
    for record in records:
        benchmarks = runs.setdefault(machine_line(record["machine"]), [])
        if (benchmark := record["name"].split()[0]) not in benchmarks:
            benchmarks.append(benchmark)
    parts += [f"Machine ({', '.join(benchmarks)}): {machine}." for machine, benchmarks in runs.items()]
    return "\n\n".join(parts)


def rewrite(path: Path, content: str) -> None:
    """Put content between the two markers of a file; doing it twice changes nothing.

    Raises:
        ValueError: the markers are not there exactly once, in order.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{path}: expected {BEGIN} and then {END}, each once; put them where the table belongs")
    path.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}", encoding="utf-8")


def _table(group: Sequence[Record]) -> str:
    peers = list(dict.fromkeys(peer for record in group for peer in record["peers"]))
    references = list(dict.fromkeys(reference for record in group for reference in record["references"]))
    titles = ["case", "ours", *peers, *(f"*{reference}*" for reference in references)]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for record in group:
        cells = [interval(record["ratios"][name]) if name in record["ratios"] else "" for name in (*peers, *references)]
        rows.append([record["case"], f"{digits(record['ours_ms'])} ms", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _slower(records: Sequence[Record]) -> str:
    slower: dict[str, list[str]] = {}
    undecided = 0
    for record in records:
        for peer in record["peers"]:
            ratio = record["ratios"][peer]
            if _is_undecided(ratio):
                undecided += 1
            elif ratio["ratio"] < 1:
                cases = slower.setdefault(f"{record['name']} than {peer}", [])
                cases.append(f"{record['case']} ({interval(ratio)})")
    count = sum(len(cases) for cases in slower.values())
    compared = sum(len(record["peers"]) for record in records)
    said = f"Of these {compared} comparisons, ours is slower in {count}, and {undecided} show no difference beyond "
    lines = [f"- slower: {pair}: {', '.join(cases)}" for pair, cases in slower.items()]
    return "\n".join([f"{said}their interval.", *(["", *lines] if lines else [])])


def _is_undecided(ratio: Ratio) -> bool:
    return ratio["low"] is not None and ratio["high"] is not None and ratio["low"] <= 1 <= ratio["high"]
