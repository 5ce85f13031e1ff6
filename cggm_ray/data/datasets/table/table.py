"""Tables: a row a sample, columns of numbers, categories, texts, images and arrays, one of them the target."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from cggm_ray.core.errors import DataError, listed, one_line
from cggm_ray.data.dataset import DATASETS, Dataset
from cggm_ray.data.datasets.table.cells import Rows
from cggm_ray.data.datasets.table.columns import Schema, column_lines, infer, kinds_of
from cggm_ray.data.datasets.table.demonstration import write_demonstration
from cggm_ray.data.datasets.table.files import TableFiles, find_tables
from cggm_ray.data.datasets.table.finetuned import build_model, states_shape, trained_columns
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, Context
from cggm_ray.data.datasets.table.number_texts import POINT, check_sign, decimal_mark, sign_of
from cggm_ray.data.datasets.table.numbers import NUMERIC
from cggm_ray.data.datasets.table.options import AUTO, MODELS, NOT_IN_SHARDS, TableOptions
from cggm_ray.data.datasets.table.parts import (
    Columns,
    check_some,
    presence,
    raw_shards,
    read_parts,
    rows_to_predict,
    with_target,
    without_empty,
)
from cggm_ray.data.datasets.table.pretrained import find_model
from cggm_ray.data.datasets.table.splitting import divide, split_column
from cggm_ray.data.datasets.table.stages import EncodeCells, EncodeWithModels, Plan, plan_of
from cggm_ray.data.datasets.table.targets import (
    CLASSIFICATION,
    MULTILABEL,
    Target,
    check_regression,
    find_classes,
    find_labels,
    infer_task,
    read_labels,
    read_target,
)
from cggm_ray.data.formats.layouts import WHOLE
from cggm_ray.data.settings import DatasetSettings
from cggm_ray.data.shards.shards import PREDICT, Manifest, RawShard, Source, Stage, TensorSpec
from cggm_ray.data.shards.sources import describe_sources, file_version
from cggm_ray.data.shards.specs import table_specs
from cggm_ray.storage.places import as_path
from cggm_ray.tasks import Classification, MultiLabel, Regression, Task


@DATASETS.register("table")
class Table(Dataset):
    """Any table with a target."""

    name = "table"
    converter = 2
    network = "composed"
    Options = TableOptions

    def __init__(self, settings: DatasetSettings) -> None:
        super().__init__(settings)
        assert isinstance(settings.options, TableOptions)
        self.options = settings.options
        self._notes: dict[str, Any] = {}
        self._plan: Plan = {}
        self._specs: Mapping[str, TensorSpec] = {}

    @classmethod
    def parts(cls) -> list[tuple[str, str]]:
        """Returns the kinds of columns that a user registered."""
        return [("column", name) for name in COLUMN_KINDS.names() if COLUMN_KINDS.place(name) is not None]

    def shard_options(self) -> dict[str, Any]:
        """Returns the options that change the shards, and the modalities, because only those are read."""
        names = self.settings.data.modalities
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.options).items()}
        plain = {key: value for key, value in plain.items() if key not in (*NOT_IN_SHARDS, "media_path")}
        models = {name: getattr(self.options, name) is not None for name in MODELS}
        if not self.options.train_encoders:
            # Sets without the option keep their fingerprint.
            del plain["train_encoders"]
        return plain | models | {"modalities": None if names is None else sorted(names)}

    def locate(self, path: Path) -> list[Path]:
        """Returns the files of the table, and those of the encoders."""
        return [*self._found(path).all, *self._model_files()]

    def locate_new(self, path: Path) -> list[Path]:
        """Returns the files of the table; the encoders are those of the run.

        Media lie in its own folder where the folder of the training data's media is gone.
        """
        return self._found(path, new=True).all

    def describe(self, sources: list[Path]) -> tuple[Source, ...]:
        """Returns checksums of the files; media that they name are described by name, size and time or version."""
        files = describe_sources(sources, self.settings.shard_root)
        self._parts, self._lines = read_parts(self._files, self.options)
        digest, total = hashlib.sha256(), 0
        for rows in self._parts.values():
            found = kinds_of(rows, self.options, (self.options.target,))
            for name in (name for name, (kind, _) in found.items() if kind in COLUMN_KINDS.names()):
                for file in COLUMN_KINDS.get(found[name][0]).media(rows.cells(name), self._context):
                    try:
                        size, version = (0, "missing") if file is None else file_version(as_path(file))
                    except OSError:
                        size, version = 0, "missing"
                    total += size
                    digest.update(
                        f"{file and as_path(file).relative_to(self._context.media)}\0{size}\0{version}\n".encode()
                    )
        if not total:
            return files
        return (*files, Source(path=str(self._context.media), bytes=total, sha256=digest.hexdigest()))

    def read(self, sources: list[Path]) -> Iterator[RawShard]:
        """Yields cells of every split, after checking all of them and learning from the training split how they are encoded."""
        parts, remarks = with_target(self._parts, self.options.target)
        first = parts.get(WHOLE) or parts.get("train") or next(iter(parts.values()))
        decimal, said = self._decimal(first)
        self._lines += said
        context = self._with_decimal(decimal)
        options = context.options
        column = split_column(first, options) if WHOLE in parts else None
        other = {options.target: "the target"} | ({} if column is None else {column: "says the splits"})
        if options.group_column is not None:
            first.check_column("group_column", options.group_column)
            other[options.group_column] = "groups of the splits"
        schema = infer(first, options, other, self.settings.data.modalities)
        task, reason = infer_task(first.cells(options.target), options)
        self._notes = {"task": task}
        classes: list[str] | None = None
        if task == CLASSIFICATION:
            classes = find_classes(first.cells(options.target), options.classes)
        elif task == MULTILABEL:
            classes = find_labels(first.cells(options.target), options.classes, options.label_separator)
        else:
            check_regression(first.cells(options.target), options)
        numbers = [name for name, one in schema.inputs.items() if one.kind == NUMERIC]
        numbers += [] if classes is not None else [options.target]
        signs = {name: sign for name in numbers if (sign := sign_of(first.cells(name))) is not None}
        splits, how = divide(parts, options, column, lambda rows: self._target(rows, classes).values)
        cells: dict[str, Columns] = {}
        for split, rows in splits.items():
            _check_signs(rows, signs)
            splits[split], cells[split], line = without_empty(rows, self._cells(rows, schema))
            remarks += [] if line is None else [f"{split}: {line}"]
            # What the inputs were read from is not held beside them.
            splits[split] = splits[split].only((options.target, schema.identity))
        del parts, first, rows
        self._parts = {}
        columns = {
            name: vars(one) | {"state": self._fitted(one.kind, name, cells["train"][name], splits["train"].where)}
            for name, one in schema.inputs.items()
        }
        for split, rows in splits.items():
            _check_fit(rows.where, columns, cells[split])
        self._notes = {
            "task": task,
            "classes": classes,
            "columns": columns,
            "identity": schema.identity,
            "decimal": decimal,
            "signs": signs,
        }
        self._plan = plan_of(columns)
        present = {split: presence(cells[split], self._plan) for split in splits}
        for split, rows in splits.items():
            check_some(rows, present[split])
        lacking = {name for flags in present.values() for name, there in flags.items() if not there.all()}
        names = "labels" if task == MULTILABEL else "classes"
        target = f"{options.target}, {task} ({reason})"
        target += "" if classes is None else f", {len(classes)} {names}: {listed(classes, 10)}"
        missing = {name: sum(part[name].null_count for part in cells.values()) for name in schema.inputs}
        self._notes["taken"] = [
            *self._lines,
            f"target: {target}",
            *column_lines(schema, columns, missing),
            *remarks,
            *(f"missing: {line}" for line in context.bad),
            *context.remarks,
            f"rows: {', '.join(f'{split} {len(rows)}' for split, rows in splits.items())}, {how}",
        ]
        bytes_of = None
        for split, rows in splits.items():
            some = {name: present[split][name] for name in sorted(lacking)}
            found = self._target(rows, classes)
            bytes_of = bytes_of or self._probed(split, rows, cells[split], found, some)
            yield from raw_shards(split, rows, cells[split], found, some, schema.identity, bytes_of)

    def read_new(self, sources: list[Path], trained: Manifest, split: str | None) -> Iterator[RawShard]:
        """Yields the rows of a table with or without target, encoded with what was learned in training."""
        # A run of an older version has it among its options alone.
        given = POINT if self.options.decimal == AUTO else self.options.decimal
        context = self._with_decimal(trained.notes.get("decimal", given))
        columns = {
            name: one | {"state": COLUMN_KINDS.get(one["kind"]).again(one["state"], context)}
            for name, one in trained.notes["columns"].items()
        }
        self._notes = trained.notes | {"columns": columns}
        self._plan = plan_of(columns)
        rows = rows_to_predict(self._parts, split, self.options)
        for name in columns:
            rows.check_column("column", name)
        _check_signs(rows, trained.notes.get("signs", {}))
        cells = {name: COLUMN_KINDS.get(one["kind"]).read(rows.cells(name), context) for name, one in columns.items()}
        _check_fit(rows.where, columns, cells)
        for line in context.bad:
            print(f"missing: {one_line(line)}", file=sys.stderr)
        present = presence(cells, self._plan)
        check_some(rows, present)
        some = {name: there for name, there in present.items() if not there.all()}
        found = self._target(rows, trained.notes["classes"])
        bytes_of = self._probed(PREDICT, rows, cells, found, some)
        yield from raw_shards(PREDICT, rows, cells, found, some, trained.notes["identity"], bytes_of, labelled=True)

    def stages(self) -> tuple[Stage, ...]:
        """Returns the encoding of cells, and that by frozen encoders if there are any."""
        with_models = {name: columns for name, columns in self._plan.items() if len(columns) == 1 and columns[0].pooled}
        encode = Stage(make=functools.partial(EncodeCells, plan=self._plan))
        if not with_models:
            return (encode,)
        make = functools.partial(EncodeWithModels, with_models, self._plan, self._context)
        return encode, Stage(make=make, pooled=True)

    def notes(self) -> dict[str, Any]:
        """Returns task and classes, what was learned of every column, kinds of the modalities, and lines about the table."""
        return self._notes

    def specs(self, first: RawShard) -> Mapping[str, TensorSpec]:
        """Returns the shapes of the first sample, which `read` has encoded already."""
        return self._specs

    def demonstration(self, folder: Path, seed: int) -> Path:
        """Writes `table-<seed>.csv`: products with a title, numbers, categories and a class."""
        return write_demonstration(folder / f"table-{seed}.csv", seed)

    def task(self, manifest: Manifest) -> Task:
        """Returns the task that the target means."""
        classes = manifest.notes["classes"]
        if manifest.notes["task"] == MULTILABEL:
            return MultiLabel(len(classes))
        return Regression(sentiment=False) if classes is None else Classification(len(classes))

    def takes(self, modality: str, trained: tuple[int, ...], found: tuple[int, ...]) -> bool:
        """Returns whether the shapes are equal."""
        return trained == found

    def kinds(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, str]:
        """Returns the kinds that the columns have."""
        return {name: manifest.notes["kinds"][name] for name in modalities}

    def shapes(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes in the shards, or those of the states of encoders that are trained."""
        found = super().shapes(manifest, modalities)
        return found | {name: states_shape(one, found[name]) for name, one in trained_columns(manifest, found).items()}

    def pretrained(self, manifest: Manifest, modalities: tuple[str, ...]) -> dict[str, Callable[[bool], nn.Module]]:
        """Returns the encoders that are trained."""
        stored = super().shapes(manifest, modalities)
        return {
            name: functools.partial(build_model, state, stored[name])
            for name, state in trained_columns(manifest, modalities).items()
        }

    def _found(self, path: Path, new: bool = False) -> TableFiles:
        """Finds the files, and makes what the kinds of columns receive."""
        self._files = find_tables(path)
        given = self.options.media_path
        media = self._files.root if given is None else as_path(given).expanduser().absolute()
        if new and not media.is_dir():
            media = self._files.root
        if not media.is_dir():
            raise DataError(f"media_path: {media} is no folder; expected the folder below which images lie")
        self._context = Context(
            options=self.options,
            media=media,
            shard_root=self.settings.shard_root,
            no_cuda=self.settings.no_cuda,
            bad=[],
            remarks=[],
        )
        return self._files

    def _model_files(self) -> list[Path]:
        """Returns the files of the encoders that the options name."""
        flags = {flag: getattr(self.options, flag) for flag in MODELS}
        return [file for flag, value in flags.items() if value is not None for file in find_model(flag, value).files]

    def _cells(self, rows: Rows, schema: Schema) -> dict[str, pa.Array]:
        """Returns the checked cells of every input."""
        for name in schema.inputs:
            rows.check_column("column", name)
        return {
            name: COLUMN_KINDS.get(one.kind).read(rows.cells(name), self._context)
            for name, one in schema.inputs.items()
        }

    def _fitted(self, kind: str, name: str, cells: pa.Array, where: str) -> Any:
        """Returns what a kind learns from a column; its errors about the column name the file too."""
        try:
            return COLUMN_KINDS.get(kind).fit(name, cells, self._context)
        except DataError as error:
            if str(error).startswith("column "):
                raise DataError(f"{where}, {error}") from None
            raise

    def _target(self, rows: Rows, classes: list[str] | None) -> Target:
        """Returns the target of rows, which may lack it."""
        several = self._notes["task"] == MULTILABEL
        if self.options.target not in rows.table.column_names:
            numbers = 1 if classes is None else len(classes)
            one = classes is not None and not several
            empty = np.zeros(len(rows), np.int64) if one else np.zeros((len(rows), numbers), np.float32)
            return Target(values=empty, labelled=np.zeros(len(rows), bool))
        if several and classes is not None:
            return read_labels(rows.cells(self.options.target), classes, self.options.label_separator)
        return read_target(rows.cells(self.options.target), classes, self._context.options)

    def _decimal(self, rows: Rows) -> tuple[str, list[str]]:
        """Returns the decimal mark of the table, and lines about it."""
        if self.options.decimal != AUTO:
            return self.options.decimal, []
        # Several labels with a comma between them, such as 3,5, say nothing of it.
        return decimal_mark(rows, (self.options.target,) if self.options.label_separator else ())

    def _with_decimal(self, decimal: str) -> Context:
        """Returns what kinds receive from now on, with the decimal mark that was found."""
        self._context = dataclasses.replace(self._context, options=dataclasses.replace(self.options, decimal=decimal))
        return self._context

    def _probed(self, split: str, rows: Rows, cells: Columns, target: Target, present: Mapping[str, np.ndarray]) -> int:
        """Takes the first row through the stages, keeps the shapes of its features, and returns the bytes that it takes."""
        first = np.arange(1)
        one = {name: values.slice(0, 1) for name, values in cells.items()}
        head = Target(values=target.values[:1], labelled=target.labelled[:1])
        flags = {name: there[:1] for name, there in present.items()}
        (shard,) = raw_shards(split, rows.take(first), one, head, flags, None, 1)
        table, most = shard.table, shard.table.nbytes
        for stage in self.stages():
            table = stage.make()(table)
            most = max(most, table.nbytes)
        self._specs = table_specs(table)
        self._notes["kinds"] = {
            modality: columns[0].kind.input_kind(columns[0].state, self._specs[modality].shape)
            for modality, columns in self._plan.items()
        }
        return most


def _check_signs(rows: Rows, signs: Mapping[str, str]) -> None:
    """Raises a DataError for a number with another sign than those of training; new data may lack the target."""
    for name, sign in signs.items():
        if name in rows.table.column_names:
            check_sign(rows.cells(name), sign)


def _check_fit(where: str, columns: Mapping[str, Mapping[str, Any]], cells: Columns) -> None:
    """Raises a DataError for a column whose cells are others than those of training, such as arrays of another shape."""
    for name, one in columns.items():
        problem = COLUMN_KINDS.get(one["kind"]).problem(cells[name], one["state"])
        if problem is not None:
            raise DataError(f"{where}, column {name}: {problem}")
