"""The known data sets, and what has to lie on disk for those that do not come with the package."""

from __future__ import annotations

import argparse
import textwrap

from rich.console import Console

from igm_fast.data import dataset_names, set_module
from igm_fast.data.command import CLEAN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(arguments: argparse.Namespace, console: Console) -> int:  # noqa: ARG001
    """Print each data set's first line and, for those on disk, their tree."""
    for name in dataset_names():
        module = set_module(name)
        console.print((module.__doc__ or name).partition("\n")[0])
        if hasattr(module, "scan"):
            console.print(f"    --data {name} --data_root DIR, where DIR holds")
            console.print(textwrap.indent(module.LAYOUT, "        "))
        else:
            console.print("    comes with the package")
    return CLEAN
