"""Commands about runs that are there: `verify`, `report`, `predict`, `export`, `publish`, `fetch`.

python -m cggm_ray verify RUN                     # does the checkpoint still have the recorded metrics
python -m cggm_ray report RUN [RUN ...]           # a page with pictures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from cggm_ray.commands.cli import add_import, exit_code
from cggm_ray.config.parsing import local_path
from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import text_table
from cggm_ray.engine.own_code import import_file

SPLITS = ("train", "valid", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where it did, 1 where it failed or values differ, 2 where it cannot be run."""
    parser = argparse.ArgumentParser(
        prog="python -m cggm_ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("verify", help="evaluate the best checkpoint of a run again, and compare")
    one.add_argument("run", type=partial(local_path, "run"), help="folder of the run")
    one.set_defaults(do=_verify)
    one = commands.add_parser("report", help="write a page about one run, or several beside each other")
    one.add_argument("runs", type=partial(local_path, "run"), nargs="+", metavar="run", help="folder of a run")
    one.add_argument(
        "--out", type=partial(local_path, "out"), help="folder for the page; default report in the folder of the run"
    )
    one.add_argument(
        "--no_contributions", action="store_true", help="leave out the subsets of modalities that a run has not scored"
    )
    one.set_defaults(do=_report)
    one = commands.add_parser("predict", help="write what the best checkpoint of a run predicts, and its metrics")
    one.add_argument("run", type=partial(local_path, "run"), help="folder of the run")
    one.add_argument(
        "--data_path",
        type=partial(local_path, "data_path"),
        help="raw data, labels are not needed; default the run's own",
    )
    one.add_argument(
        "--split", choices=SPLITS, help="part of that data; default all of it, or test of the run's own data"
    )
    one.add_argument(
        "--out",
        type=partial(local_path, "out"),
        help="file, or folder of maps; default predictions-SPLIT-NAME in the folder of the run",
    )
    one.add_argument("--ray", action="store_true", help="convert and predict with Ray Data, for large data")
    one.add_argument(
        "--workers", type=int, default=1, help="with --ray: so many predict at once; more than 1 implies it"
    )
    one.set_defaults(do=_predict)
    one = commands.add_parser("export", help="write the network as a torch.export program, without guides")
    one.add_argument("run", type=partial(local_path, "run"), help="folder of the run")
    one.add_argument("--out", type=partial(local_path, "out"), help="file; default model.pt2 in the folder of the run")
    one.set_defaults(do=_export)
    one = commands.add_parser("publish", help="copy a finished run into a storage, under its own name")
    one.add_argument("run", type=partial(local_path, "run"), help="folder of the run")
    one.add_argument("url", help="of the storage; a path is a local or mounted folder")
    one.set_defaults(do=_publish)
    one = commands.add_parser("fetch", help="copy a published run into a new folder")
    one.add_argument("url", help="that publish printed")
    one.add_argument("run", type=partial(local_path, "run"), help="folder for the run, which does not exist yet")
    one.set_defaults(do=_fetch)
    for each in commands.choices.values():
        add_import(each)

    def do() -> int:
        arguments = parser.parse_args(argv)
        for file in arguments.imports or ():
            import_file(file)
        code: int = arguments.do(arguments)
        return code

    return exit_code(do)


def _verify(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.verify import verify

    found = verify(arguments.run)
    print(found.table())
    return 0 if found.equal else 1


def _report(arguments: argparse.Namespace) -> int:
    from cggm_ray.report.page import report

    print(report(arguments.runs, arguments.out, not arguments.no_contributions))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.predict import predict

    if arguments.workers < 1:
        raise UsageError(f"workers: found {arguments.workers}; expected a whole number of at least 1")
    workers = arguments.workers if arguments.ray or arguments.workers > 1 else None
    done = predict(arguments.run, arguments.data_path, arguments.split, arguments.out, workers)
    labelled = {"labelled": done.labelled} if done.labelled < done.samples else {}
    print(text_table(list({"predicted": done.samples, **labelled, **done.metrics}.items())))
    print(done.path)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.export import export

    done = export(arguments.run, arguments.out)
    print(
        f"{done.path}: equal to the network on {done.samples} validation samples, up to {done.difference:.1e} of the "
        "largest output"
    )
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from cggm_ray.runs.published import publish_run

    print(publish_run(arguments.run, arguments.url))
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from cggm_ray.runs.published import fetch_run

    fetch_run(arguments.url, arguments.run)
    print(arguments.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
