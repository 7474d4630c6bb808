"""The ways a run can end other than well, each with its exit code."""


class Refusal(ValueError):
    """Bad input, refused before work began; the message names the value, what is allowed and the override to change."""

    exit_code = 2


class Stopped(RuntimeError):
    """A run stopped in its work: a non-finite loss, a full disk, unreadable data."""

    exit_code = 3


class SavedForRestart(RuntimeError):
    """The run saved its state and wants to be started again by the same command."""

    exit_code = 75
