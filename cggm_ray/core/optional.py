"""Packages of the project's extras: imported where they are needed, and named with the command that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from cggm_ray.core.errors import UsageError


class MissingPackageError(UsageError):
    """A package that this run needs is not installed."""


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: dotted name.
        extra: of the project that brings the package.
        purpose: what needs it; the message begins with this.

    Returns:
        The module.

    Raises:
        MissingPackageError: the package, or one that it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package may be there and lack one of its own: the name that was not found is the one to show.
        raise missing((error.name or module).partition(".")[0], extra=extra, purpose=purpose) from None


def missing(package: str, *, extra: str, purpose: str) -> MissingPackageError:
    """The error for a package that is not installed; see `require`."""
    return MissingPackageError(f"{purpose}: {package} is not installed; pip install 'cggm-ray[{extra}]'")


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def check_installed(*packages: str, extra: str, purpose: str) -> None:
    """Refuses work that would need a package later on; nothing is imported.

    Raises:
        MissingPackageError: one of the packages is not installed; see `require`.
    """
    for package in packages:
        if not is_installed(package):
            raise missing(package, extra=extra, purpose=purpose)
