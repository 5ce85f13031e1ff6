"""Sets of sound and pictures: what is decoded, how they are split, and media that cannot be read."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from av_layouts import ucf
from clips import RATE, colours, configuration, converted, crema, crema_names, small_wav2vec, split_of, tone

from cggm_ray.commands.predict import predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError, UsageError
from cggm_ray.core.kinds import FRAMES, IMAGE
from cggm_ray.data.datasets.av.augment import cropped, crops
from cggm_ray.data.datasets.av.decoding import FLOOR, decoded, flow, middles, pictures, sound, spectrogram
from cggm_ray.data.datasets.av.demonstration import (
    write_demonstration,
    write_pictures,
    write_sound,
    write_video,
)
from cggm_ray.data.datasets.av.media import FLOW, PICTURES, SOUND, VIDEO, Medium
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.loading.sampler import Slice
from cggm_ray.engine.budget import budget_of
from cggm_ray.engine.optim import build_schedule
from cggm_ray.engine.tracking import read_metrics
from cggm_ray.models.settings import ModelConfig
from cggm_ray.recipes import av_ogm_ge
from cggm_ray.studies.baseline_inputs import FLAT, read_rows

pytest.importorskip("av")
pytest.importorskip("soundfile")


def medium(form: str, *paths: Path) -> Medium:
    return Medium(form=form, paths=tuple(map(str, paths)))


def test_spectrogram_is_that_of_numpy() -> None:
    options = AvOptions(audio_rate=8000, audio_seconds=0.5, audio_window=64, audio_hop=40)
    wave = np.random.default_rng(0).normal(size=1500).astype(np.float32) * 0.2
    whole = np.pad(np.tile(wave, 3)[:4000], 32)
    window = np.hanning(65)[:-1]
    parts = np.stack([whole[start : start + 64] * window for start in range(0, 4001, 40)], 1)
    expected = np.log(np.abs(np.fft.rfft(parts, axis=0)) + FLOOR)
    found = spectrogram(wave, options)
    assert found.shape == expected.shape == (33, 101)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_media_are_decoded_as_they_were_written(tmp_path: Path) -> None:
    shown = colours(3, 9)
    write_sound(tmp_path / "a.wav", tone(0))
    for name in ("a.mp4", "a.avi", "a.flv"):
        write_video(tmp_path / name, shown, tone(0) if name != "a.flv" else None)
    for name in ("a.wav", "a.mp4", "a.avi"):
        wave = sound(medium(SOUND if name == "a.wav" else VIDEO, tmp_path / name), 0.8, 8000)
        assert len(wave) == 6400
        assert abs(np.abs(np.fft.rfft(wave)).argmax() * 8000 / 6400 - 440) <= 2
    assert middles(9, 3).tolist() == [1, 4, 7]
    write_pictures(tmp_path / "b", shown, "frame{}.png")
    for one in (
        medium(PICTURES, tmp_path / "b"),
        *(medium(VIDEO, tmp_path / f"a.{end}") for end in ("mp4", "avi", "flv")),
    ):
        found = np.stack(pictures(one, 3, 16))
        assert found.shape == (3, 16, 16, 3)
        np.testing.assert_allclose(found.mean((1, 2)), shown[[1, 4, 7], 0, 0], atol=6)


def test_flow_is_stacked_by_turns(tmp_path: Path) -> None:
    """From two folders, or from one; the names count by their numbers."""
    for number in range(1, 13):
        for side, level in (("x", 10 * number), ("y", 10 * number + 5)):
            grey = np.full((1, 16, 16), level, np.uint8)
            write_pictures(tmp_path / side / "v_A_g01_c01", grey, f"frame{number}.png")
            write_pictures(tmp_path / "tsn", grey, f"flow_{side}_{number}.png")
    options = AvOptions(image_size=16, flow_stack=3, frames=2)
    expected = [[30, 35, 40, 45, 50, 55], [90, 95, 100, 105, 110, 115]]
    for one in (medium(FLOW, tmp_path / "x/v_A_g01_c01", tmp_path / "y/v_A_g01_c01"), medium(FLOW, tmp_path / "tsn")):
        found = flow(one, options)
        assert found.shape == (2, 6, 16, 16)
        assert found.mean((2, 3)).tolist() == expected


def test_validation_is_drawn_by_speaker_and_test_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = crema(tmp_path / "raw")
    settings = configuration(raw, tmp_path, valid_share=0.3)
    names = {split: split_of(settings, split).names for split in ("train", "valid", "test")}
    speakers = {split: {str(name)[:4] for name in some or ()} for split, some in names.items()}
    assert not speakers["train"] & speakers["valid"]
    assert speakers["valid"]
    listed = [name for name, _ in crema_names()]
    assert list(names["test"] or ()) == [name for number, name in enumerate(listed) if number % 4 == 3]
    assert sorted((*(names["train"] or ()), *(names["valid"] or ()))) == sorted(
        name for number, name in enumerate(listed) if number % 4 != 3
    )
    out = capsys.readouterr().out
    assert "valid drawn from train by speaker, split_seed 0; " in out
    assert "sources of test are in train too" in out


def test_clips_reach_the_loop(tmp_path: Path) -> None:
    raw = crema(tmp_path / "raw")
    (raw / "AudioWAV" / f"{crema_names()[3][0]}.wav").unlink()
    settings = configuration(raw, tmp_path, skip_bad=1)
    split = split_of(settings, "test")
    (batch,) = split.batches([Slice.whole(torch.arange(len(split)))], 0)
    assert batch.masks is not None
    assert set(batch.masks) == {"audio"}
    assert batch.masks["audio"][:, 0].tolist() == [False, *[True] * (len(split) - 1)]
    assert batch.inputs["vision"].shape == (6, 1, 3, 16, 16)
    assert batch.inputs["vision"].dtype == batch.inputs["audio"].dtype == torch.float32
    one = raw / "Image-01-FPS" / str(split.names[0]) if split.names else raw
    np.testing.assert_array_equal(
        batch.inputs["vision"][0].numpy(),
        decoded("vision", medium(PICTURES, one), settings.options),  # type: ignore[arg-type]
    )
    rows = read_rows(split, {"audio": IMAGE, "vision": FRAMES}, FLAT).inputs
    assert np.isnan(rows["audio"][0]).all()
    assert rows["vision"].shape[1] == 3 * 16 * 16
    train = split_of(settings, "train")
    plan = [Slice.whole(torch.arange(len(train)))]
    first, again, later = (next(iter(train.batches(plan, epoch))).inputs["vision"] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    # A part of a batch has the crops of the whole.
    part = next(iter(train.batches([Slice.whole(torch.tensor([4, 2]))], 0)))
    torch.testing.assert_close(part.inputs["vision"], first[[4, 2]])
    assert part.masks is None


def test_another_network_is_refused(tmp_path: Path) -> None:
    raw = crema(tmp_path / "raw")
    settings = dataclasses.replace(configuration(raw, tmp_path), model=ModelConfig(network="shaped"))
    with pytest.raises(UsageError, match=r"shaped takes no frames, found vision of shape \[1, 3, 16, 16\]"):
        converted(settings)


def test_crops() -> None:
    x = torch.arange(2 * 1 * 1 * 8 * 8, dtype=torch.float32).reshape(2, 1, 1, 8, 8)
    whole = torch.tensor([[0.999999, 0.5, 0.2, 0.7, 0.9], [0.999999, 0.5, 0.2, 0.7, 0.1]])
    found = cropped(x, crops(whole))
    torch.testing.assert_close(found[0], x[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(found[1], x[1].flip(-1), atol=1e-2, rtol=0)
    # A quarter of the area from the upper left corner, at half a pixel's steps.
    drawn = torch.tensor([[(0.25 - 0.08) / 0.92, 0.5, 0.0, 0.0, 0.9]])
    corner = cropped(x[:1], crops(drawn))[0, 0, 0]
    across = torch.arange(8) / 2 - 0.25
    expected = (across.clamp(0, 7)[None] + 8 * across.clamp(0, 7)[:, None]).float()
    torch.testing.assert_close(corner, expected, atol=1e-3, rtol=0)


def garbage(path: Path) -> None:
    path.write_bytes(b"RIFF\x00\x00\x00\x00WAVE" + bytes(100))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_pictures(path: Path) -> None:
    shutil.rmtree(path)


def broken_picture(path: Path) -> None:
    for file in path.iterdir():
        file.write_bytes(file.read_bytes()[:200])


def twice(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text())


def no_label(path: Path) -> None:
    path.write_text("1001_SAA_ANG_XX,\n")


def three_cells(path: Path) -> None:
    path.write_text(path.read_text() + "1001_DFA_ANG_XX,ANG,3\n")


def other_class(path: Path) -> None:
    path.write_text("1004_SAA_HAP_XX,NEU\n")


FIRST, LABEL = crema_names()[0]
BROKEN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty sound": (
        f"AudioWAV/{FIRST}.wav",
        emptied,
        rf"{FIRST}.wav: audio cannot be read: the file is empty \(or --skip_bad 1",
    ),
    "no sound file": (f"AudioWAV/{FIRST}.wav", Path.unlink, rf"clip {FIRST}: no audio below .* \(or --skip_bad 1"),
    "damaged sound": (f"AudioWAV/{FIRST}.wav", garbage, rf"{FIRST}.wav: audio cannot be read: "),
    "no pictures": (f"Image-01-FPS/{FIRST}", without_pictures, rf"clip {FIRST}: no vision below"),
    "damaged pictures": (
        f"Image-01-FPS/{FIRST}",
        broken_picture,
        rf"{FIRST}: vision cannot be decoded: .*\(or --skip_bad 1",
    ),
    "a clip twice": ("train.csv", twice, "clip 1001_SAA_ANG_XX is listed twice, in train and in train"),
    "no label": ("train.csv", no_label, "train.csv, row 1: found '1001_SAA_ANG_XX,'; expected an id and a label"),
    "too many cells": ("test.csv", three_cells, "test.csv, row 7: found 3 cells; expected 2"),
    "a class of test alone": (
        "test.csv",
        other_class,
        "clip 1004_SAA_HAP_XX: class NEU has no clip in train; found ANG, HAP",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sets_are_refused(tmp_path: Path, name: str) -> None:
    place, spoil, message = BROKEN[name]
    raw = crema(tmp_path / "raw")
    spoil(raw / place)
    with pytest.raises(DataError, match=message):
        converted(configuration(raw, tmp_path))


def test_what_may_be_skipped_counts_as_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Media that are gone, empty and damaged, and a sound that is silent; a clip without any is left out."""
    raw = crema(tmp_path / "raw")
    names = [name for name, _ in crema_names()]
    emptied(raw / "AudioWAV" / f"{names[0]}.wav")
    broken_picture(raw / "Image-01-FPS" / names[3])
    write_sound(raw / "AudioWAV" / f"{names[7]}.wav", np.zeros(RATE, np.float32))
    (raw / "AudioWAV" / f"{names[1]}.wav").unlink()
    without_pictures(raw / "Image-01-FPS" / names[1])
    with pytest.raises(DataError, match=r"3 media are missing or cannot be read; expected at most 2 \(skip_bad\)"):
        converted(configuration(raw, tmp_path, skip_bad=2))
    with pytest.raises(DataError, match=r"4 media are missing or cannot be read; expected at most 3 \(skip_bad\)"):
        converted(configuration(raw, tmp_path, skip_bad=3))
    settings = configuration(raw, tmp_path, skip_bad=4)
    _, manifest = converted(settings)
    assert sum(manifest.rows(split) for split in manifest.splits) == len(names) - 1
    taken = "\n".join(manifest.notes["taken"])
    assert f"left out: 1 clips without any medium: {names[1]}" in taken
    assert "audio: silent in 1 clips, which lack it" in taken
    assert f"{names[3]}: vision cannot be decoded" in taken
    test = split_of(settings, "test")
    (batch,) = test.batches([Slice.whole(torch.arange(len(test)))], 0)
    assert batch.masks is not None
    assert {name: mask[:2, 0].tolist() for name, mask in batch.masks.items()} == {
        "audio": [True, False],
        "vision": [False, True],
    }


def test_silent_videos_and_no_flow(tmp_path: Path) -> None:
    raw = crema(tmp_path / "raw", videos=True)
    shutil.rmtree(raw / "AudioWAV")
    _, manifest = converted(configuration(raw, tmp_path, {"modalities": ["vision"]}))
    assert list(manifest.modalities) == ["vision"]
    with pytest.raises(DataError, match="none of the 24 clips has audio that can be read; expected files such as"):
        converted(configuration(raw, tmp_path))
    ucf(tmp_path)
    with pytest.raises(DataError, match="v_Archery_g08_c01"):
        converted(configuration(tmp_path, tmp_path))


def test_from_raw_clips_to_predictions(tmp_path: Path) -> None:
    raw = crema(tmp_path / "raw", videos=True)
    run(configuration(raw, tmp_path, {"fusion": "film", "num_epochs": 2}))
    new = tmp_path / "new"
    for number in range(3):
        write_sound(new / f"{number}.wav", tone(number))
        write_video(new / f"{number}.mp4", colours(number), None)
    table = pq.read_table(predict(tmp_path / "runs" / "run", new, None, tmp_path / "p.parquet").path)
    assert table.column("id").to_pylist() == ["0", "1", "2"]


def test_frozen_encoders(tmp_path: Path) -> None:
    """Their states are those of the models called by hand; a missing modality is masked, and new clips get the same models."""
    from tables import small_vit
    from transformers import ViTModel

    raw = crema(tmp_path / "raw")
    (raw / "AudioWAV" / f"{crema_names()[3][0]}.wav").unlink()
    models = {"image_model": str(small_vit(tmp_path / "vit")), "audio_model": str(small_wav2vec(tmp_path / "wav2vec"))}
    settings = configuration(raw, tmp_path, skip_bad=1, frames=2, **models)
    split = split_of(settings, "test")
    (batch,) = split.batches([Slice.whole(torch.arange(len(split)))], 0)
    assert batch.inputs["vision"].shape == (6, 2, 16)
    assert batch.masks is not None
    assert not batch.masks["audio"][0].any()
    assert batch.masks["audio"][1:].all(1).all()
    shown = torch.from_numpy(colours(3, 3)[[0, 2], :24, :24].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        states = ViTModel.from_pretrained(models["image_model"], add_pooling_layer=False)((shown - 0.5) / 0.5)
    torch.testing.assert_close(batch.inputs["vision"][0], states.last_hidden_state.mean(1), atol=0.05, rtol=0)
    run(settings)
    found = predict(tmp_path / "runs" / "run", raw, "test", tmp_path / "p.parquet")
    assert pq.read_table(found.path).num_rows == 6


def test_recipe_of_the_field() -> None:
    """That of OGM-GE for CREMA-D: the rate of every epoch is that of torch's StepLR."""
    recipe = av_ogm_ge.RECIPE
    net = torch.nn.Linear(1, 1)
    optimizer, theirs = (torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4) for _ in range(2))
    scheduler = torch.optim.lr_scheduler.StepLR(theirs, 70, 0.1)
    budget = budget_of(recipe.train, 100)
    schedule = build_schedule(recipe.optim, budget, optimizer)
    for epoch in range(recipe.train.num_epochs):
        for step in range(budget.steps):
            schedule.before_step(epoch * budget.steps + step)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    chosen = recipe.optim
    assert (chosen.optim, chosen.weight_decay, chosen.clip, recipe.train.batch_size) == ("SGD", 1e-4, 0.0, 64)
    assert recipe.train.num_epochs == 100


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_workers_follow_a_local_run(tmp_path: Path) -> None:
    """Decoded by Ray Data, trained by two workers: the curve of one process, crops and missing modalities included.

    In double precision, because batch normalisation makes what single precision rounds grow from step to step.
    """
    raw = crema(tmp_path / "raw")
    (raw / "AudioWAV" / f"{crema_names()[0][0]}.wav").unlink()
    curves, learned = [], {"num_epochs": 3, "lr": 1e-3, "precision": "fp64"}
    for place, changes in (("here", {"local": True}), ("ray", {"local": False, "workers": "2", "cpus_per_worker": 1})):
        result = run(configuration(raw, tmp_path / place, {**changes, **learned}, skip_bad=1))
        assert result is not None
        curves.append(read_metrics(result.folder))
    one, two = curves
    for name in ("train/loss", "valid/loss", "valid/accuracy"):
        assert [epoch[name] for epoch in two] == pytest.approx([epoch[name] for epoch in one], rel=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["cremad", "cremad_videos", "kinetics", "vggsound", "ave", "ucf101", "folders"])
def test_generated_sets_train(tmp_path: Path, layout: str) -> None:
    first = write_demonstration(tmp_path / "a", layout, 1)
    again = write_demonstration(tmp_path / "b", layout, 1)
    files = sorted(
        path.relative_to(first) for path in first.rglob("*") if path.suffix in (".wav", ".jpg", ".csv", ".txt")
    )
    assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)
    run(configuration(first, tmp_path, {"batch_size": 32}, flow_stack=2))
