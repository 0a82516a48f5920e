"""A run as it goes: header, bars, warnings. Nothing of it reaches standard output."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from frostline.records import Component, StepRecord
from frostline.reports.terminal import components_view
from frostline.units import format_bytes


class ProgressReport:
    """Follows a run on the terminal; one bar for the steps, and one for what is computed before them.

    Args:
        console: Where to write; standard error.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._steps: TaskID | None = None
        self._fill: TaskID | None = None

    def __enter__(self) -> ProgressReport:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def introduced(self, components: tuple[Component, ...], notes: tuple[str, ...]) -> None:
        """Print the header."""
        self._console.print(components_view(components, notes))

    def filling(self, done: int, total: int) -> None:
        """Move the bar of the feature cache."""
        if self._fill is None:
            self._fill = self._bars.add_task("features", total=total, state="pictures")
        self._bars.update(self._fill, completed=done)
        if done == total:
            self._fill = None

    def note(self, text: str) -> None:
        """Print what is going on."""
        self._console.print(f"  {text}", style="dim", markup=False, highlight=False)

    def started(self, total_steps: int, first_step: int) -> None:
        """Begin the bar of the steps."""
        if first_step:
            self.note(f"resumed behind step {first_step}")
        self._steps = self._bars.add_task("steps", total=total_steps, completed=first_step, state="")

    def stepped(self, record: StepRecord) -> None:
        """Move the bar of the steps, and say how it stands."""
        assert self._steps is not None
        speed = self._bars.tasks[self._steps].speed
        pace = f"{speed:.1f} steps/s" if speed else "... steps/s"
        peak = f"peak {format_bytes(record.peak_bytes)}" if record.peak_bytes else ""
        state = f"{record.phase} loss {record.loss:.4f}  {peak}  {pace}"
        self._bars.update(self._steps, completed=record.step, state=state)

    def warned(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)

    def saved(self, path: Path) -> None:
        """A checkpoint is complete; the bar goes on."""
