"""Bad inputs of every kind, each with the command that meets it: the rows of docs/bad-input.md.

Cases that other tests have by a table are taken from there; the rest are here. `bad_input_page` writes the page.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import re
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_av
import test_bad_input
import test_brats_bad_input
import test_features_input
import test_food101
import test_iemocap
import test_space as test_search
import yaml
from brats_files import write_challenge, write_released
from clips import configuration, crema
from feature_sets import arrays, as_npz, as_parquet
from food101_files import edit, write_set
from hostile_files import (
    LAUGHS,
    POINTERS,
    Spoil,
    absurd,
    cut,
    huge_nifti,
    linked,
    moved_nifti,
    nifti,
    npz_bomb,
    npz_header,
    picture,
    record,
    text,
)
from iemocap_layout import small_layout
from tables import write_products

from cggm_ray.commands.cli import main
from cggm_ray.data.datasets.brats.brats import BratsOptions
from cggm_ray.data.datasets.features import FeatureOptions
from cggm_ray.data.datasets.food101.food101_options import Food101Options
from cggm_ray.data.datasets.iemocap import IemocapOptions
from cggm_ray.data.datasets.table.options import TableOptions
from cggm_ray.engine.configuration import Config
from cggm_ray.models.settings import ModelConfig
from conftest import SMALL, small_set, write_pickle

PLACE = "DIR"
"""Stands for the folder of a case."""
TINY = ModelConfig(nlevels=3, cls_layers=1, num_heads=2, proj_dim=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bad input.

    Attributes:
        section: of the page.
        title: what is wrong.
        prepare: makes the input in an empty folder and returns the flags that lead to it.
        recipe: of the pipeline.
        code: exit code.
    """

    section: str
    title: str
    prepare: Callable[[Path], list[str]]
    recipe: Config
    code: int = 2

    def message(self, folder: Path) -> tuple[int, str]:
        """Exit code of the command line, and all that it writes on stderr, with `PLACE` for the folder."""
        flags = self.prepare(folder)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(self.recipe, ["--storage_path", str(folder / "runs"), "--name", "run", *flags])
        # The state holds the folder's name, and so does its checksum.
        return code, re.sub(r"[0-9a-f]{12}\.\.\.", "SHA256", said.getvalue().replace(str(folder), PLACE))


RECIPES = {
    "mosi": Config(model=TINY),
    "iemocap": Config(model=TINY, options=IemocapOptions()).replace({"dataset": "iemocap"}),
    "food101": Config(model=TINY, options=Food101Options(text_length=6)).replace({"dataset": "food101"}),
    "brats": Config(options=BratsOptions(crop=16)).replace({"dataset": "brats"}),
    "av": configuration(None, Path()),
    "features": Config(model=TINY, options=FeatureOptions()).replace({"dataset": "features"}),
    "table": Config(options=TableOptions()).replace({"dataset": "table"}),
}


def given(path: Path, *flags: str) -> list[str]:
    return ["--local", "--data_path", str(path), *flags]


def mosi(change: Callable[[Any], Any]) -> Callable[[Path], list[str]]:
    return lambda folder: given(write_pickle(folder / "mosi.pkl", change(small_set())))


def raw_file(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return given(folder / name)

    return make


def at(place: str, spoil: Callable[[Path], None]) -> Spoil:
    """Damage to one file or folder of the data."""
    return lambda data: spoil(data / place)


def spoilt(make: Callable[[Path], object], spoil: Spoil, *flags: str) -> Callable[[Path], list[str]]:
    """Whole data in the folder `data`, then the damage."""

    def prepare(folder: Path) -> list[str]:
        make(folder / "data")
        spoil(folder / "data")
        return given(folder / "data", *flags)

    return prepare


@functools.cache
def _food() -> Path:
    return write_set(Path(tempfile.mkdtemp(prefix="cggm-food-")) / "set")


def table_of(content: bytes) -> Spoil:
    """A CSV in place of train.json."""
    return lambda folder: ((folder / "train.json").unlink(), (folder / "train.csv").write_bytes(content))


def food(folder: Path) -> object:
    return shutil.copytree(_food(), folder)


def first_case(change: Callable[[h5py.File], object]) -> Spoil:
    return lambda folder: test_brats_bad_input.rewrite(folder / "train" / "case0.h5", change)  # type: ignore[arg-type]


def features(row: tuple[Any, ...]) -> Callable[[Path], list[str]]:
    content, modalities, options = row

    def prepare(folder: Path) -> list[str]:
        flags = [
            f
            for key, value in options.items()
            for f in (f"--{key}", ",".join([value] if isinstance(value, str) else value))
        ]
        more = [] if modalities is None else ["--modalities", modalities]
        return given(as_npz(folder, content), *flags, *more)

    return prepare


def product_table(change: dict[str, object], *flags: str) -> Callable[[Path], list[str]]:
    """A CSV of twelve products, with other cells in the third row."""

    def prepare(folder: Path) -> list[str]:
        write_products(folder / "t.csv", change)
        return given(folder / "t.csv", *flags)

    return prepare


def yaml_file(flag: str, text: str) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        (folder / "file.yaml").write_text(text)
        write_pickle(folder / "mosi.pkl", small_set())
        return ["--data_path", str(folder / "mosi.pkl"), f"--{flag}", str(folder / "file.yaml")]

    return prepare


def interrupted(damage: Callable[[Path], object], *flags: str) -> Callable[[Path], list[str]]:
    """A run of two epochs, damaged, and the flags that continue it."""

    def prepare(folder: Path) -> list[str]:
        again = [*given(write_pickle(folder / "mosi.pkl", small_set())), *SMALL, "--storage_path", str(folder / "runs")]
        assert main(RECIPES["mosi"], [*again, "--name", "run", "--num_epochs", "2"]) == 0
        damage(folder / "runs" / "run")
        return [*again, *flags]

    return prepare


def parquet(table: dict[str, Any], folder: Path) -> list[str]:
    pq.write_table(pa.table(table), folder / "f.parquet")
    return given(folder / "f.parquet")


def evil(folder: Path) -> list[str]:
    class Call:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "executed"),)

    return given(write_pickle(folder / "mosi.pkl", {"train": Call()}))


OWN: dict[str, dict[str, Callable[[Path], list[str]]]] = {
    "mosi": {
        "no such file": lambda folder: given(folder / "none.pkl"),
        "folder without a pickle": lambda folder: given(folder),
        "a pickle that is cut short": raw_file("mosi.pkl", pickle.dumps(small_set())[:-1000]),
        "a pickle that calls a function": evil,
        "a pickle that passes numbers off as addresses": raw_file("mosi.pkl", POINTERS),
        "a pickle that asks for gigabytes": raw_file("mosi.pkl", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."),
        "a feature that float32 cannot hold": mosi(
            test_bad_input.put("train", "text", lambda a: a.astype(np.float64) * 1e200)
        ),
    },
    "iemocap": {
        "a fold that is not there": spoilt(small_layout, lambda folder: None, "--cv", "3"),
        "a name that leads to another place": spoilt(
            small_layout,
            lambda folder: np.save(folder / "target/1/trn_int2name.npy", np.array([["/1/mean"]] * 6)),
        ),
        "a header that says more than the file has": spoilt(
            small_layout,
            lambda folder: (folder / "target/1/trn_label.npy").write_bytes(
                b"\x93NUMPY\x01\x00"
                + struct.pack("<H", 66)
                + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,4)}"
            ),
        ),
    },
    "food101": {
        "an image above the folder": spoilt(food, record("img_path", "../../secret.jpg")),
        "an image at an absolute path": spoilt(food, record("img_path", "/etc/passwd")),
        "a label that is no text": spoilt(food, record("label", None)),
        "two lists of validation": spoilt(
            food, lambda folder: [shutil.copy(folder / "test.json", folder / name) for name in ("val.json", "dev.json")]
        ),
        "a CSV in Windows-1252": spoilt(food, table_of("images/1.jpg,crème,pie\n".encode("cp1252"))),
        "a CSV with a comma outside of quotes": spoilt(
            food, table_of(b"images/1.jpg,pie,pie\nimages/2.jpg,hot, hot soup,soup\n")
        ),
        "a CSV with other columns": spoilt(food, table_of(b"bild,titel,klasse\nimages/1.jpg,pie,pie\n")),
        "a RoBERTa": spoilt(
            food, lambda folder: edit(folder / "bert/config.json", lambda c: c.update(model_type="roberta"))
        ),
        "half a character": spoilt(food, record("label", "\ud800")),
        "a number that JSON lacks": spoilt(food, text("train.json", '[{"id": NaN}]')),
        "a key that is there twice": spoilt(food, text("train.json", '[{"id": 1, "id": 2}]')),
        "JSON that is nested too deeply": spoilt(food, text("train.json", "[" * 100_000)),
        "an image of 200 million pixels": spoilt(food, picture("PNG", (20_000, 10_000))),
        "an image format that starts a program": spoilt(food, picture("EPS", (8, 8))),
        "a ViT of an absurd size": spoilt(
            food, lambda folder: edit(folder / "vit/config.json", lambda c: c.update(hidden_size=10**12))
        ),
        "standardised features that are made while training": spoilt(
            food, lambda folder: None, "--image_features", "online", "--standardise", "on"
        ),
    },
    "brats": {
        "a file that is cut short": spoilt(write_released, lambda folder: cut(folder / "valid" / "case3.h5")),
        "a split without cases": spoilt(write_released, lambda folder: (folder / "valid/case3.h5").unlink()),
        "values that lie in another file": spoilt(write_released, linked),
        "a terabyte in a small file": spoilt(write_released, absurd),
        "an intensity that float16 cannot hold": spoilt(
            write_released, first_case(test_brats_bad_input.fill((0, 1, 2, 3), 70_000))
        ),
        "NIfTI: a sequence that is missing": spoilt(
            write_challenge, lambda folder: (folder / "BraTS2021_00001/BraTS2021_00001_t2.nii.gz").unlink()
        ),
        "NIfTI: another shape": spoilt(write_challenge, nifti("t1", np.ones((12, 20, 5), np.float32))),
        "NIfTI: a segmentation that is a voxel off": spoilt(write_challenge, moved_nifti),
        "NIfTI: labels of two conventions": spoilt(write_challenge, nifti("seg", np.full((12, 20, 6), 3, np.uint8))),
        "NIfTI: a label outside the classes": spoilt(write_challenge, nifti("seg", np.full((12, 20, 6), 9, np.uint8))),
        "NIfTI: the same value everywhere": spoilt(write_challenge, nifti("t2", np.full((12, 20, 6), 5, np.float32))),
        "NIfTI: a header that says 256 TiB": spoilt(write_challenge, huge_nifti),
    },
    "features": {
        "an unknown suffix": raw_file("features.csv", b"a,b\n"),
        "an archive that is cut short": raw_file("f.npz", b"PK\x03\x04"),
        "a header that says more than the archive has": raw_file("f.npz", npz_header((10**12,))),
        "an archive that unfolds to a thousand times its size": raw_file("f.npz", npz_bomb()),
        "objects": lambda folder: (
            np.savez(folder / "f.npz", allow_pickle=True, x=np.array([{}], object)),
            given(folder / "f.npz"),
        )[1],
        "a list that holds itself": lambda folder: (
            (folder / "f.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00x]q\x00h\x00as."),
            given(folder / "f.pkl"),
        )[1],
        "parquet that is none": raw_file("f.parquet", b"PAR1"),
        "parquet: lists of several lengths": lambda folder: parquet(
            {"age": [[1.0], [1.0, 2.0]], "label": [0, 1]}, folder
        ),
        "parquet: a target that is missing": lambda folder: parquet(
            {"age": [[1.0], [2.0]], "label": [0, None]}, folder
        ),
        "parquet: a modality of other things": lambda folder: [
            *parquet({"age": [{"years": 1}, {"years": 2}], "label": [0, 1]}, folder),
            *("--modalities", "age", "--modulation", "none"),
        ],
        "parquet: a broken copy": lambda folder: (cut(as_parquet(folder, arrays())), given(folder / "f.parquet"))[1],
    },
    "table": {
        "a target that is missing": product_table({}, "--target", "category"),
        "a number that is none": product_table({"price": "12-50"}),
        "a column that is none": product_table({}, "--column", "prize=numeric"),
        "a kind that does not exist": product_table({}, "--column", "price=nummeric"),
        "an image that is not there": product_table({"photo": "photos/9.jpg"}),
        "an image outside of the folder": product_table({"photo": "../secret.jpg"}),
        "an image that is none": product_table({"photo": "t.csv"}, "--column", "photo=image"),
        "a split that is none": product_table({"part": "rest"}, "--split_column", "part"),
        "a class for every row": product_table({}, "--target", "title"),
        "a delimiter outside of quotes": raw_file("t.csv", b"title,label\na shirt,shirt\na shoe, red,shoe\n"),
        "a column that is there twice": raw_file("t.csv", b"a,a,label\n1,2,x\n"),
        "a line that is no JSON": raw_file("t.jsonl", b'{"a": 1, "label": "x"}\n{"a": 2'),
        "lists of several lengths": raw_file(
            "t.jsonl",
            b'{"a": [1, 2], "label": "x"}\n{"a": [1, 3], "label": "y"}\n' * 10 + b'{"a": [1], "label": "y"}\n',
        ),
        "a workbook": raw_file("t.xlsx", b"PK\x03\x04"),
    },
    "configuration": {
        "an unknown key": yaml_file("config", "bath_size: 3"),
        "no yaml": yaml_file("config", "a: ["),
        "a list": yaml_file("config", "- 1"),
        "a section without fields": yaml_file("config", "train: 3"),
        "a value of another type": yaml_file("config", "batch_size: many"),
        "a value outside its range": yaml_file("config", "model: {embed_dropout: 1.0}"),
        "a number of fifty digits": yaml_file("config", "seed: " + "9" * 50),
        "a key that is there twice": yaml_file("config", "lr: 0.1\nbatch_size: 3\nlr: 0.2"),
        "a call": yaml_file("config", "name: !!python/object/apply:os.system ['true']"),
        "a billion values in nine lines": yaml_file("config", LAUGHS),
        "a value that holds itself": yaml_file("config", "modalities: &a [*a]"),
        "nested too deeply": yaml_file("config", "name: " + "[" * 1000),
        "a day that is none": yaml_file("config", "name: 2001-99-99"),
        "a file of another kind": yaml_file("config", "# " + "x" * 2**18),
        "a web address in place of a folder": yaml_file("config", "shard_path: https://host/shards"),
        "results at a web address": yaml_file("config", "storage_path: https://host/runs"),
        "a password in a URL": yaml_file("config", "storage_path: s3://me:secret@bucket/runs"),
        "an encoder that does not exist": yaml_file("config", "network: composed\nencoders: [text:transfomer]"),
        "an encoder of another kind of input": yaml_file("config", "network: composed\nencoders: [text:resnet]"),
        "an encoder of no modality": yaml_file("config", "network: composed\nencoders: [texd:mlp]"),
        "a fusion that does not exist": yaml_file("config", "network: composed\nfusion: concats"),
        "heads that do not divide a width": yaml_file("config", "network: composed\nheads: 3"),
        "a name with a line break": yaml_file("config", 'name: "a\\nb"'),
        "a preset that searches, without Ray": lambda folder: ["--preset", "good", "--local"],
        "a preset that searches, and a search": lambda folder: ["--preset", "best", "--tune", str(folder / "any.yaml")],
        "no such file": lambda folder: ["--config", str(folder / "none.yaml")],
    },
}
TAKEN = {
    "mosi": {name: mosi(change) for name, (change, _) in test_bad_input.CONTENTS.items()},
    "iemocap": {name: spoilt(small_layout, spoil) for name, spoil in test_iemocap.BROKEN.items()},
    "food101": {name: spoilt(food, spoil) for name, spoil in test_food101.BAD.items()},
    "brats": {name: spoilt(write_released, first_case(change)) for name, change in test_brats_bad_input.BAD_H5.items()},
    "av": {name: spoilt(crema, at(place, spoil)) for name, (place, spoil, _) in test_av.BROKEN.items()},
    "features": {name: features(row) for name, row in test_features_input.BAD.items()},
    "search": {name: yaml_file("tune", yaml.safe_dump(content)) for name, (content, _) in test_search.BAD.items()},
}
OTHER_MODEL = "--proj_dim", "16"
CHECKPOINTS = {
    "weights of all checkpoints that are cut short": (
        interrupted(lambda run: [cut(saved / "model.safetensors") for saved in checkpoints(run)], "--num_epochs", "3"),
        1,
    ),
    "state of all checkpoints that is no JSON": (
        interrupted(
            lambda run: [(saved / "training.json").write_text("{") for saved in checkpoints(run)], "--num_epochs", "3"
        ),
        1,
    ),
    "another configuration": (interrupted(lambda run: None, *OTHER_MODEL), 2),
}


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run."""
    return sorted((run / "checkpoints").iterdir())


CASES = [
    Case(section=section, title=title, prepare=prepare, recipe=RECIPES.get(section, RECIPES["mosi"]))
    for table in (OWN, TAKEN)
    for section, rows in table.items()
    for title, prepare in rows.items()
] + [
    Case(section="checkpoints", title=title, prepare=prepare, recipe=RECIPES["mosi"], code=code)
    for title, (prepare, code) in CHECKPOINTS.items()
]
SECTIONS = list(dict.fromkeys(case.section for case in CASES))
