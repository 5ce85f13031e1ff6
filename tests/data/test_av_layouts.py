"""Sets of sound and pictures in the layouts of the field: which clips are found, with class, split, source and media."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from av_layouts import ave, folders, kinetics, ogm, ucf, vggsound

from cggm_ray.data.datasets.av.layouts import read_clips
from cggm_ray.data.datasets.av.media import FLOW, PICTURES, SOUND, VIDEO, Media

Found = list[tuple[str, str | None, str | None, str | None, dict[str, str | None]]]
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, Found]] = {
    "OGM-GE": (
        ogm,
        "lists",
        [
            ("1002_IEO_HAP_HI", "HAP", "test", "1002", {"audio": SOUND, "vision": PICTURES}),
            ("1001_DFA_ANG_XX", "ANG", "train", "1001", {"audio": SOUND, "vision": PICTURES}),
        ],
    ),
    "Kinetics": (
        kinetics,
        "lists",
        [
            (
                f"abcdefghij{number}_000005_000015",
                "tap dancing",
                split,
                f"abcdefghij{number}",
                dict.fromkeys(("audio", "vision"), VIDEO),
            )
            for number, split in ((0, "train"), (2, "valid"), (3, "test"))
        ],
    ),
    "VGGSound": (
        vggsound,
        "lists",
        [
            ("---g-f_I2yQ_000001", "people marching", "test", "---g-f_I2yQ", {"audio": VIDEO, "vision": VIDEO}),
            ("--0PQM4-hqg_000030", "dog", "train", "--0PQM4-hqg", {"audio": SOUND, "vision": PICTURES}),
        ],
    ),
    "AVE": (
        ave,
        "ave",
        [
            ("RUhOCu3LNXM", "Church bell", "train", "RUhOCu3LNXM", {"audio": VIDEO, "vision": VIDEO}),
            ("abc", "Bark", "test", "abc", {"audio": VIDEO, "vision": VIDEO}),
        ],
    ),
    "UCF-101": (
        ucf,
        "ucf101",
        [
            ("v_Archery_g08_c01", "Archery", "train", "v_Archery_g08", {"rgb": VIDEO, "flow": FLOW}),
            ("v_Bowling_g01_c02", "Bowling", "test", "v_Bowling_g01", {"rgb": PICTURES, "flow": FLOW}),
        ],
    ),
    "folders": (
        folders,
        "folders",
        [
            ("test/cat/2", "cat", "test", None, {"audio": SOUND, "vision": PICTURES}),
            ("train/dog/1", "dog", "train", None, {"audio": VIDEO, "vision": VIDEO}),
            ("valid/dog/1", "dog", "valid", None, {"audio": VIDEO, "vision": VIDEO}),
        ],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_the_field(tmp_path: Path, name: str) -> None:
    write, layout, expected = LAYOUTS[name]
    write(tmp_path)
    found, clips = read_clips(Media(tmp_path), "auto", 1, True)
    plain = [
        (c.name, c.label, c.split, c.source, {m: medium and medium.form for m, medium in c.media.items()})
        for c in clips
    ]
    assert (found, plain) == (layout, expected)


def test_lists_with_line_ends_of_any_system_and_long_cells(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"a,dog\r" + b"b" * 200_000 + b",cat\r\nc,dog\n")
    _, clips = read_clips(Media(tmp_path), "auto", 1, True)
    assert [(len(clip.name), clip.label) for clip in clips] == [(1, "dog"), (200_000, "cat"), (1, "dog")]
