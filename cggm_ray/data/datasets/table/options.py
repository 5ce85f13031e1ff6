"""The section of the configuration for tables: which columns there are, what is predicted, and how rows are split."""

from __future__ import annotations

from dataclasses import dataclass

from cggm_ray.config.fields import at_least, check, one_of, option
from cggm_ray.core.errors import UsageError
from cggm_ray.data.datasets.food101.encoders import EXTRACT_PRECISIONS
from cggm_ray.data.settings import DatasetOptions

AUTO = "auto"
TASKS = (AUTO, "regression", "classification", "multilabel")
MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None")
MODELS = ("text_model", "image_model", "audio_model")
"""Options that name frozen encoders."""
TRAINABLE = ("text", "image")
"""Kinds of columns whose encoder can be trained."""
NOT_IN_SHARDS = (*MODELS, "extract_batch", "skip_bad")
"""Options that change no shard, or by what is in their files only."""


@dataclass(frozen=True, kw_only=True)
class TableOptions(DatasetOptions):
    """Options of the recipe for tables."""

    target: str = option("label", "column that is predicted")
    task: str = option(AUTO, "regression, classification, multilabel, or auto by the values of the target")
    classes: tuple[str, ...] | None = option(None, "all classes; default those of the train split")
    label_separator: str | None = option(
        None, "separator of several labels in a cell of the target, such as '|' or ';'"
    )
    modality: tuple[str, ...] = option(
        (),
        "name=column,column,...: columns that form one modality; default all numbers and categories together as tab, and every "
        "other column by itself. May be repeated",
        repeat=True,
    )
    column: tuple[str, ...] = option(
        (),
        "name=kind: numeric, categorical, text, image, audio, video, array, id or drop, where the kind that is inferred is "
        "not the right one. May be repeated",
        repeat=True,
    )
    split_column: str | None = option(
        None, "column with train, valid or test; default a column 'split' with these values, else rows are drawn"
    )
    group_column: str | None = option(
        None, "column of groups, such as patients, whose rows stay in one split; it is no input"
    )
    valid_share: float = option(0.1, "share of the rows, or of train, that is drawn for validation if none is given")
    test_share: float = option(0.1, "share of the rows that is drawn for the test if there are no splits")
    split_seed: int = option(0, "seed of the drawn splits")
    delimiter: str | None = option(
        None, "delimiter of a CSV, one character or 'tab'; default the one that fits its first rows"
    )
    encoding: str | None = option(
        None, "encoding of a CSV or JSON file; default UTF-8 or by its byte order mark, else Windows-1252"
    )
    column_names: tuple[str, ...] | None = option(None, "names of the columns of a CSV without a header")
    decimal: str = option(AUTO, "decimal mark of numbers in texts: . or , or auto, by the texts")
    missing_values: tuple[str, ...] = option(
        MISSING, "texts that mean that a cell is missing; an empty cell always does"
    )
    media_path: str | None = option(
        None, "folder of the images, sounds and videos; default the folder of the table", resume=True, path=True
    )
    text_features: int = option(
        4096, "largest number of words of a text column for TF-IDF, the most frequent ones in training"
    )
    text_model: str | None = option(
        None,
        "frozen text encoder with its tokenizer, a local folder or a hub name; default TF-IDF",
        resume=True,
        path=True,
    )
    train_encoders: tuple[str, ...] = option(
        (), "text, image: train text_model or image_model with the rest of the network (--encoder_lr), not frozen"
    )
    text_length: int = option(64, "tokens of a text that text_model gets, special tokens included")
    image_size: int = option(64, "height and width in pixels of an image for a network that is trained on them")
    image_model: str | None = option(
        None,
        "frozen image encoder with its processor, a local folder or a hub name; default a small network that is trained",
        resume=True,
        path=True,
    )
    audio_seconds: float = option(10.0, "seconds of an audio file; the rest is cut")
    audio_model: str | None = option(
        None,
        "frozen audio encoder with its feature extractor, a local folder or a hub name; default a spectrogram",
        resume=True,
        path=True,
    )
    video_frames: int = option(8, "frames of a video, at equal distances")
    skip_bad: int = option(
        0, "largest number of images and other media that cannot be read, which count as missing", resume=True
    )
    extract_precision: str = option(
        "fp32", "precision of frozen encoders: fp32, bf16, fp16; the latter two are stored as fp16"
    )
    extract_batch: int = option(32, "samples that a frozen encoder takes at once", resume=True)

    def __post_init__(self) -> None:
        one_of(self, "task", TASKS)
        one_of(self, "extract_precision", tuple(EXTRACT_PRECISIONS))
        one_of(self, "decimal", (AUTO, ".", ","))
        for name in ("valid_share", "test_share"):
            check(0 < getattr(self, name) < 0.5, self, name, "a number between 0 and 0.5")
        least = {
            "split_seed": 0,
            "text_features": 1,
            "text_length": 3,
            "image_size": 8,
            "video_frames": 1,
            "skip_bad": 0,
            "extract_batch": 1,
        }
        for name, value in least.items():
            at_least(self, name, value)
        check(0 < self.audio_seconds <= 600, self, "audio_seconds", "a number above 0, of at most 600")
        if self.delimiter is not None and self.delimiter != "tab":
            check(len(self.delimiter) == 1, self, "delimiter", "one character, or tab")
        if self.split_column is not None and self.group_column is not None:
            raise UsageError(
                "group_column: given together with split_column, which says the splits; leave one of them out"
            )
        if self.column_names is not None and len(set(self.column_names)) < len(self.column_names):
            raise UsageError(f"column_names: found {', '.join(self.column_names)}; expected every name once")
        for kind in self.train_encoders:
            if kind not in TRAINABLE:
                raise UsageError(f"train_encoders: found {kind!r}; expected {' or '.join(TRAINABLE)}")
            if getattr(self, f"{kind}_model") is None:
                raise UsageError(f"train_encoders: {kind} has no encoder; expected --{kind}_model")
        self.kinds()
        self.groups()

    def kinds(self) -> dict[str, str]:
        """Returns the kinds that `column` gives, by column."""
        found: dict[str, str] = {}
        for item in _items(self.column):
            name, equals, kind = item.rpartition("=")
            if not equals or not name or not kind:
                raise UsageError(f"column: found {item!r}; expected name=kind, such as price=numeric")
            found[name] = kind
        return found

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Returns the columns of every modality that `modality` gives; an item without '=' belongs to the name before it."""
        found: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        name = ""
        for item in _items(self.modality):
            first, equals, rest = item.partition("=")
            name, column = (first, rest) if equals else (name, item)
            if not name or not column:
                raise UsageError(f"modality: found {item!r}; expected name=column,column,..., such as tab=age,site")
            if column in owner:
                raise UsageError(f"modality: column {column!r} is in {owner[column]} and in {name}; expected it once")
            owner[column] = name
            found.setdefault(name, []).append(column)
        return {name: tuple(columns) for name, columns in found.items()}


def _items(names: tuple[str, ...]) -> list[str]:
    """Returns the items of a list whose texts may be lists too, as those of a call from Python."""
    return [item.strip() for text in names for item in text.split(",") if item.strip()]
