"""Command line: what training did, as figures, tables and a sentence each. ``python -m igm_fast.analyze --help``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from igm_fast.analyses import analyses
from igm_fast.analyses.finding import NotApplicable, save_finding
from igm_fast.analyses.grid import GridError, add_grid_arguments, check_grid_arguments
from igm_fast.analyses.page import write_page
from igm_fast.names import nearest
from igm_fast.training.checkpoint import CheckpointError

DESCRIPTION = """\
Look at finished runs, or train small grids of runs, and say what is to be seen.

  python -m igm_fast.analyze RUN                   every analysis of a run, one after the other
  python -m igm_fast.analyze NAME RUN [options]    one of them
  python -m igm_fast.analyze NAME [options]        an analysis that trains runs of its own
  python -m igm_fast.analyze NAME --help           its options

Each writes NAME.png, NAME.csv and NAME.json into --out, where analysis.html shows all that are there.
"""
ENDING = "exit codes: 0 done, 1 an analysis failed, 2 wrong usage, 130 stopped (the same command goes on)."
DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Analyze; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = analyses()
    try:
        if words and words[0] in known:
            return _one(words[0], known[words[0]], words[1:])
        return _every(known, words)
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("analyze: stopped. Finished runs are kept; give the same command again to go on.", file=sys.stderr)
        return STOPPED


def _one(name: str, module: ModuleType, words: Sequence[str]) -> int:
    """Run the analysis with its own options."""
    split = words.index("--") if "--" in words and module.KIND == "grid" else len(words)
    parser = _parser(name, module)
    arguments = parser.parse_args(words[:split])
    if module.KIND == "grid":
        arguments.flags = list(words[split + 1 :])
        check_grid_arguments(arguments, parser.error)
    else:
        _check_runs(arguments.runs, parser)
        arguments.out = arguments.out or arguments.runs[0] / "analysis"
    command = shlex.join(["python", "-m", "igm_fast.analyze", name, *words])
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        console.print(_run(name, module, arguments, command, console))
        console.print(f"page: {write_page(arguments.out)}")
    except (ValueError, FileNotFoundError, NotImplementedError, CheckpointError, GridError) as error:
        print(f"analyze {name}: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _every(known: Mapping[str, ModuleType], words: Sequence[str]) -> int:
    """Run every analysis that looks at a run; what one cannot do does not stop the next."""
    listing = "\n".join(f"  {name:<14}{_summary(module)}" for name, module in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m igm_fast.analyze",
        description=f"{DESCRIPTION}\nanalyses:\n{listing}",
        epilog=ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, made by python -m igm_fast.train")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: RUN/analysis)")
    if words and not words[0].startswith("-") and not Path(words[0]).exists():
        parser.error(f"{nearest(words[0], known, 'analysis')} Nor is there a run folder {words[0]}")
    asked = parser.parse_args(words)
    _check_runs([asked.run], parser)
    out = asked.out or asked.run / "analysis"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    failed = False
    for name, module in known.items():
        if module.KIND == "grid":
            continue
        own = [str(asked.run), "--out", str(out)]
        command = shlex.join(["python", "-m", "igm_fast.analyze", name, *own])
        try:
            console.print(_run(name, module, _parser(name, module).parse_args(own), command, console))
        except NotApplicable as reason:
            console.print(f"{name}: left out, {reason}")
        except (ValueError, FileNotFoundError, NotImplementedError, CheckpointError) as error:
            print(f"analyze {name}: {error}", file=sys.stderr)
            failed = True
    console.print(f"page: {write_page(out)}")
    return FAILED if failed else DONE


def _run(name: str, module: ModuleType, arguments: argparse.Namespace, command: str, console: Console) -> str:
    """Run one analysis, keep its finding, and return what it says."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    finding = module.run(arguments, console)
    save_finding(finding, arguments.out, command)
    return f"{name}: {finding.sentence}"


def _parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    grid = module.KIND == "grid"
    usage = "[options] [-- flags for every training run]" if grid else "RUN [options]"
    parser = argparse.ArgumentParser(
        prog=f"python -m igm_fast.analyze {name}",
        usage=f"%(prog)s {usage}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if grid:
        add_grid_arguments(parser)
    else:
        several = module.KIND == "runs"
        words = "run folders; those of several methods are compared" if several else "run folder"
        parser.add_argument("runs", type=Path, nargs="+" if several else 1, metavar="RUN", help=words)
        parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: RUN/analysis)")
    module.add_arguments(parser)
    return parser


def _check_runs(folders: Sequence[Path], parser: argparse.ArgumentParser) -> None:
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            parser.error(f"{folder} is no run folder: it has no config.yaml. Give the --out of a training run")
        if not (folder / "result.json").is_file():
            parser.error(
                f"{folder} is not finished: it has no result.json. Go on with: "
                f"python -m igm_fast.train --resume --out {folder}"
            )


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
