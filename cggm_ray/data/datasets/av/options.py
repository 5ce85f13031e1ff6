"""The section of the configuration for sets of sound and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.food101.encoders import EXTRACT_PRECISIONS
from cggm_ray.data.settings import DatasetOptions

AUTO = "auto"
LAYOUTS = ("lists", "ave", "ucf101", "folders")
MODELS = ("image_model", "audio_model")
"""Options that name frozen encoders."""
NOT_IN_SHARDS = (*MODELS, "crop", "skip_bad", "media_path", "extract_batch", "demonstration")
"""Options that change no shard, or by what is in their files only."""
DEMONSTRATIONS = ("cremad", "cremad_videos", "kinetics", "vggsound", "ave", "ucf101", "folders")


@dataclass(frozen=True, kw_only=True)
class AvOptions(DatasetOptions):
    """Options of sets of sound and pictures."""

    layout: str = option(
        AUTO, "lists (CSV), ave, ucf101, folders (one for each class), or auto, by the files that are found"
    )
    demonstration: str = option(
        "cremad",
        "layout of the generated set that is made without data_path: cremad, cremad_videos, kinetics, vggsound, ave, ucf101, "
        "folders",
        resume=True,
    )
    media_path: str | None = option(
        None, "folder of the sounds and videos; default that of the lists", resume=True, path=True
    )
    frames: int = option(1, "pictures of a clip, from the middles of that many equal parts")
    image_size: int = option(224, "height and width of a picture in pixels")
    crop: bool = option(True, "crop and flip pictures at random in training", resume=True)
    flow_stack: int = option(10, "successive fields of optical flow that form one picture, two channels each")
    audio_rate: int = option(22_050, "sampling rate in Hz, to which all sounds are resampled")
    audio_seconds: float = option(3.0, "seconds of sound; a shorter one is repeated, the rest of a longer one is cut")
    audio_window: int = option(512, "window of the spectrogram in samples of sound")
    audio_hop: int = option(353, "samples of sound between two windows")
    list_number: int = option(1, "ucf101: which of the three splits, such as 1 for trainlist01")
    valid_share: float = option(0.1, "share of train that is drawn for validation if there is none")
    test_share: float = option(0.2, "share of the clips that is drawn for the test if there are no splits")
    split_seed: int = option(0, "seed of the drawn splits")
    skip_bad: int = option(
        0, "largest number of media that are gone or cannot be read, which count as missing", resume=True
    )
    image_model: str | None = option(
        None,
        "frozen image encoder with its processor, a local folder or a hub name; default a network that is trained",
        resume=True,
        path=True,
    )
    audio_model: str | None = option(
        None,
        "frozen audio encoder with its feature extractor, a local folder or a hub name; default a network that is trained on "
        "spectrograms",
        resume=True,
        path=True,
    )
    extract_precision: str = option(
        "fp32", "precision of frozen encoders: fp32, bf16, fp16; the latter two are stored as fp16"
    )
    extract_batch: int = option(32, "samples that a frozen encoder takes at once", resume=True)

    def __post_init__(self) -> None:
        one_of(self, "layout", (AUTO, *LAYOUTS))
        one_of(self, "demonstration", DEMONSTRATIONS)
        one_of(self, "extract_precision", tuple(EXTRACT_PRECISIONS))
        least = {
            "frames": 1,
            "image_size": 8,
            "flow_stack": 1,
            "audio_rate": 1000,
            "audio_window": 16,
            "audio_hop": 1,
            "list_number": 1,
            "split_seed": 0,
            "skip_bad": 0,
            "extract_batch": 1,
        }
        for name, value in least.items():
            at_least(self, name, value)
        for name in ("valid_share", "test_share"):
            check(0 < getattr(self, name) < 0.5, self, name, "a number between 0 and 0.5")
        check(0 < self.audio_seconds <= 600, self, "audio_seconds", "a number above 0, of at most 600")
        if self.audio_seconds * self.audio_rate < self.audio_window:
            raise UsageError(
                f"audio_seconds: {self.audio_seconds:g} s of {self.audio_rate} samples are shorter than audio_window "
                f"{self.audio_window}; expected at least one window"
            )

    @property
    def samples(self) -> int:
        """Samples of sound of a clip."""
        return round(self.audio_seconds * self.audio_rate)
