"""Look at every file of a data set on disk.

Prints the classes of each part beside the published counts, then each problem with list, line and the way to mend it.
Every file is decoded; --quick reads lists and headers only. Exit code 1 where there are problems; with --skip_bad only
where nothing is left to train on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from igm_fast.data import DataOptions, load_dataset, set_module
from igm_fast.data.command import CLEAN, PROBLEMS
from igm_fast.data.problems import BrokenData, Problem
from igm_fast.data.scan import PARTS

Published = Mapping[str, "int | Mapping[str, int]"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("name", help="data set; `python -m igm_fast.data list` names them")
    parser.add_argument("--root", type=Path, required=True, help="its folder")
    parser.add_argument("--skip_bad", "--skip-bad", action="store_true", help="problems may stay: count what is left")
    parser.add_argument("--quick", action="store_true", help="do not decode files")
    parser.add_argument("--protocol", choices=("paper", "official"), default="paper", help="as in training")
    parser.add_argument("--cache", type=Path, help="keep what is decoded in this folder, for training")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Check one data set."""
    module = set_module(arguments.name)
    if not hasattr(module, "scan"):
        raise ValueError(f"data set {arguments.name!r} comes with the package; its files are checked when it is loaded")
    # Which encoder comes later does not matter here; small ones need no files of their own.
    encoders = dict.fromkeys(module.MODALITIES or (), "small")
    options = DataOptions(
        root=arguments.root, protocol=arguments.protocol, skip_bad=True, cache=arguments.cache, encoders=encoders
    )
    scan = module.scan(options.existing_root(arguments.name), options)
    labels = {part: [entry.label for entry in scan.parts[part]] for part in PARTS}
    classes, problems, remarks, empty = scan.classes, scan.problems, scan.remarks, not all(labels.values())
    if not arguments.quick:
        try:
            data = load_dataset(arguments.name, 0, options)
            labels = {part: dataset.labels.tolist() for part, dataset in data.parts.items()}
            classes, problems, remarks, empty = data.classes, data.skipped, data.remarks, False
            console.print(data.description)
        except BrokenData as error:
            problems, empty = error.problems, True
    console.print(counts_table(labels, classes, module.PUBLISHED))
    _say(console, "problem", problems)
    _say(console, "remark", remarks)
    if not problems:
        console.print(f"{arguments.name} in {arguments.root}: no problems.")
    elif arguments.skip_bad and not empty:
        console.print(f"{arguments.name} in {arguments.root}: --skip_bad trains without these.")
    return PROBLEMS if empty or (problems and not arguments.skip_bad) else CLEAN


def counts_table(labels: Mapping[str, Sequence[int]], classes: Sequence[str], published: Published) -> Table:
    """Return a table of samples by class and part, beside the published ones.

    A list without validation part is divided here: its training part is published as the sum of both.
    """
    table = Table("class", *PARTS, *(f"published {part}" for part in published))
    found = {part: Counter(labels[part]) for part in PARTS}
    for number, name in enumerate(classes):
        table.add_row(
            name,
            *(str(found[part][number]) for part in PARTS),
            *(_published(published[part], name) for part in published),
        )
    table.add_section()
    totals = (value if isinstance(value, int) else sum(value.values()) for value in published.values())
    table.add_row("all", *(str(len(labels[part])) for part in PARTS), *map(str, totals))
    return table


def _published(counts: int | Mapping[str, int], name: str) -> str:
    return "" if isinstance(counts, int) else str(counts.get(name, ""))


def _say(console: Console, kind: str, said: Sequence[Problem]) -> None:
    if said:
        console.print(f"{len(said)} {kind}{'s' if len(said) > 1 else ''}:")
    for one in said:
        console.print(f"  {one}")
