"""Errors that a person can act on: one line that names the file, the field, what was found and what was expected."""


class CggmError(Exception):
    """A failure of a run. Programs end with `exit_code`."""

    exit_code = 1


class UsageError(CggmError):
    """A flag, a configuration value or a combination of them cannot work. Raised before any long work starts."""

    exit_code = 2


class DataError(UsageError):
    """An input file or array is not what its format promises."""


class TrainingError(CggmError):
    """Training cannot go on. What was saved before stays valid."""


class StorageError(TrainingError):
    """The folder of a run cannot be written or read any more: full, read-only, or gone."""


class StoppedError(CggmError):
    """Somebody asked a run to stop, and it saved its state: a signal, or a job that is ended.

    Args:
        message: one line that says how to go on.
        code: exit code of the program, 128 plus the signal's number.
    """

    def __init__(self, message: str, code: int = 143) -> None:
        super().__init__(message, code)
        self.exit_code = code

    def __str__(self) -> str:
        return str(self.args[0])


class NonFiniteError(TrainingError):
    """Loss or gradient stopped being finite; raised on every worker before the optimizer steps."""
