"""The augmentation: seeded, and each of its parts what its name says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cggm_ray.data.datasets.food101 import augment
from cggm_ray.data.datasets.food101.augment import augmented, blurred, image_problem, resized

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(32, 32, 3)).astype(np.uint8)


def test_a_view_is_a_function_of_seed_sample_and_number(pixels: np.ndarray) -> None:
    first = augmented(pixels, 1, 2, 3)
    np.testing.assert_array_equal(first, augmented(pixels, 1, 2, 3))
    assert first.dtype == np.uint8
    assert first.shape == pixels.shape
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (augmented(pixels, *other) != first).any()


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
def test_blur_is_the_sum_over_all_taps(pixels: np.ndarray, sigma: float) -> None:
    size, radius = 32, 10
    weight = [math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-radius, radius + 1)]
    mirror = [abs(i) if i < size else 2 * (size - 1) - i for i in range(-radius, size + radius)]
    kernel = np.zeros((size, size))
    for row in range(size):
        for tap in range(2 * radius + 1):
            kernel[row, mirror[row + tap]] += weight[tap] / sum(weight)
    want = np.einsum("ri,cj,ijk->rck", kernel, kernel, pixels.astype(float))
    assert np.abs(blurred(pixels, sigma) - want).max() < 0.501


def test_parts_happen_as_often_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "BLUR_SIGMA", (0.1, 0.1))
    ramp = np.zeros((8, 8, 3), dtype=np.uint8)
    ramp[:, 4:] = (200, 120, 40)
    views = np.stack([augmented(ramp, 0, sample, 0) for sample in range(600)]).astype(int)
    flipped = views[:, :, 0].sum((1, 2)) > views[:, :, -1].sum((1, 2))
    bright = np.where(flipped[:, None], views[:, 0, 0], views[:, 0, -1])
    grey = (bright[:, 0] == bright[:, 1]) & (bright[:, 1] == bright[:, 2])
    untouched = (bright == (200, 120, 40)).all(1)
    spread = 4 * math.sqrt(0.25 / 600)
    assert abs(flipped.mean() - 0.5) < spread
    assert abs(grey.mean() - 0.2) < spread
    # Neither jitter nor grey.
    assert abs(untouched.mean() - 0.2 * 0.8) < spread


def test_hue_turns_round_the_circle() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    turned = np.asarray(augment._hue_turned(red, 1 / 3))[0, 0].astype(int)
    assert turned[1] > 250
    assert turned[0] < 12
    assert turned[2] < 12
    back = np.asarray(augment._hue_turned(red, -0.1))[0, 0].astype(int)
    assert back[0] > 250
    assert back[2] > 100, "turned backwards from red lies magenta"


def test_resized_stretches_to_the_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).save(path)
    square = resized(path, 16)
    assert square.shape == (16, 16, 3)
    assert square[:, :7].max() == 0
    assert square[:, 9:].min() == 255


def test_every_mode_becomes_rgb_and_problems_have_a_reason(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (9, 9)).save(path)
        assert image_problem(path, 16) is None
        assert resized(path, 16).shape == (16, 16, 3)
    (tmp_path / "text.jpg").write_text("no image")
    assert image_problem(tmp_path / "text.jpg", 16) == "cannot identify image file"
    assert image_problem(tmp_path / "none.jpg", 16) == "no such file"
    assert image_problem(tmp_path, 16) == "not a regular file"
