"""Handles a working directory that does not exist any more, for example because a scheduler removed a job's folder.

The package imports this module before torch, because torch's kernel library ends the process if there is no working
directory.
"""

from __future__ import annotations

import os

GONE = False
"""Whether this process started in a folder that does not exist any more. The process is in the root folder then."""


def leave_missing_folder() -> None:
    """Changes to the root folder if the working directory is gone. `config.parsing.check_path` refuses relative paths then."""
    global GONE
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")
        GONE = True


leave_missing_folder()
