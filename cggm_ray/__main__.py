"""`python -m cggm_ray verify RUN`: evaluates the saved checkpoint of a run again and compares with what it recorded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cggm_ray.errors import CggmError
from cggm_ray.verify import verify


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where all values are equal, 1 where one differs, 2 where the command cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m cggm_ray", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("verify", help="evaluate the best checkpoint of a run again")
    one.add_argument("run", type=Path, help="folder of the run")
    arguments = parser.parse_args(argv)
    try:
        found = verify(arguments.run)
    except CggmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(found.table())
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main())
