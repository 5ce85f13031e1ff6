"""Datasets, strategies and networks from files of the user, which a run records, imports again and sends to its workers.

Importing a file runs it. Only files that the user names with `--import`, or that a run recorded, are imported.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from cggm_ray.core.errors import CggmError, UsageError, one_line, short_repr
from cggm_ray.core.package import check_package, package_digest
from cggm_ray.core.registry import Place, Registry, nearest
from cggm_ray.data.dataset import DATASETS
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS
from cggm_ray.engine.configuration import Config
from cggm_ray.models.composed.registry import ENCODERS, FUSIONS
from cggm_ray.models.own import own_network
from cggm_ray.models.registry import NETWORKS
from cggm_ray.strategies.registry import STRATEGIES

REGISTRIES: Mapping[str, Registry[Any]] = {
    "dataset": DATASETS,
    "strategy": STRATEGIES,
    "network": NETWORKS,
    "encoder": ENCODERS,
    "fusion": FUSIONS,
    "column": COLUMN_KINDS,
}

_imported: dict[Path, ModuleType] = {}
_beside: list[ModuleType] = []
_running: list[Path] = []


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered entry that is sent to another process.

    Attributes:
        kind: of `REGISTRIES`.
        name: as registered.
        entry: the class of a dataset, the `StrategyInfo` of a strategy, the `NetworkInfo` of a network, and so on.
        place: where it was registered; None in this package.
    """

    kind: str
    name: str
    entry: Any
    place: Place | None


@dataclass(frozen=True, kw_only=True)
class OwnCode:
    """The entries that another process needs to run the code of this one.

    Attributes:
        package: digest of this package here.
        entries: that the other process may lack.
    """

    package: str
    entries: tuple[Entry, ...]


def own_code(config: Config) -> OwnCode:
    """Returns the entries that another process may lack: the dataset, and all others from user files."""
    names = [("dataset", config.data.dataset)]
    names += [(kind, name) for kind in REGISTRIES if kind != "dataset" for name in REGISTRIES[kind].names()]
    found = [(kind, name, REGISTRIES[kind].place(name)) for kind, name in names]
    made = (
        Entry(kind=kind, name=name, entry=REGISTRIES[kind].get(name), place=place)
        for kind, name, place in found
        if kind == "dataset" or place is not None
    )
    return OwnCode(package=package_digest(), entries=tuple(made))


def adopt(own: OwnCode) -> None:
    """Registers entries that came from another process, unless they are known here.

    Raises:
        UsageError: this package is another one here.
    """
    check_package(own.package, platform.node())
    for one in own.entries:
        REGISTRIES[one.kind].adopt(one.name, one.entry, one.place)


def places(config: Config) -> list[dict[str, Any]]:
    """Returns where what a configuration names was registered, as plain values, for what is in user files: dataset,
    strategy, network, and parts of the network and of the dataset.
    """
    network = config.model.network or DATASETS.get(config.data.dataset).network
    names = [("dataset", config.data.dataset), ("strategy", config.modulation.modulation), ("network", network)]
    names += [*config.network_options(network).parts(), *DATASETS.get(config.data.dataset).parts()]
    found = [(kind, name, REGISTRIES[kind].place(name)) for kind, name in names]
    return [{"kind": kind, "name": name, **asdict(place)} for kind, name, place in found if place is not None]


def import_recorded(kind: str, name: object, recorded: Iterable[Any], where: Path) -> None:
    """Imports the file that registers a name, if the name is unknown here.

    Args:
        kind: of `REGISTRIES`.
        name: that a run uses; what is no name is left to the check of its configuration.
        recorded: what `places` gave when the run started.
        where: the run's folder, for messages.

    Raises:
        UsageError: nothing was recorded, or the file is gone, lies in the folder of the run, or does not register the name.
    """
    registry = REGISTRIES[kind]
    if not isinstance(name, str) or name in registry.names():
        return
    what, hint = f"{where}: the {kind} {short_repr(name)}", "give the file that registers it with --import FILE"
    matching = [one for one in recorded if isinstance(one, dict) and (one.get("kind"), one.get("name")) == (kind, name)]
    if not matching:
        # `get` names the nearest known name.
        try:
            registry.get(name)
        except UsageError as error:
            raise UsageError(f"{where}: {error}; or {hint}") from None
    file, module = matching[0].get("file"), matching[0].get("module")
    if not isinstance(file, str) or not Path(file).is_absolute():
        raise UsageError(f"{what} was registered in no file; {hint}")
    if not Path(file).is_file():
        raise UsageError(f"{what} was registered in {file}, which is not there; {hint}")
    # Whoever made a run that was fetched could have put the file there, and importing it runs it.
    if Path(file).resolve().is_relative_to(where.resolve()):
        raise UsageError(f"{what} was registered in {file}, a file of the run itself, which is not imported; {hint}")
    print(f"imports {file}, which registered the {kind} {name}", file=sys.stderr)
    if kind == "network" and ".py:" in name:
        adopt_network(name, Path(file))
    import_file(Path(file), module if isinstance(module, str) else None)
    if name not in registry.names():
        raise UsageError(f"{what} was registered in {file}, which does not register it now; {hint}")


def adopt_network(network: object, kept: Path | None = None) -> str | None:
    """Registers a network that is named by a file and a function (`my_file.py:build`) or given as a function or module.

    Args:
        network: name, function or module; see `cggm_ray.models.own`.
        kept: the file, where it is recorded and the name says its last part alone.

    Returns:
        Name of the network; None for the dataset's own.

    Raises:
        UsageError: there is no such file or function.
    """
    if network is None or (isinstance(network, str) and ".py:" not in network):
        return network
    if not isinstance(network, str):
        build = partial(_copied, network) if isinstance(network, nn.Module) else network
        if not callable(build):
            raise UsageError(f"network: found {short_repr(network)}; expected a name, a function or a torch.nn.Module")
        name = getattr(network, "__name__", type(network).__name__)
        # Called again with another function of the same name, the new one counts.
        NETWORKS.replace(name, own_network(name, build), None)
        return name
    text, _, function = network.rpartition(":")
    path = Path(text).expanduser().absolute() if kept is None else kept
    name = f"{path.name}:{function}"
    place = Place(module=None, file=str(path))
    if name in NETWORKS.names():
        if NETWORKS.place(name) != place:
            raise UsageError(
                f"network: {path} and {NETWORKS.place(name)} are both called {name}; rename one of the files"
            )
        return name
    import_file(path)
    build = getattr(_imported[path], function, None)
    if not callable(build):
        names = [key for key, value in vars(_imported[path]).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"network: {path} has no function {function!r}{nearest(function, names)}")
    NETWORKS.adopt(name, own_network(name, build), place)
    return name


def _copied(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def import_file(path: Path, module: str | None = None) -> None:
    """Runs a Python file as a module, once. The file can import its neighbours, as if it were the main program.

    Args:
        path: of the file.
        module: dotted name, where the file belongs to a package.

    Raises:
        UsageError: it is no file, raises an error, or starts a run when it is imported.
    """
    path = path.expanduser().absolute()
    if path in _imported:
        return
    if not path.is_file():
        raise UsageError(f"import: {path} does not exist; expected a Python file")
    before = set(sys.modules)
    parts = len((module or path.stem).split(".")) - 1 + (path.stem == "__init__")
    root = path.parents[min(parts, len(path.parents) - 1)]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    _running.append(path)
    try:
        _imported[path] = importlib.import_module(module) if module and "." in module else _executed(path)
    except CggmError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"import: {path} cannot be imported: {one_line(f'{type(error).__name__}: {error}')}; expected a file that "
            "registers a dataset, strategy, network or storage and starts nothing outside `if __name__ == '__main__':`"
        ) from None
    finally:
        _running.pop()
    for name in set(sys.modules) - before:
        found = getattr(sys.modules[name], "__file__", None)
        if found and Path(found).is_relative_to(root):
            _beside.append(sys.modules[name])


def _executed(path: Path) -> ModuleType:
    # The name hides no installed module, because the file may be called test.py.
    name = f"cggm_ray_import_{len(_imported)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"import: {path} is no Python file; expected one whose name ends with .py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise
    return made


def check_not_importing() -> None:
    """Refuses to start a run while a file is imported.

    Raises:
        UsageError: names the file.
    """
    if _running:
        raise UsageError(
            f"import: {_running[-1]} starts a run when it is imported; put that under `if __name__ == '__main__':`"
        )


def imported_modules() -> list[ModuleType]:
    """Returns the modules of the imported files and of their neighbours, which other processes may not find by name."""
    return [*_imported.values(), *(module for module in _beside if module not in _imported.values())]
