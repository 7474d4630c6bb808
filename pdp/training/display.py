"""What a person sees: the banner, the bar with what counts and the time left, the closing table."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pdp.runs.record import Record


def percent(share: float) -> str:
    """A fraction as people read it."""
    return f"{100 * share:.2f} %"


def score(name: str, value: float) -> str:
    """A metric: fractions in percent, perplexity raw."""
    return f"{value:.3f}" if name.startswith("perplexity") else percent(value)


class Display:
    """Prints on the main process alone; a bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, shown: bool = True):
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """One line, beside a running bar too."""
        (self._progress.console if self._progress else self.console).print(text, markup=False)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Shows the bar of a run of `total_steps` optimizer steps."""
        if not self.console.is_terminal or self.console.quiet:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=False,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=done_steps, state="")
        self._progress.start()

    def step(self, done: int, epoch: int, epochs: int, state: str) -> None:
        """Moves the bar."""
        if self._progress:
            self._progress.update(self._task, completed=done, description=f"epoch {epoch + 1}/{epochs}", state=state)

    def epoch(self, line: dict[str, Any], epochs: int, metric: str) -> None:
        """Where there is no bar, the end of an epoch, `line` as its history has it."""
        if self.console.is_terminal:
            return
        done = line["epoch"] + 1
        self.say(
            f"epoch {done}/{epochs} loss {line['loss']:.4f} {metric} {score(metric, line['metric'])} "
            f"sparsity {percent(line['sparsity'])} {line['phase']}, "
            f"{line['seconds'] / done * (epochs - done):.0f} s left"
        )

    def stop(self) -> None:
        """Ends the bar."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column left, the others right."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def closing(self, record: Record, directory: str) -> None:
        """The result of a run and where it lies."""
        name = record.metric_name
        part = "validation set, the data has no other labelled one" if record.validation == "test" else "test set"
        rows = [
            (f"{name} before pruning", score(name, record.metric_before_pruning)),
            (f"{name} soft, last epoch", score(name, record.metric_soft)),
            (f"{name} hard, last epoch", score(name, record.metric)),
            ("sparsity asked", percent(record.target_sparsity)),
            ("sparsity reached", percent(record.sparsity)),
            ("parameters", f"{record.params:,}"),
            ("parameters not zero", f"{record.params_nonzero:,}"),
            ("MACs dense", f"{record.macs:,}"),
            ("MACs sparse", f"{record.macs_sparse:,}"),
            ("seconds of training", f"{record.train_seconds:.1f}"),
        ]
        title = f"{record.model} on {record.data}, {record.method}, {record.pattern}, seed {record.seed} ({part})"
        self.table(title, ("", "value"), rows)
        self.say(f"run: {directory}")
