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


class NonFiniteError(TrainingError):
    """Loss or gradient stopped being finite; raised on every worker before the optimizer steps."""
