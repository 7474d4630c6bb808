"""Whether a loop counts its epochs, steps and metrics as the pruner was told that it would."""

from __future__ import annotations

import warnings
from numbers import Integral

from pdp.errors import Refusal

_LEVEL = 5  # of the line that calls `Pruner.start_epoch`


class Counted:
    """The epochs and optimizer steps of a loop, beside those of the schedule; each difference is told once."""

    def __init__(self, epochs: int, steps_per_epoch: int | None):
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.fresh = True  # no epoch has begun, and no state was loaded
        self.last: tuple[int, int] | None = None  # the epoch that began last, and the steps before it
        self.told: set[str] = set()

    def resumed(self) -> None:
        """A state was loaded, perhaps of the middle of an epoch."""
        self.fresh, self.last = False, None

    def begin(self, epoch: int, steps: int) -> None:
        """An epoch begins after so many steps; raises `Refusal` for what is no epoch."""
        if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
            raise Refusal(f"start_epoch({epoch!r}): epochs are whole numbers from 0")
        if self.fresh and epoch == 1 and self.epochs > 1:
            said = "start_epoch(1) before start_epoch(0): epochs count from 0, so that what counts them comes too early"
            self._tell("first", said)
        if 0 < self.epochs <= epoch:
            said = f"start_epoch({epoch}): a run of epochs={self.epochs} has the epochs 0 to {self.epochs - 1}"
            self._tell("beyond", said)
        if self.steps_per_epoch and self.last is not None and epoch == self.last[0] + 1:
            had = steps - self.last[1]
            if had != self.steps_per_epoch:
                self._tell(
                    "steps",
                    f"epoch {self.last[0]} had {had} optimizer steps and steps_per_epoch={self.steps_per_epoch}: what "
                    "counts steps comes at another time than was asked",
                )
        self.fresh, self.last = False, (epoch, steps)

    def _tell(self, kind: str, said: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            warnings.warn(said, stacklevel=_LEVEL)


def check_metric(metric: float, upper_bound: float, awaited: bool) -> float:
    """The metric as a number; raises `Refusal` where it is none, or above its bound while a start waits for it."""
    try:
        value = float(metric)
    except (TypeError, ValueError):
        raise Refusal(f"metric={metric!r} is no number") from None
    if awaited and value > upper_bound:
        raise Refusal(
            f"metric={value:g} is above upper_bound={upper_bound:g}, and the ramp begins at half of that: give the "
            "metric as a share, or upper_bound=<its best possible value>"
        )
    return value
