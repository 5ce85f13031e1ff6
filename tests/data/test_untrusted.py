"""Raw files are not believed: no paths outside, no memory without bytes, no code, one line whatever they hold."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_sets import arrays, as_npz, config

from cggm_ray.core.errors import LONGEST, CggmError, DataError, listed, one_line, short_repr
from cggm_ray.data.formats import h5
from cggm_ray.data.formats.parquet import read_parquet
from cggm_ray.data.formats.untrusted import check_texts, image_memory, inside, open_image, plain_array
from cggm_ray.data.shards.shards import MANIFEST, open_set, write_shards_here
from cggm_ray.data.shards.sources import describe_sources
from cggm_ray.engine.assembly import prepare_data

FUZZ = Path(__file__).parents[2] / "benchmarks" / "faults" / "fuzz.py"


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("images/1.jpg", True),
        ("./a..b/1.jpg", True),
        ("../1.jpg", False),
        ("images/../../1.jpg", False),
        ("/etc/passwd", False),
        ("..\\1.jpg", False),
        ("C:\\1.jpg", False),
        ("C:1.jpg", False),
        ("\\\\host\\share\\1.jpg", False),
        ("a\0b", False),
    ],
)
def test_paths_stay_inside(path: str, good: bool) -> None:
    assert inside(path) is good


@pytest.mark.parametrize("name", ["../other/train-00000.parquet", "/etc/passwd", "train-00000.parquet/../x", "x", ""])
def test_a_manifest_names_shards_of_its_own_folder(tmp_path: Path, name: str) -> None:
    """Another file of the right size is no shard, so the set counts as none, and is made anew in its place."""
    settings = config(tmp_path, as_npz(tmp_path, arrays()))
    folder = prepare_data(settings, write_shards_here)
    text = (folder / MANIFEST).read_text()
    content = json.loads(text)
    shard = content["splits"]["train"][0]
    other = tmp_path / "runs" / "shards" / "other"
    other.mkdir()
    (other / "train-00000.parquet").write_bytes((folder / shard["file"]).read_bytes())
    shard["file"] = name
    (folder / MANIFEST).write_text(json.dumps(content))
    assert open_set(folder) is None
    assert prepare_data(settings, write_shards_here) == folder
    assert (folder / MANIFEST).read_text() == text
    assert (other / "train-00000.parquet").exists()


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pkl")
    with pytest.raises(DataError, match=r"pipe\.pkl: found no regular file"):
        describe_sources([tmp_path / "pipe.pkl"], tmp_path)


def test_links_are_followed_and_devices_are_not_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4, 4)).save(tmp_path / "whole.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "whole.png")
    with open_image(tmp_path / "link.png") as opened, image_memory(opened):
        assert opened.size == (4, 4)
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        open_image(tmp_path / "zeros.png")


def test_lists_unfold_to_no_more_than_memory_holds() -> None:
    folded: list[object] = [0.0] * 10
    assert plain_array([folded, folded], "x").shape == (2, 10)
    for _ in range(12):
        folded = [folded] * 10
    with pytest.raises(DataError, match=r"x: found 80,000,000,000,000 bytes|x: found .* bytes of data"):
        plain_array(folded, "x")


def test_one_long_text_does_not_make_all_others_long() -> None:
    long = "x" * 10**6
    check_texts([long, "a"], "ids")
    with pytest.raises(DataError, match=r"ids: found .* \(one text is much longer"):
        check_texts([long] * 10_000, "ids")


def test_texts_of_parquet_take_memory_once(tmp_path: Path) -> None:
    """A text of a million characters, ten thousand times, is a small file and would be 40 GB as an array."""
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * 10**6]))
    table = {"age": pa.array([[1.0]] * 10_000), "label": pa.array([0, 1] * 5000), "id": codes}
    pq.write_table(pa.table(table), tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet").stat().st_size < 10**6
    with pytest.raises(DataError, match=r"f\.parquet, column id: found 40,000,000,000 bytes"):
        prepare_data(config(tmp_path, tmp_path / "f.parquet"), write_shards_here)


def test_tensors_that_are_null_take_memory_too(tmp_path: Path) -> None:
    storage = pa.array([None] * 700, pa.list_(pa.float32(), 10**5))
    pq.write_table(pa.table({"age": storage, "label": [0, 1] * 350}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"f\.parquet: columns age, label: found 280,005,600 bytes of data"):
        read_parquet(tmp_path / "f.parquet", lambda name: True)


def test_ray_does_not_unpickle_what_a_parquet_file_says(tmp_path: Path) -> None:
    """With Ray's own types registered, as on the driver of a run on Ray."""
    pytest.importorskip("ray.data")
    from ray.data.extensions import ArrowTensorTypeV2

    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    storage = pa.array([[1.0, 2.0]] * 4, pa.large_list(pa.float32()))
    field = pa.field(
        "age",
        storage.type,
        metadata={
            "ARROW:extension:name": ArrowTensorTypeV2((2,), pa.float32()).extension_name,
            "ARROW:extension:metadata": pickle.dumps(Call()),
        },
    )
    schema = pa.schema([field, pa.field("label", pa.int64())])
    pq.write_table(pa.table([storage, pa.array([0, 1, 0, 1])], schema=schema), tmp_path / "f.parquet")
    with pytest.raises(DataError, match=r"f\.parquet"):
        prepare_data(config(tmp_path, tmp_path / "f.parquet"), write_shards_here)
    assert not (tmp_path / "executed").exists()


def test_a_file_that_crashes_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that looks first ends as by a crash, on the second of three files."""
    paths = [tmp_path / f"{number}.h5" for number in range(3)]
    for path in paths:
        with h5py.File(path, "w") as file:
            file["x"] = np.zeros(3)
    h5.probe(paths)
    crash = tmp_path / "probe.py"
    crash.write_text("import os\nprint('seen', flush=True)\nos.abort()\n")
    monkeypatch.setattr(h5, "PROBE", crash)
    with pytest.raises(DataError, match=r"1\.h5: the h5 library ends with -6 on this file"):
        h5.probe(paths)
    crash.write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(h5, "PATIENCE_S", -2.5)
    with pytest.raises(DataError, match=r"0\.h5: the h5 library does not come back on this file"):
        h5.probe(paths)


def test_messages_are_one_line_and_show_the_beginning() -> None:
    assert str(CggmError("a\n  b\x1b[2J\u202e")) == r"a b\x1b[2J\u202e"
    assert one_line("two  spaces") == "two  spaces"
    assert len(one_line("x" * 10**6 + "; expected y")) < LONGEST + 100
    assert one_line("x" * 10**6 + "; expected y").endswith("; expected y")
    laughs: list[object] = ["x"]
    for _ in range(60):
        laughs = [laughs] * 9
    assert len(short_repr(laughs)) < 2000
    assert listed(map(str, range(30)), 2) == "0, 1 and 28 more"
    assert listed([]) == "nothing"


@pytest.mark.slow
def test_a_short_fuzz_run_that_notices(tmp_path: Path) -> None:
    """All inputs are well received; readers that run code, fill the memory, hang, crash or raise other errors are not."""
    command = [sys.executable, str(FUZZ), "--inputs", "320", "--seed", "3", "--self_test", "--patience", "300"]
    command += ["--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "fuzz.json").read_text())["counts"]
    files = {"h5", "image", "json", "nifti", "npy", "npz", "parquet", "pickle", "shards", "torch", "yaml"}
    recipes = {"arrow", "audio", "csv", "jsonl", "listing", "picture", "sentiment", "video"}
    assert set(counts) == files | recipes
    assert all(one["fine"] for one in counts.values())
    assert sum(one.get("named error", 0) for one in counts.values()) >= 100
    assert sum(sum(one.values()) for one in counts.values()) >= 320
    assert done.stdout.count("; expected ") == 5
