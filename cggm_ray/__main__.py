"""Trains multimodal models with balancing strategies on Ray; `python -m cggm_ray` is the same program.

cggm train mosi --data_path mosi.pkl              # a run of a recipe; cggm train lists the recipes
cggm report RUN [RUN ...]                         # a page with figures about one run or several
cggm runs list                                    # the runs in the default folder
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from cggm_ray import __version__
from cggm_ray.commands.cli import exit_code
from cggm_ray.commands.completion import complete, completing
from cggm_ray.commands.flags import add_import
from cggm_ray.commands.recipe import ARGUMENTS, run_recipe
from cggm_ray.config.parsing import local_path
from cggm_ray.core.errors import UsageError
from cggm_ray.core.tables import text_table
from cggm_ray.engine.own_code import check_not_importing, import_file
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.storage.mirror import at_hand, mirror_of
from cggm_ray.storage.places import place
from cggm_ray.storage.work import read_folder, shown

run_place = partial(read_folder, "run")
SPLITS = ("train", "valid", "test")
FORMATS = ("pt2", "onnx")
_RECIPE_COMMANDS = {
    "train": "train and test a model by a recipe, such as mosi or features",
    "tune": "search hyper-parameters for a recipe on Ray Tune",
    "compare": "train a recipe with several strategies and print their differences",
}
_RUNS = {
    "list": "print a line for every run and search",
    "show": "print the settings and the result of a run",
    "clean": "print what can be deleted and how much space that frees",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where it did, 1 where it failed or values differ, 2 where it cannot be run."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ARGUMENTS and not completing():
        # Their flags are those of the recipe.
        check_not_importing()
        return run_recipe(argv[0], argv[1:])
    parser = build_commands()
    if completing():
        complete(parser)

    def do() -> int:
        arguments = parser.parse_args(argv)
        for file in arguments.imports or ():
            import_file(file)
        code: int = arguments.do(arguments)
        return code

    return exit_code(do)


def build_commands() -> argparse.ArgumentParser:
    """Builds the parser of all commands; those of recipes have no flags in it, because their recipe decides which there are."""
    parser = argparse.ArgumentParser(
        prog="cggm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"cggm-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")

    for name, what in _RECIPE_COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    one = add("bench", "compare arms (strategies with settings) over datasets and seeds, with an equal search for each")
    one.add_argument(
        "file", type=partial(local_path, "bench"), help="yaml file of the benchmark, or the folder of its results"
    )
    one.add_argument(
        "--storage_path",
        type=partial(local_path, "storage_path"),
        default="~/cggm_runs",
        help="folder in which the benchmark has its own folder [~/cggm_runs]",
    )
    one.add_argument("--local", action="store_true", help="train one run after the other in this process, without Ray")
    one.add_argument(
        "--hours", type=float, help="hours after which no further run starts; the same command goes on with the rest"
    )
    one.add_argument("--page", action="store_true", help="write the page of a folder again, without any run")
    one.set_defaults(do=_bench)
    one = add("verify", "evaluate the best checkpoint of a run again and compare with the recorded metrics")
    one.add_argument("run", type=run_place, help="folder or URL of the run")
    one.set_defaults(do=_verify)
    one = add("report", "write an HTML page about a run, several runs, or a study (a comparison or a search)")
    one.add_argument("runs", type=run_place, nargs="+", metavar="run", help="folder or URL of a run or a study")
    one.add_argument(
        "--out",
        type=partial(local_path, "out"),
        help="folder for the page; default report in the folder of the run, or beside the first of several",
    )
    one.add_argument(
        "--no_contributions",
        action="store_true",
        help="do not score the subsets of modalities that a run has not scored",
    )
    one.add_argument(
        "--serve", action="store_true", help="serve the page over HTTP, and update it while the runs train"
    )
    one.add_argument("--host", default="127.0.0.1", help="with --serve: address to listen at [127.0.0.1]")
    one.add_argument(
        "--port", type=int, default=8001, help="with --serve: port to listen at; 0 takes a free one [8001]"
    )
    one.set_defaults(do=_report)
    one = add("predict", "write the predictions of the best checkpoint of a run, and print their metrics")
    one.add_argument("run", type=run_place, help="folder or URL of the run")
    one.add_argument(
        "--data_path",
        type=partial(place, "data_path"),
        help="raw data, with or without labels; default the data of the run",
    )
    one.add_argument(
        "--media_path",
        type=partial(local_path, "media_path"),
        help="with --data_path: folder of its images, sounds and videos; default that of the run, or of the data",
    )
    one.add_argument(
        "--split", choices=SPLITS, help="part of the data; default all of --data_path, or test of the run's own data"
    )
    one.add_argument(
        "--out",
        type=partial(local_path, "out"),
        help="file, .csv or else parquet; for a segmentation a new folder; default predictions-* in the folder of the run",
    )
    one.add_argument("--ray", action="store_true", help="convert and predict with Ray Data, for large data")
    one.add_argument(
        "--workers", type=int, default=1, help="processes that predict at once; more than 1 implies --ray [1]"
    )
    one.set_defaults(do=_predict)
    one = add("export", "write the network of a run, without guides, as a torch.export program or an ONNX model")
    one.add_argument("run", type=run_place, help="folder or URL of the run")
    one.add_argument(
        "--out", type=partial(local_path, "out"), help="file to write; default model.FORMAT in the folder of the run"
    )
    one.add_argument(
        "--format", choices=FORMATS, help="pt2 (torch.export) or onnx; default by the ending of --out, else pt2"
    )
    one.set_defaults(do=_export)
    one = add("serve", "serve the predictions of a run over HTTP, by Ray Serve")
    one.add_argument("run", type=run_place, help="folder or URL of the run")
    one.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all interfaces [127.0.0.1]")
    one.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one [8000]")
    one.add_argument("--replicas", type=int, default=1, help="number of processes that each hold the network [1]")
    one.add_argument("--cpus", type=int, default=1, help="CPUs of each replica [1]")
    one.add_argument("--use_gpu", action="store_true", help="one GPU for each replica")
    one.add_argument("--max_body", type=int, default=16, help="largest body of a request in MiB [16]")
    one.add_argument("--max_samples", type=int, default=256, help="largest number of samples in a request [256]")
    one.add_argument("--max_held", type=int, default=64, help="MiB of request bodies that a replica holds at once [64]")
    one.add_argument(
        "--max_seconds", type=int, default=60, help="seconds for a body to arrive, and again for its answer [60]"
    )
    one.add_argument("--max_batch", type=int, default=32, help="largest number of requests in one batch [32]")
    one.set_defaults(do=_serve)
    one = add("publish", "copy a finished run into a storage, under its own name")
    one.add_argument("run", type=run_place, help="folder or URL of the run")
    one.add_argument("url", help="URL of the storage, or path of a local or mounted folder")
    one.set_defaults(do=_publish)
    one = add("fetch", "copy a published run into a new folder")
    one.add_argument("url", help="URL that publish printed")
    one.add_argument("run", type=partial(local_path, "run"), help="new folder for the run")
    one.set_defaults(do=_fetch)
    one = add("runs", "list the runs of a folder, show one, or delete what no result needs")
    tasks = one.add_subparsers(dest="task", required=True)
    for name, what in _RUNS.items():
        one = tasks.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        add_import(one)
        if name == "show":
            one.add_argument("run", type=run_place, help="folder or URL of the run")
        else:
            one.add_argument(
                "storage",
                nargs="?",
                type=partial(place, "storage_path"),
                default=RunConfig().storage,
                help="folder or URL of the runs [~/cggm_runs]",
            )
        if name == "clean":
            one.add_argument(
                "--delete", action="store_true", help="delete what is printed; without this flag nothing changes"
            )
        one.set_defaults(do=_runs)
    for name, each in commands.choices.items():
        if name not in (*ARGUMENTS, "runs"):
            add_import(each)
    return parser


def _runs(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.runs import clean, print_run, print_runs

    if arguments.task == "list":
        print_runs(arguments.storage)
    elif arguments.task == "show":
        mirror_of(arguments.run).pull()
        print_run(arguments.run)
    else:
        clean(arguments.storage, arguments.delete)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.bench import Places, bench, page_of

    if arguments.hours is not None and not arguments.hours > 0:
        raise UsageError(f"hours: found {arguments.hours}; expected a positive number")
    if arguments.page:
        print(page_of(arguments.file))
        return 0
    bench(arguments.file, Places(storage=arguments.storage_path, local=arguments.local, hours=arguments.hours))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.verify import verify

    with at_hand(arguments.run) as run:
        found = verify(run)
    print(found.table())
    return 0 if found.equal else 1


def _report(arguments: argparse.Namespace) -> int:
    from cggm_ray.report.page import report
    from cggm_ray.report.study_page import study_report
    from cggm_ray.report.study_record import is_study

    if arguments.serve:
        if arguments.out is not None:
            raise UsageError("out: not with --serve, which writes no page into a folder")
        from cggm_ray.report.live import serve_page

        serve_page(arguments.runs, arguments.host, arguments.port)
        return 0
    with ExitStack() as stack:
        runs = [stack.enter_context(at_hand(run)) for run in arguments.runs]
        if len(runs) == 1 and is_study(runs[0]):
            page = study_report(runs[0], arguments.out)
        else:
            page = report(runs, arguments.out, not arguments.no_contributions)
        mirror_of(page.parent).push()
    print(shown(page))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.predict import predict

    if arguments.workers < 1:
        raise UsageError(f"workers: found {arguments.workers}; expected a whole number of at least 1")
    workers = arguments.workers if arguments.ray or arguments.workers > 1 else None
    with at_hand(arguments.run) as run:
        done = predict(run, arguments.data_path, arguments.split, arguments.out, workers, arguments.media_path)
    labelled = {"labelled": done.labelled} if done.labelled < done.samples else {}
    print(text_table(list({"predicted": done.samples, **labelled, **done.metrics}.items())))
    print(shown(done.path))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.export import export

    with at_hand(arguments.run) as run:
        done = export(run, arguments.out, arguments.format)
    print(
        f"{shown(done.path)}: equal to the network on {done.samples} validation samples, up to {done.difference:.1e} of the "
        "largest output"
    )
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from cggm_ray.commands.serve import check_serve, serve_run

    check_serve()
    for name in ("replicas", "cpus", "max_body", "max_samples", "max_held", "max_seconds", "max_batch"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"{name}: found {getattr(arguments, name)}; expected a whole number of at least 1")
    from cggm_ray.distributed.serve.service import ServiceOptions

    options = ServiceOptions(
        replicas=arguments.replicas,
        cpus=arguments.cpus,
        gpus=int(arguments.use_gpu),
        body=arguments.max_body * 2**20,
        samples=arguments.max_samples,
        batch=arguments.max_batch,
        held=arguments.max_held * 2**20,
        seconds=arguments.max_seconds,
    )
    with at_hand(arguments.run) as run:
        serve_run(run, arguments.host, arguments.port, options)
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from cggm_ray.runs.published import publish_run

    with at_hand(arguments.run) as run:
        print(publish_run(run, arguments.url))
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from cggm_ray.runs.published import fetch_run

    fetch_run(arguments.url, arguments.run)
    print(arguments.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
