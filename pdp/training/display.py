"""What the user sees in the terminal: the banner, the progress bar with the current values, and the closing table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pdp.wording import duration, gone, percent, score

LINE_SECONDS = 30.0  # between two lines, where there is no bar


def stage(phase: str, fraction: float) -> str:
    """The phase of pruning in words: dense, ramp 40 % (of the way to the target), at target, finished."""
    return {"dense": "dense", "ramp": f"ramp {fraction:.0%}".replace("%", " %"), "full": "at target"}.get(phase, phase)


@dataclass(frozen=True)
class Look:
    """The state of a running run; `rate` is the optimizer's learning rate, `share` a fraction."""

    step: int
    steps: int  # in the whole run
    epoch: int  # counted from 0
    epochs: int
    loss: float  # mean over the epoch so far
    rate: float
    share: float  # the fraction pruned of what the target counts
    stage: str
    samples_per_second: float
    samples: str  # what a sample is: images, texts
    seconds_left: float
    metric_name: str
    metric: float | None = None  # of the last validation, of the hard model
    pruned: bool = True
    target_unit: str = "weight"  # or mac, or channel

    def state(self) -> str:
        """The values shown beside the bar, in a few words."""
        words = [f"loss {self.loss:.3f}"]
        if self.metric is not None:
            words.append(f"validation {self.metric_name} {score(self.metric_name, self.metric)}")
        if self.pruned:
            words.append(f"{gone(self.target_unit)} {percent(self.share)} ({self.stage})")
        words.append(f"{self.samples_per_second:,.0f} {self.samples}/s")
        return ", ".join(words)

    def line(self) -> str:
        """The same with the step, the speed and the time left, as one line of a log."""
        place = f"step {self.step:,}/{self.steps:,}, epoch {self.epoch + 1}/{self.epochs}"
        return f"{place}: {self.state()}, rate {self.rate:.3g}, {duration(self.seconds_left)} left"


class _TwoLines(Progress):
    """The bar with its times, and below it the values, which no terminal is too narrow for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["state"]:
                yield Text(task.fields["state"], no_wrap=False, overflow="fold")


class Display:
    """Prints on the main process only: a bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, shown: bool = True):
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._said = time.monotonic()

    def say(self, text: str) -> None:
        """Prints one line, without disturbing a running bar."""
        (self._progress.console if self._progress else self.console).print(text, markup=False)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Shows the bar of a run of `total_steps` optimizer steps, `done_steps` of which are done."""
        if not self.console.is_terminal or self.console.quiet:
            return
        self._progress = _TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("left"),
            console=self.console,
            transient=False,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=done_steps, state="")
        self._progress.start()

    def step(self, look: Look, ends: bool = False) -> None:
        """Moves the bar, or without one prints a line every `LINE_SECONDS` and, if `ends`, at the end of the run."""
        if self._progress:
            place = f"epoch {look.epoch + 1}/{look.epochs}"
            self._progress.update(self._task, completed=look.step, description=place, state=look.state())
            return
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS or ends:
            self._said = now
            self.say(look.line())

    def stop(self) -> None:
        """Removes the bar."""
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
        """Prints a table; the first column is aligned left, the others right."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
