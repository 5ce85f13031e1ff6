"""The layouts of sets of sound and pictures: which clips there are, their classes, splits and sources.

lists     CSV files: id and label (the lists of OGM-GE for CREMA-D and Kinetics-Sounds), Kinetics' own with a header, or
          VGGSound's with YouTube id, start, label and split; the media lie anywhere below the folder, under the ids
ave       Annotations.txt, trainSet.txt, valSet.txt and testSet.txt, with the cells between '&'
ucf101    classInd.txt, trainlist01.txt and testlist01.txt, with videos or frames, and optical flow
folders   [split/]class/clip, without any list
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cggm_ray.core.errors import DataError, listed, short_repr
from cggm_ray.data.datasets.av.media import FLOW, PICTURES, SOUND, VIDEO, Media, Medium, stem
from cggm_ray.data.formats.untrusted import read_text, reading
from cggm_ray.data.split_names import SPLITS, split_of

AUDIO, VISION, RGB, OPTICAL = "audio", "vision", "rgb", "flow"
"""Modalities: sound and pictures; of UCF-101 pictures and optical flow."""
FORMS = {AUDIO: (SOUND, VIDEO), VISION: (PICTURES, VIDEO), RGB: (PICTURES, VIDEO), OPTICAL: (FLOW,)}
"""Forms in which a modality may lie there, the first one first."""
COLUMNS = {
    "id": ("id", "youtube_id", "video_id", "videoid", "file", "filename", "file_name", "name", "video", "path", "clip"),
    "label": ("label", "class", "category", "emotion"),
    "start": ("start", "start_seconds", "time_start", "starttime", "start_time"),
    "end": ("end", "end_seconds", "time_end", "endtime", "end_time"),
    "split": ("split", "set", "subset"),
}
"""Names of the columns of a CSV, in lower case."""
WITHOUT_HEADER = {2: ("id", "label"), 3: ("id", "label", "split"), 4: ("id", "start", "label", "split")}
"""Columns of a CSV without a header by their number."""
SOURCES = (
    (re.compile(r"^(\d{4})_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}$"), "speaker"),
    (re.compile(r"^(v_.+_g\d+)_c\d+$"), "source video"),
    (re.compile(r"^(.{11})_\d{1,6}(?:_\d{1,6})?$"), "source video"),
)
"""Names of clips that say what they were taken from: CREMA-D, UCF-101, and parts of a video of YouTube."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip of a list.

    Attributes:
        name: unique in the set.
        label: its class; None where there is none.
        split: train, valid or test; None where nothing says it.
        source: the speaker or video that it was taken from; None where its name does not tell.
        media: of every modality; None where there is none.
    """

    name: str
    label: str | None
    split: str | None
    source: str | None
    media: Mapping[str, Medium | None]


def read_clips(media: Media, layout: str, number: int, labelled: bool) -> tuple[str, list[Clip]]:
    """Returns the name of the layout, and all clips.

    Args:
        media: what is there.
        layout: its name, or auto.
        number: of the division, for UCF-101.
        labelled: every clip needs a class; else a folder of media is enough.

    Raises:
        DataError: a list is damaged, names a clip twice, or there is nothing that looks like a layout.
    """
    for name, (looks, read) in _READERS.items():
        if layout == name or (layout == "auto" and looks(media)):
            clips = list(read(media, number))
            if not clips:
                break
            _check_names(clips, media.root)
            return name, clips
    if not labelled and media.all:
        return "folders", _unlabelled(media)
    raise DataError(
        f"{media.root}: no clips of layout {layout}; found lists {listed(media.lists) or 'none'} and {len(media.all)} media; "
        "expected train.csv and test.csv, vggsound.csv, Annotations.txt, trainlist01.txt, or <split>/<class>/<clip>"
    )


def modalities_of(layout: str) -> tuple[str, ...]:
    """Returns the modalities of a layout."""
    return (RGB, OPTICAL) if layout == "ucf101" else (AUDIO, VISION)


def source_of(name: str) -> str | None:
    """Returns the speaker or the source video that the name of a clip tells, or None."""
    return next((match[1] for pattern, _ in SOURCES if (match := pattern.match(name))), None)


def kind_of_source(name: str) -> str:
    """Returns what the source of a clip is called."""
    return next((what for pattern, what in SOURCES if pattern.match(name)), "source video")


def _check_names(clips: Sequence[Clip], root: Path) -> None:
    seen: dict[str, Clip] = {}
    for clip in clips:
        first = seen.setdefault(clip.name, clip)
        if first is not clip:
            raise DataError(
                f"{root}: clip {clip.name} is listed twice, in {first.split or 'a list'} and in {clip.split or 'a list'}; "
                "expected every clip once"
            )


def _clip(
    media: Media,
    modalities: Sequence[str],
    keys: Sequence[str],
    label: str | None,
    split: str | None,
    where: str,
    source: str | None = None,
) -> Clip:
    found: dict[str, Medium | None] = {}
    for modality in modalities:
        found[modality] = next(
            (medium for form in FORMS[modality] if (medium := media.of(keys, form, where)) is not None), None
        )
    return Clip(name=keys[0], label=label, split=split, source=source or source_of(keys[0]), media=found)


# --- CSV


def _split_in(path: Path) -> str | None:
    """Returns the split that the name of a list says, as a whole or in one of its parts."""
    parts = [split_of(part) for part in re.split(r"[_\-. ]", path.stem)]
    return split_of(path.stem) or next((part for part in parts if part is not None), None)


def _tables(media: Media) -> dict[str | None, Path]:
    """Returns the CSV files that list clips, by split; None for one that has a column of splits."""
    found: dict[str | None, Path] = {}
    for name, (path, *_) in media.lists.items():
        split = _split_in(path)
        if not name.endswith(".csv") or (split is None and not _says_splits(path)):
            continue
        if split in found:
            raise DataError(f"{path}: a list of {split or 'all splits'} beside {found[split]}; expected one of them")
        found[split] = path
    if None in found and len(found) > 1:
        del found[None]
    return found


def _says_splits(path: Path) -> bool:
    """Returns whether a CSV has a column of splits, by its header or by the last cell of its first row."""
    first = _rows(path)[0]
    names = [cell.strip().lower() for cell in first]
    if any(name in COLUMNS["label"] for name in names):
        return any(name in COLUMNS["split"] for name in names)
    return len(first) in WITHOUT_HEADER and split_of(first[-1]) is not None


def _rows(path: Path) -> list[list[str]]:
    """Returns the rows of a CSV that are not empty; at least one."""
    text = read_text(path, "CSV file")
    csv.field_size_limit(2**31 - 1)
    with reading(path, "CSV file"):
        # Lines may end as on any system; the reader of rows takes them apart.
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: no row; expected one for every clip")
    return rows


def _read_lists(media: Media, number: int) -> Iterator[Clip]:
    for split, path in sorted(_tables(media).items(), key=lambda item: str(item[0])):
        rows = _rows(path)
        columns = _columns(rows[0], path)
        start = 0 if columns else 1
        header = columns or _header(rows[0], path)
        for place, row in enumerate(rows[start:], start=start + 1):
            where = f"{path}, row {place}"
            if len(row) != len(rows[0]):
                raise DataError(f"{where}: found {len(row)} cells; expected {len(rows[0])}, as in row 1")
            cells = {name: row[column].strip() for name, column in header.items()}
            if not cells["id"] or not cells["label"]:
                raise DataError(f"{where}: found {short_repr(','.join(row))}; expected an id and a label")
            own = split_of(cells["split"]) if "split" in cells else split
            if own is None:
                raise DataError(
                    f"{where}, column split: found {short_repr(cells.get('split', ''))}; expected train, valid or test"
                )
            keys = _keys(cells, where)
            source = cells["id"] if "start" in cells else None
            yield _clip(media, (AUDIO, VISION), keys, cells["label"], own, where, source)


def _columns(first: Sequence[str], path: Path) -> dict[str, int] | None:
    """Returns the columns of a CSV without a header, or None if it has one."""
    names = [cell.strip().lower() for cell in first]
    if any(name in COLUMNS["label"] for name in names):
        return None
    if len(first) not in WITHOUT_HEADER:
        raise DataError(
            f"{path}, row 1: found {len(first)} cells and no header; expected id,label, or id,start,label,split, or a "
            "header with id and label"
        )
    return {name: column for column, name in enumerate(WITHOUT_HEADER[len(first)])}


def _header(first: Sequence[str], path: Path) -> dict[str, int]:
    names = [cell.strip().lower() for cell in first]
    found = {
        field: names.index(name)
        for field, others in COLUMNS.items()
        if (name := next((other for other in others if other in names), None)) is not None
    }
    if "id" not in found:
        raise DataError(f"{path}: columns {listed(names)}; expected one of {', '.join(COLUMNS['id'])}")
    return found


def _keys(cells: Mapping[str, str], where: str) -> list[str]:
    """Returns the names under which a clip may lie; the first one names it."""
    name = stem(cells["id"])
    if not cells.get("start"):
        return [name]
    times = []
    for field in ("start", "end"):
        if cells.get(field):
            try:
                times.append(int(float(cells[field])))
            except (ValueError, OverflowError):
                raise DataError(
                    f"{where}, column {field}: found {short_repr(cells[field])}; expected seconds"
                ) from None
    long = "_".join(f"{value:06d}" for value in times)
    return [f"{name}_{long}", f"{name}_{times[0]:06d}", f"{name}_{times[0]}", name]


# --- AVE


_AVE = {"train": "trainset.txt", "valid": "valset.txt", "test": "testset.txt"}


def _read_ave(media: Media, number: int) -> Iterator[Clip]:
    listed_in = {split: media.lists[name][0] for split, name in _AVE.items() if name in media.lists}
    if not listed_in:
        listed_in = {"": media.lists["annotations.txt"][0]}
    for split, path in listed_in.items():
        for place, line in enumerate(read_text(path, "list").splitlines(), start=1):
            cells = [cell.strip() for cell in line.split("&")]
            if not line.strip() or cells[0] == "Category":
                continue
            where = f"{path}, line {place}"
            if len(cells) < 2 or not cells[0] or not cells[1]:
                raise DataError(
                    f"{where}: found {short_repr(line)}; expected Category&VideoID&Quality&StartTime&EndTime"
                )
            yield _clip(media, (AUDIO, VISION), [stem(cells[1])], cells[0], split or None, where, stem(cells[1]))


# --- UCF-101


def _read_ucf(media: Media, number: int) -> Iterator[Clip]:
    for split in ("train", "test"):
        name = f"{split}list{number:02d}.txt"
        if name not in media.lists:
            raise DataError(f"{media.root}: no {name}; found {listed(media.lists)}; expected it (--list_number)")
        path = media.lists[name][0]
        for place, line in enumerate(read_text(path, "list").splitlines(), start=1):
            if not line.strip():
                continue
            parts = PurePosixPath(line.split()[0]).parts
            where = f"{path}, line {place}"
            if len(parts) != 2:
                raise DataError(f"{where}: found {short_repr(line)}; expected Class/v_Class_g01_c01.avi")
            yield _clip(media, (RGB, OPTICAL), [stem(parts[1])], parts[0], split, where)


# --- folders


def _read_folders(media: Media, number: int) -> Iterator[Clip]:
    found: dict[tuple[str | None, str, str], list[Medium]] = {}
    for medium in media.all:
        path = PurePosixPath(medium.paths[0])
        parts = path.parts[len(PurePosixPath(str(media.root)).parts) : -1] if medium.form != FLOW else ()
        if parts:
            split = next((split for part in parts if (split := split_of(part)) is not None), None)
            if split_of(parts[-1]) is None:
                found.setdefault((split, parts[-1], medium.name), []).append(medium)
    for (split, label, name), several in found.items():
        forms = {medium.form: medium for medium in several}
        media_of = {m: next((forms[f] for f in FORMS[m] if f in forms), None) for m in (AUDIO, VISION)}
        unique = f"{split}/{label}/{name}" if split else f"{label}/{name}"
        yield Clip(name=unique, label=label, split=split, source=source_of(name), media=media_of)


def _unlabelled(media: Media) -> list[Clip]:
    """Returns a clip for every name of a medium."""
    names = sorted({medium.name for medium in media.all})
    every = (AUDIO, VISION, RGB, OPTICAL)
    return [_clip(media, every, [name], None, None, f"{media.root}, clip {name}") for name in names]


Reader = Callable[[Media, int], Iterator[Clip]]
_READERS: dict[str, tuple[Callable[[Media], bool], Reader]] = {
    "ucf101": (lambda media: any(name.startswith("trainlist") for name in media.lists), _read_ucf),
    "ave": (lambda media: "annotations.txt" in media.lists or "trainset.txt" in media.lists, _read_ave),
    "lists": (lambda media: bool(_tables(media)), _read_lists),
    "folders": (lambda media: bool(media.all), _read_folders),
}
assert set(SPLITS) == set(_AVE)
