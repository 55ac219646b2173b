"""Command line: train several methods with several seeds and say which differences are more than chance.

Every cell (method, data set, seed) is one ``python -m igm_fast.train`` in a process of its own, with its own run
folder below ``OUT/cells``; so a cell can be looked at, resumed or handed to a scheduler by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from igm_fast import __version__
from igm_fast.comparing import tuning
from igm_fast.comparing.cells import (
    has_result,
    is_kept,
    log_path,
    run_cells,
    train_command,
    write_request,
)
from igm_fast.comparing.tuning import Trial
from igm_fast.data import dataset_names, load_dataset
from igm_fast.methods import METHODS
from igm_fast.names import nearest
from igm_fast.reports import comparison as tables
from igm_fast.reports.comparison import Cell
from igm_fast.reports.comparison_html import write_comparison_report
from igm_fast.training.command import parse, scan
from igm_fast.training.config import config_keys, read_yaml

DESCRIPTION = """\
Train several methods on the same data with several seeds, and compare them.

  python -m igm_fast.compare                              six methods, five seeds, the default data: a table
  python -m igm_fast.compare --methods late igm --seeds 10 --data watch emoji
  python -m igm_fast.compare --methods igm joint -- --epochs 6      what follows -- goes to every training run
  python -m igm_fast.compare --methods late late:rho=0.05 igm       the second row has SAM, which late alone has not
  python -m igm_fast.compare --methods all --tune 8       lr and each method's own knob chosen on validation first
  python -m igm_fast.compare --quick                      does everything run here? all methods, minutes, no result

OUT then holds report.html (open it), table.md, table.csv, comparison.json, comparison.png, and one run folder per
cell under cells/. Stop it with Ctrl-C and give the same command again: finished runs are kept, half-done ones go on.
More seeds later are added the same way. A scheduler gets the cells by number: --list, --cell K, --collect, always with
the same other options. Exit code: 0 all runs finished, 1 some have no result, 2 wrong usage, 130 stopped.
"""

DEFAULT_METHODS = ("unimodal", "late", "joint", "mla", "igm-no-sam", "igm")
SET_HERE = ("--method", "--modality", "--data", "--seed", "--out", "--threads", "--resume", "--overwrite")
QUICK = {"methods": ["all"], "data": ["digits3"], "seeds": 2, "out": Path("runs/quick-table")}
QUICK_FLAGS = ["--epochs", "2", "--stages", "1"]
USAGE_ERROR = 2


@dataclass(frozen=True)
class Plan:
    """What a comparison trains: the trials of each row if it tunes, then the cells of the table.

    ``trials`` has one entry per row, under the row's cell of seed 0.
    """

    out: Path
    flags: list[str]  # of every run
    cells: list[Cell]
    trials: dict[Cell, list[Trial]] = field(default_factory=dict)

    @property
    def trial_cells(self) -> list[Cell]:
        """All runs of all trials: the first numbers of ``--cell``."""
        return [cell for trials in self.trials.values() for trial in trials for cell in trial.cells]

    def settled(self, cell: Cell) -> Cell | None:
        """Return a cell of the table with its tuned flags; None where its trials have not decided them."""
        if not self.trials:
            return cell
        trials = self.trials[replace(cell, seed=0)]
        chosen = tuning.choose(self.out, trials) if tuning.is_decided(self.out, trials) else None
        return None if chosen is None else replace(cell, flags=chosen.flags)

    def settled_cells(self) -> list[Cell]:
        """Return the cells of the table that can be trained now."""
        return [settled for cell in self.cells if (settled := self.settled(cell)) is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, or the part of it that is asked for; return the exit code."""
    arguments, flags = _parse(sys.argv[1:] if argv is None else argv)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        work = _plan(arguments, flags)
        if arguments.list:
            return _list(work)
        if arguments.cell is not None:
            return _train_one(work, arguments.cell, console)
        failed: list[dict[str, str]] = []
        if not arguments.collect:
            _train(work, work.trial_cells, arguments.jobs, console, split="validation")
            failed = _train(work, work.settled_cells(), arguments.jobs, console)
    except (ValueError, FileNotFoundError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("compare: stopped. Finished runs are kept; give the same command again to go on.", file=sys.stderr)
        return 130
    try:
        return _collect(work, arguments, failed, console)
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1


def plan(methods: Sequence[str], data: Sequence[str], seeds: int, flags: Sequence[str] = ()) -> list[Cell]:
    """Return the cells in the order in which they run: seed by seed, so that an early look compares like with like.

    Raises:
        ValueError: a unimodal row is asked for and the data set cannot be read with these flags.
        FileNotFoundError: its files are missing.
    """
    cells = []
    for name in data:
        rows = [row for method in methods for row in _rows(name, method, flags)]
        cells += [replace(row, seed=seed) for seed in range(seeds) for row in rows]
    return cells


def _rows(data: str, given: str, flags: Sequence[str]) -> list[Cell]:
    """Return the rows that one word of ``--methods`` makes, each as its cell of seed 0."""
    method, colon, options = given.partition(":")
    own = tuple(f"--{option}" for option in options.split(",")) if colon else ()
    if own:
        parse(["--method", method, "--data", data, *own])  # a misspelt option is said now
    if method != "unimodal":
        return [Cell(data, method, None, 0, given if colon else "", own)]
    names = modality_names(data, flags)
    return [Cell(data, method, name, 0, f"unimodal-{name}:{options}" if colon else "", own) for name in names]


def modality_names(data: str, flags: Sequence[str] = ()) -> list[str]:
    """Return the modalities of a data set, read with those of the flags that concern it (``--data_root`` …)."""
    given = scan(flags)
    asked = {**(read_yaml(Path(given["config"])) if "config" in given else {}), **given}
    common = [f"--{key}={value}" for key, value in asked.items() if key in config_keys() and value is not None]
    options = parse(["--method", "unimodal", "--data", data, *common]).config.data_options()
    return [modality.name for modality in load_dataset(data, 0, options).modalities]


def known_methods() -> list[str]:
    """Return the names of all methods."""
    return list(METHODS)


def known_data() -> list[str]:
    """Return the names of all data sets."""
    return list(dataset_names())


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    split = list(argv).index("--") if "--" in argv else len(argv)
    own, flags = list(argv[:split]), list(argv[split + 1 :])
    parser = argparse.ArgumentParser(
        prog="python -m igm_fast.compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- flags for every training run]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT_METHODS),
        metavar="NAME",
        help="methods to compare, or 'all'; 'unimodal' makes one row per modality, 'late:rho=0.05,lr=0.01' one with "
        "settings of its own (default: %(default)s)",
    )
    parser.add_argument("--data", nargs="+", default=["watch"], metavar="NAME", help="data sets (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 … N−1 (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/table"), metavar="FOLDER", help="where results go (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=usable_processors(),
        metavar="N",
        help="runs at the same time, one thread each (default here: %(default)s, the processors of this machine)",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="method that the others are tested against (default: igm where it is compared, else the last method)",
    )
    parser.add_argument(
        "--tune",
        type=int,
        metavar="TRIALS",
        help="first try so many settings of every row (its own one among them) and go on with the one that is best on "
        "validation; see igm_fast/comparing/grids.yaml",
    )
    parser.add_argument(
        "--tune_seeds", type=int, default=2, metavar="N", help="runs per setting that is tried (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"check that every method runs: all methods, digits3, 2 seeds, {' '.join(QUICK_FLAGS)}, into "
        f"{QUICK['out']}; other options given beside it win",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--list", action="store_true", help="print the command of every cell, a line each from 0 on")
    part.add_argument("--cell", type=int, metavar="K", help="train cell K of --list alone, make no table")
    part.add_argument("--collect", action="store_true", help="train nothing, make the tables of what is finished")
    if "--quick" in own:
        parser.set_defaults(**QUICK)
        flags = [*QUICK_FLAGS, *flags]  # of a flag that comes twice, the last counts
    arguments = parser.parse_args(own)
    _check(arguments, flags, parser.error)
    return arguments, flags


def _check(arguments: argparse.Namespace, flags: Sequence[str], error: Any) -> None:
    methods, data = known_methods(), known_data()
    given = [name for word in arguments.methods for name in (methods if word == "all" else [word])]
    arguments.methods, arguments.data = list(dict.fromkeys(given)), list(dict.fromkeys(arguments.data))
    for name in arguments.data:
        if name not in data:
            error(nearest(name, data, "data set"))
    for name in arguments.methods:
        method, colon, options = name.partition(":")
        if method not in methods:
            error(nearest(method, methods, "method"))
        for option in options.split(",") if colon else ():
            key, equals, value = option.partition("=")
            if not (key and equals and value):
                error(f"--methods {name}: expected NAME:key=value,key=value, such as late:rho=0.05")
            if f"--{key}" in SET_HERE:
                error(f"--methods {name}: {key} is set by compare itself for every run")
    for name in ("seeds", "jobs", "tune_seeds"):
        if getattr(arguments, name) < 1:
            error(f"--{name} must be at least 1; given {getattr(arguments, name)}")
    if arguments.tune is not None and arguments.tune < 2:
        error(f"--tune must be at least 2: one setting leaves nothing to choose; given {arguments.tune}")
    if arguments.tune is not None and arguments.seeds > tuning.FIRST_SEED:
        error(
            f"--seeds is {arguments.seeds}, expected at most {tuning.FIRST_SEED} with --tune, whose runs have the next"
        )
    if arguments.reference is None:
        arguments.reference = "igm" if "igm" in arguments.methods else arguments.methods[-1]
    if arguments.reference.partition(":")[0] == "unimodal":
        error(f"--reference {arguments.reference}: that makes one row per modality; name a method with a single row")
    if arguments.reference not in arguments.methods:
        error(f"--reference: {nearest(arguments.reference, arguments.methods, 'compared method')}")
    for flag in flags:
        if flag.split("=")[0] in SET_HERE:
            error(f"{flag} after -- is set by compare itself for every run; use compare's own options before --")


def _plan(arguments: argparse.Namespace, flags: list[str]) -> Plan:
    cells = plan(arguments.methods, arguments.data, arguments.seeds, flags)
    rows = [cell for cell in cells if cell.seed == 0] if arguments.tune else []
    trials = {row: tuning.plan_trials(row, arguments.tune, arguments.tune_seeds, flags) for row in rows}
    return Plan(arguments.out, flags, cells, trials)


def _list(work: Plan) -> int:
    """Print the commands and note what was asked for, so that runs that were started by hand count too."""
    count, trials = len(work.cells) + len(work.trial_cells), len(work.trial_cells)
    for cell in [*work.trial_cells, *map(work.settled, work.cells)]:
        if cell is None:
            print("# known when the trials of its row are finished")
            continue
        is_kept(work.out, cell, work.flags)
        if not (work.out / cell.folder).exists():
            write_request(work.out, cell, work.flags)
        print(shlex.join(train_command(work.out, cell, work.flags)))
    said = f"cells 0 to {trials - 1} are trials, {trials} to {count - 1} the table" if trials else f"0 to {count - 1}"
    print(f"compare: {count} cells: {said}", file=sys.stderr)
    return 0


def _train_one(work: Plan, number: int, console: Console) -> int:
    cells = [*work.trial_cells, *work.cells]
    if not 0 <= number < len(cells):
        raise ValueError(f"--cell {number}: expected 0 to {len(cells) - 1}; --list prints these cells")
    is_trial = number < len(work.trial_cells)
    cell = cells[number] if is_trial else work.settled(cells[number])
    if cell is None:
        raise ValueError(
            f"--cell {number} is {cells[number]}, whose setting is not known yet: first train its trials, which are "
            f"among the cells 0 to {len(work.trial_cells) - 1}"
        )
    return 1 if _train(work, [cell], 1, console, split="validation" if is_trial else "test") else 0


def _train(work: Plan, cells: Sequence[Cell], jobs: int, console: Console, split: str = "test") -> list[dict[str, str]]:
    """Train those of the cells that have no result; return those that got none here.

    Raises:
        ValueError: results that are there cannot share a table, which is said now, not after hours of work.
    """
    waiting = [cell for cell in cells if not is_kept(work.out, cell, work.flags)]
    tables.finished_runs(work.out, cells)
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already and kept.")
    return run_cells(work.out, waiting, work.flags, jobs, console, split=split)


def _collect(work: Plan, arguments: argparse.Namespace, failed: Sequence[dict[str, str]], console: Console) -> int:
    """Write the tables and the report of what is finished; return the exit code.

    Raises:
        ValueError: results cannot share a table.
    """
    out = work.out
    settled = work.settled_cells()
    for cell in settled:
        is_kept(out, cell, work.flags)
    runs = tables.finished_runs(out, settled)
    missing = [*failed, *_not_finished(work, {failure["name"] for failure in failed})]
    comparison = tables.compare_runs(runs, arguments.reference) | _provenance(work.flags) | {"missing": missing}
    comparison["quick"] = arguments.quick
    out.mkdir(parents=True, exist_ok=True)
    if work.trials:
        comparison["tuning"] = tuning.summary(out, work.trials)
        tuning.write_records(out, work.trials)
    table = tables.markdown(comparison)
    (out / "comparison.json").write_text(json.dumps(comparison, indent=1), encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "table.csv").write_text(tables.tidy_csv(runs), encoding="utf-8")
    write_comparison_report(out)
    console.print(_short_tables(comparison) if console.is_terminal else f"\n{table}")
    console.print(f"Report: {out / 'report.html'}")
    for failure in missing:
        print(f"compare: {failure['name']} has no result; log: {out / failure['log']}", file=sys.stderr)
    return 1 if missing else 0


def _not_finished(work: Plan, known: set[str]) -> list[dict[str, str]]:
    """Return the cells of the table that have no result, except the known ones."""
    missing = []
    for cell in work.cells:
        settled = work.settled(cell)
        if str(cell) not in known and (settled is None or not has_result(work.out, settled)):
            tail = "not finished yet" if settled else "no trial of its row has finished with every seed"
            missing.append({"name": str(cell), "log": log_path(cell).as_posix(), "tail": tail})
    return missing


def _short_tables(comparison: dict[str, Any]) -> Group:
    """The columns that fit a terminal; the whole table is in table.md."""
    parts: list[Table | Text] = []
    for data, content in comparison["data"].items():
        tests = {test["method"]: test for test in content["tests"] if test["metric"] == "accuracy"}
        table = Table(title=f"\n{data}", title_justify="left", box=None, title_style="bold")
        table.add_column("method", no_wrap=True)
        table.add_column("test accuracy", no_wrap=True)
        table.add_column(f"against {comparison['reference']}")
        for row, summary in content["methods"].items():
            said = tables.verdict(tests[row], content["mcnemar"]) if row in tests else ""
            table.add_row(row, tables.spread(summary["fused"]["accuracy"]), Text(said))
        parts += [table, *(Text(warning, style="bold") for warning in tables.warnings(comparison, data))]
        parts.append(Text(f"{tables.reading_note(comparison, data)} {tables.tuning_note(comparison)}", style="dim"))
    return Group(*parts)


def _provenance(flags: Sequence[str]) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "matplotlib")}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "flags": list(flags),
        "machine": {
            "processor": models[0] if models else platform.processor(),
            "processors usable": usable_processors(),
            "system": platform.platform(),
        },
        "versions": {"igm_fast": __version__, "python": platform.python_version()} | versions,
    }


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
