"""Lists of Food-101 in every format that people have, against records that csv and json give."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from food101_files import configuration, edit, write_set

from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.food101.food101_records import Listed, read_lists
from cggm_ray.data.datasets.food101.lists import find_lists
from cggm_ray.data.shards.shards import open_set, write_shards_here
from cggm_ray.engine.assembly import prepare_data

CASES = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "cases"
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("source") / "set", dev=3)


@pytest.fixture
def raw(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "set"))


def read(root: Path) -> dict[str, Listed]:
    return read_lists(find_lists(root), root)


def plain(found: dict[str, Listed], *, ids: bool = True) -> dict[str, list[tuple[str, ...]]]:
    """What was read, for comparison; images as paths from the root."""
    return {
        split: [(*((r.id,) if ids else ()), r.text, r.image, str(r.label)) for r in listed.records]
        for split, listed in found.items()
    }


def wanted(source: Path, *, ids: bool = True) -> dict[str, list[tuple[str, ...]]]:
    """The records of the source by json alone."""
    return {
        split: [
            (*((e["id"],) if ids else ()), " ".join(e["text_tokens"]), e["img_path"], e["label"])
            for e in json.loads((source / f"{file}.json").read_text())
        ]
        for split, file in {"train": "train", "valid": "dev", "test": "test"}.items()
    }


def rewrite(root: Path, suffix: str, write: Callable[[Rows], bytes], names: dict[str, str] | None = None) -> None:
    """Puts lists of another format in place of the JSON files."""
    for stem in ("train", "dev", "test"):
        rows = json.loads((root / f"{stem}.json").read_text())
        (root / f"{stem}.json").unlink()
        (root / f"{(names or {}).get(stem, stem)}{suffix}").write_bytes(write(rows))


def as_csv(header: tuple[str, ...], *, delimiter: str = ",", encoding: str = "utf-8") -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(header)
        for row in rows:
            named = {**row, "text_tokens": " ".join(row["text_tokens"])}
            writer.writerow(named[key] for key in ("id", "img_path", "text_tokens", "label"))
        return text.getvalue().encode(encoding)

    return write


def as_lines(rows: Rows) -> bytes:
    """As MMBT writes them."""
    named = [
        {"id": r["id"], "label": r["label"], "text": " ".join(r["text_tokens"]), "img": r["img_path"]} for r in rows
    ]
    return "".join(json.dumps(row) + "\n" for row in named).encode()


def as_kaggle(rows: Rows) -> bytes:
    """Image file without its folder, title, label; no header."""
    text = io.StringIO()
    for row in rows:
        csv.writer(text).writerow([Path(row["img_path"]).name, " ".join(row["text_tokens"]), row["label"]])
    return text.getvalue().encode()


FORMATS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "JSON with a byte order mark": (".json", lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode()),
    "JSON in UTF-16": (".json", lambda rows: json.dumps(rows).encode("utf-16")),
    "JSON lines": (".jsonl", as_lines),
    "JSON lines with Windows line ends": (".jsonl", lambda rows: as_lines(rows).replace(b"\n", b"\r\n")),
    "JSON lines that are called JSON": (".json", as_lines),
    "a list that is called JSON lines": (".jsonl", lambda rows: json.dumps(rows, indent=1).encode()),
    "CSV with a header": (".csv", as_csv(("id", "image_path", "title", "label"))),
    "CSV of Excel": (".csv", as_csv(("ID", "Image", "Text", "Label"), delimiter=";", encoding="utf-8-sig")),
    "CSV in UTF-16": (".csv", as_csv(("id", "img", "text", "class"), delimiter="\t", encoding="utf-16")),
    "TSV": (".tsv", as_csv(("id", "filename", "caption", "category"), delimiter="\t")),
    "text in one piece": (
        ".json",
        lambda rows: json.dumps([{**r, "text_tokens": " ".join(r["text_tokens"])} for r in rows]).encode(),
    ),
    "Windows paths": (
        ".json",
        lambda rows: json.dumps([{**r, "img_path": r["img_path"].replace("/", "\\")} for r in rows]).encode(),
    ),
    "Windows paths with a drive": (
        ".json",
        lambda rows: json.dumps(
            [{**r, "img_path": "C:\\Users\\me\\Food\\" + r["img_path"].replace("/", "\\")} for r in rows]
        ).encode(),
    ),
    "absolute paths of another machine": (
        ".json",
        lambda rows: json.dumps([{**r, "img_path": "/home/me/food/" + r["img_path"]} for r in rows]).encode(),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_the_same_records(raw: Path, source: Path, kind: str) -> None:
    suffix, write = FORMATS[kind]
    rewrite(raw, suffix, write)
    assert plain(read(raw)) == wanted(source)


@pytest.mark.parametrize("layout", ["beside", "images/SPLIT/LABEL", "images/LABEL", "SPLIT/LABEL", "images/SPLIT"])
@pytest.mark.parametrize("folder", [".", "texts"])
def test_kaggle_lists_find_images_in_every_layout(raw: Path, source: Path, layout: str, folder: str) -> None:
    expected = {}
    for split, file, named in (("train", "train", "train"), ("valid", "dev", "val"), ("test", "test", "test")):
        expected[split] = []
        for entry in json.loads((raw / f"{file}.json").read_text()):
            name = Path(entry["img_path"]).name
            to = raw / (
                "images" if layout == "beside" else layout.replace("SPLIT", named).replace("LABEL", entry["label"])
            )
            to.mkdir(parents=True, exist_ok=True)
            (raw / "images" / name).rename(to / name)
            image = str((to / name).relative_to(raw))
            expected[split].append((" ".join(entry["text_tokens"]), image, entry["label"]))
    rewrite(raw, ".csv", as_kaggle, {"train": "train_titles", "dev": "val_titles", "test": "test_titles"})
    (raw / folder).mkdir(exist_ok=True)
    for path in raw.glob("*.csv"):
        path.rename(raw / folder / path.name)
    found = read(raw)
    assert plain(found, ids=False) == expected
    assert all(r.file is not None and r.file.is_file() for listed in found.values() for r in listed.records)
    assert [r.id for r in found["test"].records] == [r.image for r in found["test"].records]


@pytest.mark.parametrize("name", ["val", "dev", "valid", "validation", "VAL"])
def test_every_name_of_validation_is_read(raw: Path, source: Path, name: str) -> None:
    (raw / "dev.json").rename(raw / f"{name}.json")
    assert plain(read(raw)) == wanted(source)


@pytest.mark.parametrize("other", ["val.json", "validation.csv", "dev.jsonl"])
def test_two_lists_of_one_split_are_refused_by_name(raw: Path, other: str) -> None:
    (raw / other).write_bytes((raw / "dev.json").read_bytes())
    with pytest.raises(DataError, match="all mean the split valid") as caught:
        find_lists(raw)
    assert "dev.json" in str(caught.value)
    assert other in str(caught.value)


def test_lists_that_hold_more_than_the_name_of_a_split_are_left_out_with_a_word(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "train_old.json").write_text("[]")
    prepare_data(configuration(raw, tmp_path / "out"), write_shards_here)
    said = capsys.readouterr().out
    assert f"food101: not read: {raw / 'train_old.json'}" in said


def test_what_was_read_is_said_before_training_also_the_second_time(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "dev.json").unlink()
    edit(raw / "test.json", lambda content: content[1].update(text_tokens=[], img_path=content[0]["img_path"]))
    edit(raw / "test.json", lambda content: content[2].update(img_path="images/3.jpg"))
    for _ in range(2):
        prepare_data(configuration(raw, tmp_path / "out", valid_share=0.34), write_shards_here)
        said = capsys.readouterr().out
        assert f"food101: train: 18 records of {raw / 'train.json'} (id, text_tokens, img_path, label)\n" in said
        assert "(id, text_tokens, img_path, label); 1 without text: test1\n" in said
        assert (
            "food101: valid: no list; 6 records drawn from train, 12 stay there (valid_share 0.34, data_seed 0)\n"
            in said
        )
        assert "test have 1 images in common\n" in said


def test_one_folder_too_many(raw: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    raw.rename(tmp_path / "outer" / "inner")
    found = read(tmp_path / "outer")
    assert plain(found, ids=False) == {
        split: [(text, f"inner/{image}", label) for text, image, label in rows]
        for split, rows in wanted(source, ids=False).items()
    }
    assert open_set(prepare_data(configuration(tmp_path / "outer", tmp_path / "out"), write_shards_here)) is not None
    shutil.copytree(tmp_path / "outer" / "inner", tmp_path / "outer" / "copy")
    with pytest.raises(DataError, match="found lists of samples in the folders copy, inner"):
        find_lists(tmp_path / "outer")


def test_a_step_up_from_the_folder_of_the_lists_is_below_the_data_folder(raw: Path, source: Path) -> None:
    (raw / "annotations").mkdir()
    for stem in ("train", "dev", "test"):
        edit(raw / f"{stem}.json", lambda content: [r.update(img_path=f"../{r['img_path']}") for r in content] and None)
        (raw / f"{stem}.json").rename(raw / "annotations" / f"{stem}.json")
    assert plain(read(raw)) == wanted(source)


def test_texts_in_csv_keep_quotes_line_breaks_and_delimiters(tmp_path: Path) -> None:
    texts = ['Best "hot" pie', "pie, hot; with\ttabs", "two\nlines", "汤 好吃 🍜", "a\u2028b"]
    for split in ("train", "test"):
        with (tmp_path / f"{split}_titles.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([f"{number}.jpg", text, "pie"] for number, text in enumerate(texts))
    assert [record.text for record in read(tmp_path)["train"].records] == texts


def test_lines_with_line_ends_of_unicode_are_one_line_each(raw: Path) -> None:
    rows = json.loads((raw / "train.json").read_text())
    rows[0]["text_tokens"] = "a\u2028b\x85c"
    (raw / "train.json").unlink()
    (raw / "train.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert len(read(raw)["train"].records) == 18
    assert read(raw)["train"].records[0].text == "a\u2028b\x85c"


def test_images_that_are_listed_twice_without_ids_get_ids_of_their_own(raw: Path) -> None:
    edit(raw / "test.json", lambda content: [r.pop("id") for r in content] and None)
    edit(raw / "test.json", lambda content: [*content, content[0], content[0]])
    ids = [record.id for record in read(raw)["test"].records]
    assert ids[-2:] == [f"{ids[0]} (2)", f"{ids[0]} (3)"]
    assert len(set(ids)) == 8


def test_whole_numbers_are_labels(raw: Path) -> None:
    for stem in ("train", "dev", "test"):
        edit(raw / f"{stem}.json", lambda content: [r.update(label=len(r["label"])) for r in content] and None)
    assert {record.label for record in read(raw)["train"].records} == {"3", "4", "5"}


def test_a_bert_of_2019_gives_the_same_features(raw: Path, tmp_path: Path) -> None:
    """config.json without model_type, with or without architectures."""
    sets = []
    for number, lacking in enumerate(((), ("model_type",), ("model_type", "architectures"))):
        edit(
            raw / "bert" / "config.json",
            lambda config, names=lacking: {k: v for k, v in config.items() if k not in names},
        )
        manifest = open_set(prepare_data(configuration(raw, tmp_path / str(number)), write_shards_here))
        assert manifest is not None
        sets.append([shard.sha256 for shards in manifest.splits.values() for shard in shards])
    assert sets[0] == sets[1] == sets[2]


@pytest.mark.parametrize("kind", ["model_type", "architectures"])
def test_roberta_is_refused_with_and_without_model_type(raw: Path, tmp_path: Path, kind: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(model_type="roberta", architectures=["RobertaForMaskedLM"])
        if kind == "architectures":
            content.pop("model_type")

    edit(raw / "bert" / "config.json", change)
    with pytest.raises(DataError, match=f"bert: .*config.json, field {kind}: found .*[rR]oberta"):
        prepare_data(configuration(raw, tmp_path / "out"), write_shards_here)


def bad_csv(content: bytes) -> Callable[[Path], object]:
    def write(raw: Path) -> None:
        (raw / "train.json").unlink()
        (raw / "train.csv").write_bytes(content)

    return write


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "CSV in Windows-1252": (
        bad_csv("image,title,label\n1.jpg,crème,pie\n".encode("cp1252")),
        r"train\.csv, line 2: found byte 0xe8, which is not utf-8; expected a file in UTF-8, or in UTF-16 with",
    ),
    "CSV in UTF-16 without a mark": (
        bad_csv("image,title,label\n1.jpg,hot,pie\n".encode("utf-16-le")),
        r"train\.csv, line 1: found a zero character; expected a file in UTF-8",
    ),
    "CSV with a comma without quotes": (
        bad_csv(b"images/1.jpg,hot pie,pie\nimages/2.jpg,hot, hot soup,soup\n"),
        r"train\.csv, line 2: found 4 columns; expected 3 as in line 1",
    ),
    "CSV with an open quote": (
        bad_csv(b'images/1.jpg,"hot pie,pie\nimages/2.jpg,soup,soup\n'),
        r"train\.csv, line 1: unexpected end of data; expected quotes that are closed",
    ),
    "CSV with other columns": (
        bad_csv(b"bild,titel,klasse\n1.jpg,hot,pie\n"),
        r"train\.csv, line 1: found bild, titel, klasse; expected a header with names of image, text and label",
    ),
    "CSV without label": (
        bad_csv(b"image,title\nimages/1.jpg,hot\n"),
        r"train\.csv, line 2: field label is missing; found image, title; expected one of label, class",
    ),
    "CSV that has a column twice": (
        bad_csv(b"image,title,title\nimages/1.jpg,hot,hot\n"),
        r"train\.csv, line 1: found the column 'title' twice",
    ),
    "empty CSV": (bad_csv(b""), r"train\.csv: the list is empty; expected at least one record"),
    "an empty label in CSV": (
        bad_csv(b"images/1.jpg,hot,\n"),
        r"train\.csv, line 1, field label: found ''; expected a text",
    ),
    "an id twice in CSV": (
        bad_csv(b"id,image,title,label\n1,images/1.jpg,hot,pie\n1,images/2.jpg,hot,pie\n"),
        r"train\.csv, line 3, field id: found '1' twice; expected every id once",
    ),
    "a broken line of JSON lines": (
        lambda raw: ((raw / "train.json").unlink(), (raw / "train.jsonl").write_text('{"id": 1}\n{"id": \n')),
        r"train\.jsonl, line 1: field text_tokens is missing; found id; expected one of text_tokens, tokens, text",
    ),
    "token ids": (
        lambda raw: edit(raw / "train.json", lambda content: content[2].update(text_tokens=[101, 2003])),
        r"train\.json, record 2, field text_tokens: found \[101, 2003\]; expected a text or a list of texts",
    ),
    "no train": (
        lambda raw: (raw / "train.json").unlink(),
        r": no list of train; found dev\.json, test\.json; expected lists of train and test",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_named(raw: Path, kind: str) -> None:
    spoil, message = BAD[kind]
    spoil(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("food_json_bom", {"train": 18, "test": 6}),
        ("food_kaggle_csv", {"train": 18, "test": 6}),
        ("food_mmbt_jsonl", {"train": 18, "valid": 18, "test": 6}),
        ("food_text_string", {"train": 18, "test": 6}),
        ("food_val_json", {"train": 18, "valid": 6, "test": 6}),
        ("food_bert_without_model_type", {"train": 18, "test": 6}),
        ("food_image_modes", {"train": 18, "test": 6}),
    ],
)
def test_cases_of_people(case: str, counts: dict[str, int]) -> None:
    """The samples are the same in all of them, so those of one are what json reads in another."""
    if not (CASES / case).exists():
        pytest.skip(f"no {case} in {CASES} (set CGGM_DATA)")
    found = read(CASES / case / "data")
    assert {split: len(listed.records) for split, listed in found.items()} == counts
    entries = json.loads((CASES / "food_val_json" / "data" / "train.json").read_text())
    got = [(r.text, r.image, r.label) for r in found["train"].records]
    assert got == [(" ".join(e["text_tokens"]), e["img_path"], e["label"]) for e in entries]
    assert all(record.file is not None for listed in found.values() for record in listed.records)
