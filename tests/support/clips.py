"""Small sets of clips for tests, in the layouts that people have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cggm_ray.data.datasets.av.demonstration import write_pictures, write_rows, write_sound, write_video
from cggm_ray.data.datasets.av.options import AvOptions
from cggm_ray.data.loading.split import Split
from cggm_ray.data.settings import DataConfig
from cggm_ray.data.shards.shards import Manifest, open_set, write_shards_here
from cggm_ray.engine.assembly import build_dataset, prepare_data
from cggm_ray.engine.configuration import Config
from cggm_ray.engine.runtime import RunConfig
from cggm_ray.recipes.av import RECIPE

EMOTIONS = ("ANG", "HAP")
SMALL: dict[str, Any] = {
    "image_size": 16,
    "audio_seconds": 0.5,
    "audio_rate": 8000,
    "audio_window": 64,
    "audio_hop": 40,
}
RATE = 16_000


def tone(number: int, hertz: float = 440.0) -> np.ndarray:
    """One second of a tone."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) + 0.01 * np.cos(number + np.arange(RATE))).astype(
        np.float32
    )


def colours(number: int, count: int = 8) -> np.ndarray:
    """Pictures of one colour each, which gets brighter, uint8 [count, 64, 64, 3]."""
    levels = np.linspace(40, 200, count)[:, None] * np.array([1.0, 0.5, 0.3 + 0.05 * (number % 8)])
    return np.broadcast_to(levels[:, None, None, :], (count, 64, 64, 3)).astype(np.uint8)


def crema_names(clips: int = 24) -> list[tuple[str, str]]:
    """Names and classes of clips of six speakers."""
    return [
        (f"{1001 + number % 6}_S{chr(65 + number // 6)}A_{EMOTIONS[number % 2]}_XX", EMOTIONS[number % 2])
        for number in range(clips)
    ]


def crema(folder: Path, clips: int = 24, videos: bool = False) -> Path:
    """The lists of OGM-GE with WAV files, and folders of frames or videos."""
    names = crema_names(clips)
    for number, (name, label) in enumerate(names):
        write_sound(folder / "AudioWAV" / f"{name}.wav", tone(number, 300 + 300 * EMOTIONS.index(label)))
        if videos:
            write_video(folder / "VideoFlash" / f"{name}.flv", colours(number), None)
        else:
            write_pictures(folder / "Image-01-FPS" / name, colours(number, 3))
    write_rows(folder / "train.csv", [row for number, row in enumerate(names) if number % 4 != 3])
    write_rows(folder / "test.csv", [row for number, row in enumerate(names) if number % 4 == 3])
    return folder


def configuration(path: Path | None, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Config:
    """The recipe with small samples and a small network, whose run and shards lie in a folder."""
    base = dataclasses.replace(
        RECIPE,
        data=DataConfig(dataset="av", data_path=None if path is None else str(path)),
        options=AvOptions(**{**SMALL, **options}),
        run=RunConfig(
            local=True, no_cuda=True, storage_path=str(folder / "runs"), name="run", report=False, headroom=False
        ),
    )
    small = {"width": 32, "inner_width": 4, "num_epochs": 1, "batch_size": 8, "contributions_seconds": 0}
    return base.replace({**small, **(changes or {})})


def converted(settings: Config) -> tuple[Path, Manifest]:
    """Converts a set here, and returns its folder and manifest."""
    folder = prepare_data(settings, write_shards_here)
    manifest = open_set(folder)
    assert manifest is not None
    return folder, manifest


def split_of(settings: Config, name: str) -> Split:
    """A split of a set that is converted."""
    folder, manifest = converted(settings)
    return build_dataset(settings).open_split(folder, manifest, name, tuple(manifest.modalities), torch.device("cpu"))


def small_wav2vec(folder: Path) -> Path:
    """Saves a random wav2vec 2.0 with its feature extractor, in the format of transformers; returns the folder."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = Wav2Vec2Config(
        **sizes, conv_dim=(8, 8), conv_stride=(10, 16), conv_kernel=(10, 16), num_conv_pos_embeddings=4
    )
    Wav2Vec2Model(settings).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder
