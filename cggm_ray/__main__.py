"""Commands about runs that are there: `verify`, `report`, `predict`, `export`.

python -m cggm_ray verify RUN                     # does the checkpoint still have the recorded metrics
python -m cggm_ray report RUN [RUN ...]           # a page with pictures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cggm_ray.errors import CggmError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where it did, 1 where it failed or values differ, 2 where it cannot be run."""
    parser = argparse.ArgumentParser(
        prog="python -m cggm_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("verify", help="evaluate the best checkpoint of a run again, and compare")
    one.add_argument("run", type=Path, help="folder of the run")
    one.set_defaults(do=_verify)
    one = commands.add_parser("report", help="write a page about one run, or several beside each other")
    one.add_argument("runs", type=Path, nargs="+", metavar="run", help="folder of a run")
    one.add_argument("--out", type=Path, help="folder for the page; default report in the folder of the run")
    one.set_defaults(do=_report)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.do(arguments)
    except CggmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code


# What a command needs is imported by it: pictures and networks take longer than the other commands.


def _verify(arguments: argparse.Namespace) -> int:
    from cggm_ray.verify import verify

    found = verify(arguments.run)
    print(found.table())
    return 0 if found.equal else 1


def _report(arguments: argparse.Namespace) -> int:
    from cggm_ray.report.page import report

    print(report(arguments.runs, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
