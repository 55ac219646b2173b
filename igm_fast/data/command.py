"""Command line of the data sets: ``python -m igm_fast.data --help``.

Each command is a module with ``add_arguments(parser)`` and ``run(arguments, console) -> exit code``. It is imported
when it is asked for: decoders that other commands need may be missing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rich.console import Console

from igm_fast.names import nearest

CLEAN, PROBLEMS, WRONG_USAGE, STOPPED = 0, 1, 2, 130

COMMANDS = {
    "check": ("check", "look at every file of a data set, and count classes against the published numbers"),
    "list": ("list_sets", "the known data sets, and what has to lie on disk"),
    "preview": ("preview", "a sheet of samples as the network sees them"),
    "prepare crema-d": ("prepare_crema_d", "cut frames out of CREMA-D's videos, as the official code expects them"),
    "prepare sarcasm": ("prepare_sarcasm", "turn the published text files of Sarcasm into the official code's lists"),
    "nvgesture-flow": ("nvgesture_flow", "compute optical flow for NVGesture's clips"),
}
"""Words of each command, with its module in :mod:`igm_fast.data.commands` and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    complain = Console(soft_wrap=True, highlight=False, markup=False, stderr=True).print
    if not words or words[0] in ("-h", "--help"):
        console.print(_help(), end="")
        return CLEAN if words else WRONG_USAGE
    count = 2 if words[0] in {command.partition(" ")[0] for command in COMMANDS if " " in command} else 1
    command, rest = " ".join(words[:count]), words[count:]
    if command not in COMMANDS:
        complain(f"data: {nearest(command, COMMANDS, 'command')}")
        return WRONG_USAGE
    try:
        module = importlib.import_module(f"igm_fast.data.commands.{COMMANDS[command][0]}")
        parser = argparse.ArgumentParser(
            prog=f"python -m igm_fast.data {command}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(rest), console))
    except SystemExit as asked:  # argparse has answered --help, or said what is wrong
        return int(asked.code or CLEAN)
    except KeyboardInterrupt:
        complain("\ndata: stopped")
        return STOPPED
    except (ValueError, OSError, ImportError) as error:
        complain(f"data: {error}")
        return WRONG_USAGE


def _help() -> str:
    lines = [f"  {command:<17}{meaning}" for command, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m igm_fast.data COMMAND ... (COMMAND --help shows more)\n",
            *lines,
            "\nexit codes: 0 all is well, 1 problems were found, 2 wrong usage, 130 stopped.\n",
        ]
    )
