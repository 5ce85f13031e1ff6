"""Tables of audio and video files, against torch and against the frames and samples that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tables import converted, table_config

from cggm_ray.commands.predict import predict
from cggm_ray.commands.train import run
from cggm_ray.core.errors import DataError
from cggm_ray.data.datasets.table.audio import BANDS, HOP, RATE, WINDOW, log_mel, waveform
from cggm_ray.data.datasets.table.video import frames

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")
ROWS, SIDE, LENGTH = 36, 32, 12


def tone(path: Path, hertz: float, seconds: float, rate: int = 8000) -> None:
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * hertz * time), rate)


def film(path: Path, colours: np.ndarray) -> None:
    """A video whose frames have one colour each, [frames, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            picture = np.broadcast_to(colour.astype(np.uint8), (SIDE, SIDE, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def recordings(folder: Path) -> Path:
    """A table of tones and films; the class is twice the first bit, which the tone has, plus the second, which the film has."""
    random = np.random.default_rng(0)
    (folder / "media").mkdir(parents=True)
    rows = []
    for number in range(ROWS):
        bits = number % 4
        sound, picture = f"media/{number}.wav", f"media/{number}.mp4"
        tone(folder / sound, (300, 1500)[bits // 2] * random.uniform(0.9, 1.1), random.uniform(0.3, 0.6))
        ramp = np.linspace(40, 200, LENGTH) if bits % 2 else np.linspace(200, 40, LENGTH)
        film(folder / picture, np.stack([ramp, np.full(LENGTH, 90), np.full(LENGTH, 90)], 1))
        rows.append({"sound": sound, "film": picture, "label": "abcd"[bits]})
    rows[5]["sound"] = rows[6]["film"] = ""
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_spectrogram_is_that_of_torch() -> None:
    from transformers.audio_utils import mel_filter_bank

    wave = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    spectrum = torch.stft(torch.from_numpy(wave), WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    filters = mel_filter_bank(WINDOW // 2 + 1, BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    expected = np.log10(spectrum.abs().square().numpy().T @ filters)
    found = log_mel(wave)
    assert found.shape == (1 + RATE // HOP, BANDS)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(log_mel(wave[:100])) == 2


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 440, 0.5)
    wave = waveform(tmp_path / "a.wav", 10)
    assert len(wave) == RATE // 2
    assert abs(np.abs(np.fft.rfft(wave)).argmax() * 2 - 440) <= 2
    assert len(waveform(tmp_path / "a.wav", 0.1)) == RATE // 10
    assert log_mel(wave).mean(0).argmax() < BANDS // 3
    colours = np.stack([np.linspace(20, 230, LENGTH), np.full(LENGTH, 80), np.linspace(230, 20, LENGTH)], 1)
    film(tmp_path / "a.mp4", colours)
    found = frames(tmp_path / "a.mp4", 4, None)
    assert found.shape == (4, SIDE, SIDE, 3)
    np.testing.assert_allclose(found.mean((1, 2)), colours[[0, 4, 7, 11]], atol=8)
    assert frames(tmp_path / "a.mp4", 20, 8).shape == (20, 8, 8, 3)


def test_sound_and_film_from_raw_files_to_predictions(tmp_path: Path) -> None:
    data = recordings(tmp_path / "set")
    settings = table_config(
        tmp_path,
        data,
        target="label",
        audio_seconds=0.5,
        video_frames=4,
        changes={"max_steps": 120, "standardise": "on"},
    )
    manifest, splits = converted(settings)
    assert manifest.notes["kinds"] == {"sound": "sequence", "film": "sequence"}
    assert manifest.modalities["sound"].shape == (26, BANDS)
    assert manifest.modalities["film"].shape == (4, 768)
    assert sum(int((~split.masks["sound"].any(1)).sum()) for split in splits.values()) == 1
    result = run(settings)
    assert result is not None
    assert result.valid["accuracy"] > 0.6
    done = predict(result.folder, data, None, tmp_path / "p.parquet")
    assert done.samples == done.labelled == ROWS
    assert done.metrics["accuracy"] > 0.6


@pytest.mark.parametrize(("name", "content"), [("0.wav", b"RIFF none"), ("3.mp4", b"#EXTM3U\nfile:///etc/passwd\n")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    data = recordings(tmp_path / "set")
    (data.parent / "media" / name).write_bytes(content)
    row = int(name[0]) + 1
    with pytest.raises(
        DataError, match=rf"t\.csv, row {row}, column (sound|film): found 'media/{name}'; expected a readable"
    ):
        converted(table_config(tmp_path, data, target="label"))


def test_frozen_encoders_of_audio_and_frames(tmp_path: Path) -> None:
    from transformers import (
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    Wav2Vec2Model(
        Wav2Vec2Config(**sizes, conv_dim=(8, 8), conv_stride=(10, 16), conv_kernel=(10, 16), num_conv_pos_embeddings=4)
    ).save_pretrained(tmp_path / "w2v")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "w2v")
    data = recordings(tmp_path / "set")
    models = {"image_model": str(tmp_path / "vit"), "audio_model": str(tmp_path / "w2v")}
    manifest, splits = converted(
        table_config(tmp_path, data, target="label", audio_seconds=0.5, video_frames=3, **models)
    )
    assert manifest.modalities["film"].shape == (3, 16)
    steps, width = manifest.modalities["sound"].shape
    assert width == 16
    assert steps == pytest.approx(0.5 * RATE / 160, abs=2)
    counts = np.concatenate([split.masks["sound"].sum(1) for split in splits.values()])
    assert sorted(counts)[0] == 0
    assert 0.55 * steps < sorted(counts)[1] < sorted(counts)[-1] == steps


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e30])
def test_samples_without_a_finite_spectrum_are_refused_without_a_warning(tmp_path: Path, value: float) -> None:
    """Of two channels of the largest numbers the sum is not finite, and of large ones the power."""
    soundfile.write(tmp_path / "a.wav", np.full((800, 2), value, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="not finite"):
        waveform(tmp_path / "a.wav", 1.0)
