"""Images of more than 8 bits and turned ones, as numpy computes them."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from food101_files import configuration, write_set

from cggm_ray.data.datasets.food101.augment import image_problem, image_remarks, inspect_image, resized

Image = pytest.importorskip("PIL.Image")
CASES = Path(os.environ.get("CGGM_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "cases"
SIZE = 16
LEVELS = np.arange(256).reshape(SIZE, SIZE)
"""Every grey level of 8 bits once."""


def grey(path: Path, **options: object) -> np.ndarray:
    """The image [16, 16] as it is decoded, all three channels being the same."""
    pixels = resized(path, SIZE, **options)  # type: ignore[arg-type]
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def tiff(path: Path, values: np.ndarray, tags: dict[int, int] | None = None) -> Path:
    """An uncompressed TIFF, little-endian, written by hand: grey [H, W] or colour [H, W, 3]."""
    channels = 1 if values.ndim == 2 else 3
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    entries = {
        256: (4, values.shape[1]), 257: (4, values.shape[0]), 258: (3, 8 * values.dtype.itemsize), 259: (3, 1),
        262: (3, 1 if channels == 1 else 2), 273: (4, 8), 277: (3, channels), 278: (4, values.shape[0]),
        279: (4, len(data)), 339: (3, kind), **{tag: (3, value) for tag, value in (tags or {}).items()},
    }  # fmt: skip
    end = 8 + len(data) + 2 + 12 * len(entries) + 4
    directory, more = struct.pack("<H", len(entries)), b""
    for tag, (form, value) in sorted(entries.items()):
        if channels == 3 and tag in (258, 339):
            directory += struct.pack("<HHII", tag, 3, 3, end + len(more))
            more += struct.pack("<3H", value, value, value)
        else:
            directory += struct.pack("<HHI", tag, form, 1) + struct.pack("<I", value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4) + more)
    return path


def png(path: Path, values: np.ndarray) -> Path:
    """A 16-bit PNG, written by hand: grey [H, W] or colour [H, W, 3]."""
    height, width = values.shape[:2]
    colour = 0 if values.ndim == 2 else 2
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


def test_integers_of_16_bits_are_divided_by_257(tmp_path: Path) -> None:
    values = (LEVELS * 257).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "pillow.png")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "32.tif")
    for path in (
        tmp_path / "pillow.png",
        png(tmp_path / "hand.png", values),
        tiff(tmp_path / "hand.tif", values),
        tmp_path / "32.tif",
    ):
        np.testing.assert_array_equal(grey(path), LEVELS)
        assert inspect_image(path, SIZE).white == 65_535


def test_nothing_is_clipped_between_the_levels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65_536, size=(SIZE, SIZE)).astype(np.uint16)
    path = png(tmp_path / "x.png", values)
    np.testing.assert_array_equal(grey(path), np.rint(values / 257))


@pytest.mark.parametrize("top", [1.0, 255.0, 65_535.0])
def test_floats_are_of_the_smallest_range_that_holds_them(tmp_path: Path, top: float) -> None:
    path = tiff(tmp_path / "x.tif", (LEVELS / 255 * top).astype(np.float32))
    assert Image.open(path).mode == "F"
    np.testing.assert_array_equal(grey(path), LEVELS)


def test_floats_that_resampling_left_a_little_outside_are_clipped(tmp_path: Path) -> None:
    values = (LEVELS / 255).astype(np.float32)
    values[0, 0], values[-1, -1] = -0.004, 1.004
    np.testing.assert_array_equal(grey(tiff(tmp_path / "x.tif", values)), LEVELS)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_8_bit_data_in_a_wider_type_stay_as_they_are(tmp_path: Path, kind: type) -> None:
    path = tiff(tmp_path / "x.tif", LEVELS.astype(kind))
    np.testing.assert_array_equal(grey(path), LEVELS)


def test_12_bits_are_those_of_the_caller_or_of_the_file(tmp_path: Path) -> None:
    values = np.rint(LEVELS / 255 * 4095).astype(np.uint16)
    path = png(tmp_path / "x.png", values)
    np.testing.assert_array_equal(grey(path), np.rint(values / 257))
    (remark,) = image_remarks([inspect_image(path, SIZE)], False)
    assert remark.endswith(
        "1 whose values 0 to 65,535 become 0 to 255; largest value 4095; does the camera have fewer bits? (image_bits)"
    )
    np.testing.assert_array_equal(grey(path, bits=12), LEVELS)
    assert image_remarks([inspect_image(path, SIZE, 12)], False)[0].endswith("largest value 4095")
    # MaxSampleValue.
    np.testing.assert_array_equal(grey(tiff(tmp_path / "x.tif", values, {281: 4095})), LEVELS)


def test_signed_integers_of_16_bits_end_at_32767(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", np.rint(LEVELS / 255 * 32_767).astype(np.int16))
    np.testing.assert_array_equal(grey(path), LEVELS)


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", (LEVELS * 257).astype(np.uint16), {262: 0})
    np.testing.assert_array_equal(grey(path), 255 - LEVELS)


def test_colours_of_16_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65_536, size=(SIZE, SIZE, 3)).astype(np.uint16)
    for path in (png(tmp_path / "x.png", values), tiff(tmp_path / "x.tif", values)):
        np.testing.assert_array_equal(resized(path, SIZE), values >> 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4), -5, np.int32), "found values of -5 to -5; expected 0 to 255"),
        (np.full((4, 4), 70_000, np.int32), "found values of 70000 to 70000; expected 0 to 65,535"),
        (np.full((4, 4), 1e9, np.float32), r"found values of 1e\+09 to 1e\+09; expected 0 to 65,535"),
        (np.full((4, 4), np.nan, np.float32), "found values that are not finite; expected finite ones"),
    ],
)
def test_values_without_a_meaning_are_problems(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = tiff(tmp_path / "x.tif", values)
    problem = image_problem(path, SIZE)
    assert problem is not None
    with pytest.raises(ValueError, match=message) as caught:
        resized(path, SIZE)
    assert problem == str(caught.value)


def test_fewer_bits_than_the_values_need_are_a_problem(tmp_path: Path) -> None:
    path = png(tmp_path / "x.png", np.full((4, 4), 5000, np.uint16))
    assert inspect_image(path, SIZE, 12).problem == "found values of 5000 to 5000; expected 0 to 4,095"


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_where_the_caller_says_so(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.new("RGB", (2 * SIZE, SIZE))
    image.paste((255, 0, 0), (0, 0, SIZE, SIZE // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif, quality=100)
    stored = np.asarray(Image.open(path).convert("RGB"))
    # What the numbers mean: EXIF 2.3, 4.6.4 A, as transposes and flips.
    turned = stored.transpose(1, 0, 2) if orientation > 4 else stored
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    expected = np.asarray(Image.fromarray(turned).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(path, SIZE, upright=True), expected)
    assert inspect_image(path, SIZE).turned is (orientation > 1)
    as_stored = np.asarray(Image.fromarray(stored).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(path, SIZE), as_stored)


def test_an_uncompressed_tiff_that_is_turned_is_not_scrambled(tmp_path: Path) -> None:
    """Pillow turns a TIFF by itself."""
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "x.tif", exif=exif)
    expected = Image.fromarray(np.rot90(values, -1)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    for upright in (False, True):
        np.testing.assert_array_equal(resized(tmp_path / "x.tif", SIZE, upright=upright), np.asarray(expected))


def test_a_set_says_what_is_special_about_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cggm_ray.data.shards.shards import write_shards_here
    from cggm_ray.engine.assembly import prepare_data

    raw = write_set(tmp_path / "set")
    png(raw / "images" / "0.jpg", (LEVELS * 257).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 9)).save(raw / "images" / "1.jpg", exif=exif)
    folders = set()
    for upright in (False, True, True):
        config = configuration(raw, tmp_path / "out", exif_orientation=upright)
        folders.add(prepare_data(config, write_shards_here))
        said = capsys.readouterr().out
        assert "food101: grey images of more than 8 bits: 1 whose values 0 to 65,535 become 0 to 255; largest" in said
        done = "they are turned\n" if upright else "they are not turned (exif_orientation)\n"
        assert f"food101: images with another orientation in their EXIF data: 1; {done}" in said
    assert len(folders) == 2


def test_image_of_the_case_has_its_own_mean() -> None:
    folder = CASES / "food_image_modes" / "data"
    if not folder.exists():
        pytest.skip(f"no food_image_modes in {CASES} (set CGGM_DATA)")
    for number, record in enumerate(json.loads((folder / "train.json").read_text())[:10]):
        mean = resized(folder / record["img_path"], 64).mean()
        assert mean == pytest.approx(127.3, abs=0.5), f"image {number}"
