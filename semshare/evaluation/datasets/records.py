"""Records of a public dataset as a user has it: a local file, or what `datasets` has cached.

`<folder>/<name>.jsonl` comes before `<folder>/<name>.parquet`, and both before the package. Nothing
is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from semshare.errors import InvalidRequest, ModelNotAvailable
from semshare.evaluation.datasets.base import Presence

DATA_VARIABLE = "SEMSHARE_DATA"


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the `datasets` package finds a set: `load_dataset(path, config, split=split)`."""

    path: str
    config: str | None = None
    split: str = "test"

    def __str__(self) -> str:
        config = "" if self.config is None else f', "{self.config}"'
        return f'load_dataset("{self.path}"{config}, split="{self.split}")'


@dataclass(frozen=True, slots=True)
class Record:
    """One line or row, and where it stands, for whoever has to mend it."""

    where: str  # file or set, and the number of the line or row from 1
    number: int
    values: Mapping[str, Any]

    def field(self, names: Sequence[str]) -> Any:
        """The first of the fields of these names that is there and not null.

        Raises:
            InvalidRequest: none is.

        """
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        raise InvalidRequest(
            f"{self.where} has no field {' or '.join(names)}; it has {', '.join(self.values)}"
        )

    def text(self, names: Sequence[str]) -> str:
        """A field of text, or of a list of texts, which become its lines.

        Raises:
            InvalidRequest: there is no such field, or it holds something else or no words.

        """
        value = self.field(names)
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if not isinstance(value, str) or not value.strip():
            raise self.malformed(names, value, "text")
        return value

    def texts(self, names: Sequence[str]) -> tuple[str, ...]:
        """A field of one text or of several.

        Raises:
            InvalidRequest: there is no such field, or it holds something else or nothing.

        """
        value = self.field(names)
        found = [value] if isinstance(value, str) else value
        if (
            not isinstance(found, list)
            or not found
            or not all(isinstance(text, str) and text.strip() for text in found)
        ):
            raise self.malformed(names, value, "a text or a list of texts")
        return tuple(found)

    def malformed(self, names: Sequence[str], value: object, wanted: str) -> InvalidRequest:
        """What is wrong with a field's value, to be raised."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        return InvalidRequest(f"{self.where}: field {names[0]} is {shown}: it must be {wanted}")


def presence_of(name: str, hub: Hub, folder: Path | None) -> Presence:
    """Whether a set's file is there, or the package that may have it; neither is opened."""
    file = _file_of(name, folder)
    if file is not None:
        return Presence(str(file))
    try:
        version = metadata.version("datasets")
    except metadata.PackageNotFoundError:
        return Presence(None, _how_to_get(name, hub, folder))
    return Presence(f"datasets {version}, if {hub} is cached")


def records_of(name: str, hub: Hub, folder: Path | None) -> Iterator[Record]:
    """The set's records, in its order, read as they are asked for.

    Args:
        name: of the set and of its file.
        hub: where the `datasets` package has it.
        folder: of the user's files; the one that SEMSHARE_DATA names if None.

    Raises:
        ModelNotAvailable: there is neither a file nor a cached set, or no package to read it.
        InvalidRequest: a line or a file can't be read.

    """
    file = _file_of(name, folder)
    if file is None:
        return _cached(name, hub, folder)
    return _lines(file) if file.suffix == ".jsonl" else _rows(file)


def _folder(folder: Path | None) -> Path | None:
    named = os.environ.get(DATA_VARIABLE)
    return folder or (Path(named) if named else None)


def _file_of(name: str, folder: Path | None) -> Path | None:
    folder = _folder(folder)
    if folder is None:
        return None
    files = (folder / f"{name}.jsonl", folder / f"{name}.parquet")
    return next((file for file in files if file.is_file()), None)


def _how_to_get(name: str, hub: Hub, folder: Path | None) -> str:
    found = _folder(folder)
    place = "a folder that --data-dir or SEMSHARE_DATA names" if found is None else str(found)
    return (
        f"{name}.jsonl or {name}.parquet is missing: put it into {place}, "
        f"or pip install datasets and load it once: {hub}"
    )


def _lines(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise InvalidRequest(f"{where} is not JSON: {error}") from None
            if not isinstance(values, dict):
                raise InvalidRequest(f"{where} holds no object: one record a line, in braces")
            yield Record(where, number, values)


def _rows(file: Path) -> Iterator[Record]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(
            f'{file} needs the package pyarrow: pip install "semshare[eval]"'
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{file}, row {number}", number, values)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise InvalidRequest(f"can't read {file} after row {number}: {error}") from error


def _cached(name: str, hub: Hub, folder: Path | None) -> Iterator[Record]:
    if importlib.util.find_spec("datasets") is None:
        raise ModelNotAvailable(_how_to_get(name, hub, folder))
    # Read when the package is imported. An evaluation that begins with gigabytes of download is
    # nobody's wish; who wants it says so with 0.
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    datasets = importlib.import_module("datasets")
    try:
        rows = datasets.load_dataset(hub.path, hub.config, split=hub.split)
    except Exception as error:  # its errors have no base of their own
        raise ModelNotAvailable(
            f"{_how_to_get(name, hub, folder)} (the package says: {error})"
        ) from error
    return (
        Record(f"{hub.path}, row {number}", number, values)
        for number, values in enumerate(rows, start=1)
    )
