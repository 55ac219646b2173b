"""What a run says while it trains: a bar with the time left in a terminal, one line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igm_fast.methods.base import Stage


class TrainingProgress:
    """Reports stages and epochs; a context manager, since the bar must be taken off the terminal again.

    Args:
        console: where to; a bar is drawn only if it is a terminal.
        quiet: say nothing.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._stages = 0
        self._quiet = quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
        self._bar = Progress(
            *columns,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=None)

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, stages: Sequence[Stage], done: int) -> None:
        """Say how long the run is, and how many of its epochs an earlier process has trained."""
        self._stages = len(stages)
        self._bar.update(self._task, total=sum(stage.epochs for stage in stages), completed=done)

    def epoch(
        self, stage: Stage, epoch: int, losses: Mapping[str, float], validation: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Report a finished epoch."""
        place = f"stage {stage.index + 1}/{self._stages} {stage.trained}"
        self._bar.update(self._task, advance=1, description=f"{place}, {_accuracies(validation)}")
        if epoch + 1 == stage.epochs:
            loss = ", ".join(f"{value:.3f}" for value in losses.values())
            self.say(f"{place}: {stage.epochs} epochs, loss {loss}; validation accuracy {_accuracies(validation)}")


def _accuracies(scores: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{branch} {values['accuracy']:.3f}" for branch, values in scores.items())
