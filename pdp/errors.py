"""The ways a run can end without success, each with its exit code."""


class Refusal(ValueError):
    """Bad input, refused before work begins; the message names the value, what is allowed and what to change."""

    exit_code = 2


class Stopped(RuntimeError):
    """A run that stopped while it worked: a non-finite loss, a full disk, unreadable data."""

    exit_code = 3


class SavedForRestart(RuntimeError):
    """The run saved its state and is to be started again by the same command."""

    exit_code = 75
