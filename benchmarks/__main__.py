"""Command line: run benchmarks, write their results, and put them into the README."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import covariance, data_loading, figure, machine, optimizer, projector, readme, stage, table, training
from benchmarks.agreement import DisagreementError
from benchmarks.timing import Effort, Record
from igm_fast.names import nearest

DESCRIPTION = """\
Time igm_fast beside the code that one would use without it.

  python -m benchmarks                        all of them, about half an hour on two cores
  python -m benchmarks covariance projector   some of them
  python -m benchmarks --quick                tiny cases in half a minute: does everything run?
  python -m benchmarks --readme               put the written results into README.md; runs nothing

Each benchmark first checks that all results agree, then times ours and the others in turn in this one process, and
prints medians and ratios: 2.0× means that ours takes half the time. On a busy machine compare ratios, not
milliseconds. Results go to benchmarks/results/NAME.json and NAME.png; --quick writes nothing unless --json says where.

Exit code: 0 done, 1 results disagree (or do not fit the README) or a package is missing, 2 wrong usage, 130 stopped.
"""

BENCHMARKS = {
    "covariance": covariance,
    "data-loading": data_loading,
    "optimizer": optimizer,
    "projector": projector,
    "stage": stage,
    "training": training,
}
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
GPU = "gpu.json"  # written by python -m benchmarks.gpu
README = FOLDER.parent / "README.md"
DEFAULT_ROUNDS = {"quick": 3, "full": Effort.rounds, "long": Effort.rounds}
# Enough for a look at quick cases, whose times mean nothing.
QUICK_BUDGET_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parse(argv)
    console = Console(highlight=False, markup=False)
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            console.print(f"{name:<14}{benchmark.QUESTION}", soft_wrap=True)
        return 0
    if arguments.readme:
        return _write_readme()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return _run(arguments.names or list(BENCHMARKS), _effort(arguments), arguments.json, console)
    except KeyboardInterrupt:
        print("benchmarks: stopped; results of finished benchmarks are kept.", file=sys.stderr)
        return 130


def _run(names: Sequence[str], effort: Effort, file: Path | None, console: Console) -> int:
    failed, everything = False, list[Record]()
    facts, peaks = machine.facts(), machine.peaks(effort)
    if machine.is_busy(facts):
        console.print(
            f"Other programs use this machine (load {facts['load']:.1f} on {facts['cores']} processors): ratios may be "
            "compared, milliseconds may not.",
            style="yellow",
            soft_wrap=True,
        )
    for name in names:
        console.print(f"\n{name}: {BENCHMARKS[name].QUESTION}", style="bold", soft_wrap=True)
        records = list[Record]()
        try:
            with console.status(f"{name}: first case") as status:
                for record in BENCHMARKS[name].run(effort):
                    records.append(record)
                    said = f"{record['name']}, {record['case']}: {table.digits(record['ours_ms'])} ms"
                    status.update(f"{said}; next …")
                    if not console.is_terminal:
                        console.print(said, soft_wrap=True)
        except DisagreementError as error:
            print(f"benchmarks: {name}: results disagree, so none are written: {error}", file=sys.stderr)
            failed = True
            continue
        except ImportError as error:
            print(f"benchmarks: {name}: {error}", file=sys.stderr)
            failed = True
            continue
        peaks = machine.higher(peaks, machine.peaks(effort))
        facts = facts | peaks
        records = [machine.annotate(record, facts) for record in records]
        console.print(table.results(records))
        console.print(table.machine_line(facts), style="dim")
        everything += records
        if file is not None:
            _write(file, everything)
        elif effort.scale != "quick":
            path = RESULTS / f"{name}.json"
            _write(path, records, getattr(BENCHMARKS[name], "draw", figure.ratios))
            console.print(f"Written: {path} and {path.with_suffix('.png').name}", soft_wrap=True)
    if file is not None and everything:
        console.print(f"Written: {file} and {file.with_suffix('.png').name}", soft_wrap=True)
    return 1 if failed else 0


def _write(path: Path, records: Sequence[Record], draw: Callable[[Sequence[Record]], Figure] = figure.ratios) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figure.save(draw(records), path.with_suffix(".png"))


def _write_readme() -> int:
    files = [file for file in sorted(RESULTS.glob("*.json")) if file.name != GPU]
    if not files:
        print(f"benchmarks: no results in {RESULTS}. Run `python -m benchmarks` first.", file=sys.stderr)
        return 1
    gpu = [RESULTS / GPU] if (RESULTS / GPU).exists() else []
    try:
        readme.rewrite(README, readme.markdown(_read(files)))
        of_gpu = readme.markdown(_read(gpu)) if gpu else readme.NO_GPU
        readme.rewrite(README, of_gpu, readme.GPU_BEGIN, readme.GPU_END)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(f"Written: {README}, from {', '.join(file.name for file in files + gpu)}")
    return 0


def _read(files: Sequence[Path]) -> list[Record]:
    return [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]


def _effort(arguments: argparse.Namespace) -> Effort:
    scale = arguments.scale
    rounds = arguments.rounds or DEFAULT_ROUNDS[scale]
    return Effort(scale, rounds, QUICK_BUDGET_S if scale == "quick" else Effort.budget_s)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="say which benchmarks there are, and stop")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="tiny cases, few rounds")
    scale.add_argument(
        "--long", dest="scale", action="store_const", const="long", help="also every layer at N = 32, and slow routes"
    )
    parser.set_defaults(scale="full")
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="most rounds per case (default: 30; with --quick 3); slow peers make fewer",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads for all (default: torch's, one per core)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all records to FILE and the figure beside it as .png"
    )
    parser.add_argument("--readme", action="store_true", help="rewrite the table in README.md and stop")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(nearest(name, BENCHMARKS, "benchmark"))
    for name in ("rounds", "threads"):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            parser.error(f"--{name} must be at least 1; given {given}")
    if arguments.json is not None and arguments.json.suffix != ".json":
        parser.error(
            f"--json {arguments.json}: expected a name that ends in .json, since the figure goes beside it as .png"
        )
    if arguments.readme and arguments.names:
        parser.error("--readme runs nothing and takes all written results; give it without names")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
