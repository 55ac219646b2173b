"""What can be wrong with a data set on disk, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and how to mend it.

    Args:
        path: the file that says it, relative to the data set's folder: a list, or the broken file itself.
        line: in the list, from 1; None where there is no line.
        what: was found, and what was expected.
        fix: the way out.
    """

    path: str
    line: int | None
    what: str
    fix: str

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.what}. {self.fix.rstrip('.')}."


class BadFile(ValueError):  # noqa: N818 - says what is bad
    """A file that a reader cannot use. It survives the way out of a DataLoader's worker.

    Args:
        path: of the file.
        what: was found, and what was expected.
        fix: the way out.
    """

    def __init__(self, path: str | Path, what: str, fix: str) -> None:
        super().__init__(str(path), what, fix)
        self.path, self.what, self.fix = str(path), what, fix

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.fix.rstrip('.')}."

    def problem(self, root: Path, file: str, line: int | None) -> Problem:
        """Return the problem of the list's line that names this file."""
        path = Path(self.path)
        name = path.relative_to(root) if path.is_relative_to(root) else path
        return Problem(file, line, f"{name}: {self.what}", self.fix)


class BrokenData(ValueError):  # noqa: N818 - as above
    """A data set with problems; training refuses it.

    Args:
        name: of the data set.
        root: its folder.
        problems: at least one.
    """

    def __init__(self, name: str, root: str | Path, problems: Sequence[Problem]) -> None:
        super().__init__(name, str(root), list(problems))
        self.name, self.root, self.problems = name, str(root), list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"data set {self.name!r} in {self.root} has {count} problem{'s' if count > 1 else ''}"
        lines = [f"  {problem}" for problem in self.problems[:SHOWN]]
        if count > SHOWN:
            lines.append(f"  … and {count - SHOWN} more")
        ways = (
            f"`python -m igm_fast.data check {self.name} --root {self.root}` lists all; --skip_bad trains without them"
        )
        return "\n".join([f"{head}:", *lines, ways])
