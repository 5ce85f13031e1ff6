"""A working directory that is gone, as of a job whose folder a scheduler removed.

Imported before torch: its kernel library ends the process when it is loaded where there is no working directory.
"""

from __future__ import annotations

import os

GONE = False
"""Whether this process was started in a folder that does not exist any more; it is in the root folder then."""


def leave_missing_folder() -> None:
    """Goes to the root folder where the working directory is gone. Relative paths are refused from then on, see `values`."""
    global GONE
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")
        GONE = True


leave_missing_folder()
