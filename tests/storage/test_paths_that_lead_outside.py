"""Names in files and stores that lead to another place: nothing outside is read or written, and one line says what is wrong."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from brats_files import write_released
from feature_sets import arrays, as_npz, config
from iemocap_layout import PLACES, small_layout

from cggm_ray.__main__ import main as command
from cggm_ray.commands.cli import main
from cggm_ray.commands.predict import predict
from cggm_ray.core.errors import CggmError, DataError, UsageError
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import write_shards_here
from cggm_ray.engine.assembly import prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.storage.base import open_storage
from cggm_ray.storage.files import CHECKSUMS
from cggm_ray.storage.mirror import Mirror

KEYS = ("../x", "../../x", "/tmp/x", "a/../../x", "a\0b")


def tree(folder: Path) -> set[str]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on features, with its data beside it."""
    folder = tmp_path_factory.mktemp("trained")
    made = config(folder, as_npz(folder, arrays()), "words,age", target="label", split="part")
    assert main(made, ["--report", "false"]) == 0
    return folder


def member(name: str) -> Callable[[Path], Path]:
    """A data file with a member of that name in place of the modality words."""

    def make(folder: Path) -> Path:
        content = arrays()
        path = as_npz(folder, {key: value for key, value in content.items() if key != "words"})
        packed = io.BytesIO()
        np.save(packed, content["words"])
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, packed.getvalue())
        return path

    return make


@pytest.mark.parametrize("name", ["../../x.npy", "/tmp/cggm-outside.npy", "..\\..\\x.npy", "a/../../../x.npy"])
def test_members_of_an_archive_are_never_files(tmp_path: Path, name: str) -> None:
    """They are read in memory, by rows too, so their names lead nowhere; a modality may have such a name or is refused."""
    (tmp_path / "in" / "data").mkdir(parents=True)
    path = member(name)(tmp_path / "in" / "data")
    said = ""
    try:
        prepare_data(config(tmp_path / "in", path, target="label", split="part"), write_shards_here)
    except DataError as error:
        said = str(error)
    assert not said or str(path) in said
    assert "\n" not in said
    assert tree(tmp_path) == {one for one in tree(tmp_path) if one.startswith(("in/data/f.npz", "in/runs/shards/"))}
    assert not Path("/tmp/cggm-outside.npy").exists()


def replaced(file: str, key: str, link: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A layout in which an entry of an h5 file is a link."""

    def spoil(folder: Path) -> Path:
        with h5py.File(folder / file, "r+") as h5:
            del h5[key]
            h5[key] = link(folder)
        return folder / file

    return spoil


def stored_outside(folder: Path) -> Path:
    """The values of an utterance are bytes of another file."""
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(80))
    with h5py.File(folder / PLACES["text"], "r+") as h5:
        name = next(iter(h5))
        del h5[name]
        h5.create_dataset(name, (2, 5), "f8", external=[(str(secret), 0, 80)])
    return folder / PLACES["text"]


def virtual(folder: Path) -> Path:
    """The values of an utterance are a view of another file."""
    with h5py.File(folder / PLACES["text"], "r+") as h5:
        name = next(iter(h5))
        shape = h5[name].shape
        del h5[name]
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource(str(folder.parent / "other.h5"), "x", shape)
        h5.create_virtual_dataset(name, layout)
    return folder / PLACES["text"]


FIRST = "Ses01F_impro00_F000"
LINKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an utterance in another file": (
        replaced(PLACES["text"], FIRST, lambda folder: h5py.ExternalLink(str(folder.parent / "other.h5"), "x")),
        f"utterance {FIRST}",
    ),
    "a fold in another file": (
        replaced(
            "A/comparE_mean_std.h5", "1", lambda folder: h5py.ExternalLink(str(folder.parent / "other.h5"), "fold")
        ),
        "fold 1, ",
    ),
    "a link to nothing": (replaced(PLACES["text"], FIRST, lambda folder: h5py.SoftLink("/none/../x")), FIRST),
    "a link to itself": (replaced(PLACES["text"], FIRST, lambda folder: h5py.SoftLink(f"/{FIRST}")), FIRST),
    "a link to no h5 file": (
        replaced(PLACES["text"], FIRST, lambda folder: h5py.ExternalLink("/etc/passwd", "x")),
        FIRST,
    ),
    "bytes of another file": (stored_outside, f"utterance {FIRST}"),
    "a view of another file": (virtual, f"utterance {FIRST}"),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_in_h5_files(tmp_path: Path, case: str) -> None:
    spoil, field = LINKS[case]
    folder = small_layout(tmp_path / "data")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.zeros((2, 5))
        other["fold/mean"], other["fold/std"] = np.zeros(3), np.ones(3)
    path = spoil(folder)
    settings = Config(
        data=DataConfig(dataset="iemocap", data_path=str(folder)),
        run=RunConfig(storage_path=str(tmp_path / "runs"), local=True),
        options=IemocapOptions(),
    )
    with pytest.raises(DataError) as error:
        prepare_data(settings, write_shards_here)
    text = str(error.value)
    assert str(path) in text
    assert field in text
    assert "\n" not in text


def test_a_volume_in_another_file(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "data")
    with h5py.File(folder / "train" / "case0.h5", "r+") as h5:
        del h5["image"]
        h5["image"] = h5py.ExternalLink(str(folder / "train" / "case1.h5"), "image")
    settings = Config(
        data=DataConfig(dataset="brats", data_path=str(folder)),
        run=RunConfig(storage_path=str(tmp_path / "runs"), local=True),
        options=BratsOptions(crop=16),
    )
    with pytest.raises(DataError, match=r"case0\.h5: key image takes its values from other files"):
        prepare_data(settings, write_shards_here)


@pytest.mark.parametrize("key", KEYS)
def test_a_fetched_index_that_leads_outside(
    tmp_path: Path, trained: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert command(["publish", str(trained / "runs" / "r"), str(store)]) == 0
    index = store / "r" / "published.json"
    index.write_text(json.dumps({key: "0", **json.loads(index.read_text())}))
    before = tree(tmp_path)
    assert command(["fetch", f"{store}/r", str(tmp_path / "here" / "r")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found the key" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "../x", ".", "a/.."])
def test_the_name_of_a_fetched_run(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").mkdir()
    assert command(["fetch", f"{tmp_path}/store/{name}", str(tmp_path / "new")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("key", KEYS)
def test_checksums_of_a_checkpoint_at_a_url(tmp_path: Path, key: str) -> None:
    """Whoever can write the store cannot make a node write outside of its copy of the run."""
    saved = tmp_path / "store" / "r" / "best"
    saved.mkdir(parents=True)
    (saved / CHECKSUMS).write_text(json.dumps({key: "0"}))
    (tmp_path / "store" / "x").write_text("outside")
    work = tmp_path / "work" / "r"
    mirror = Mirror(work, f"file://{tmp_path / 'store' / 'r'}")
    with pytest.raises(CggmError, match="found the key"):
        mirror.fetch(work / "best")
    assert not list((tmp_path / "work").rglob("x*"))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a/b", "..", ".", ""])
def test_the_name_of_a_run_is_no_path(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": name, "storage_path": str(tmp_path / "runs")}))
    before = tree(tmp_path)
    assert main(Config(), ["--local", "--config", str(path), "--num_epochs", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "name: found" in line
    assert tree(tmp_path) == before


def test_a_run_whose_configuration_names_other_places(trained: Path, tmp_path: Path) -> None:
    """What reads a run writes into its folder or where it is told to, and shards where its configuration says; nothing else."""
    run = tmp_path / "in" / "r"
    shutil.copytree(trained / "runs" / "r", run)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["run"]["storage_path"] = str(tmp_path / "out")
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    predict(run, trained / "f.npz", out=tmp_path / "in" / "p.parquet")
    assert command(["report", str(run)]) == 0
    assert {one for one in tree(tmp_path) if not one.startswith(("in/", "out/shards/"))} == set()
    content["run"]["name"] = "../../y"
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=r"config\.yaml: name: found '\.\./\.\./y'; expected a plain folder name"):
        predict(run, trained / "f.npz", out=tmp_path / "in" / "p.parquet")


def test_code_in_the_folder_of_a_run_is_not_imported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    shutil.copytree(trained / "runs" / "r", run)
    (run / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n")
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["modulation"]["modulation"] = "evil"
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    data = json.loads((run / "data.json").read_text())
    place = {"kind": "strategy", "name": "evil", "file": str(run / ".." / "r" / "evil.py"), "module": None}
    (run / "data.json").write_text(json.dumps({**data, "registered": [place]}))
    assert command(["report", str(run)]) == 2
    assert "a file of the run itself, which is not imported" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_a_link_in_a_local_store_is_its_owners(tmp_path: Path) -> None:
    """Keys lead nowhere; links that the owner of the folder made are followed, as in a data folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("a")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "elsewhere")
    assert open_storage(str(tmp_path / "store")).read("link/a") == b"a"
