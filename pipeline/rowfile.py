"""Rows of a file that a user brings: JSONL, CSV, Parquet, or the folder of a saved Hugging Face data set.

Nothing is believed: a line of a hundred megabytes, nested brackets, bytes that are no text all end in an error that
says where.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.artifacts import read_batches
from pipeline.errors import RecipeError, where

MAX_LINE = 8 * 2**20
"""Bytes of one line."""


def read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of each row, in the file's order: a dictionary, or whatever else a line of JSON holds. `line` is the
    line of the file, in Parquet and Arrow the number of the row, from 1.

    Raises RecipeError (FILE:LINE: what is wrong).
    """
    if path.is_dir():
        # `save_to_disk` writes Arrow streams; a data set that was downloaded has Parquet files.
        files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
        if not files:
            raise RecipeError(f"{path}: has no .parquet or .arrow files. Save a data set in it, or name a file.")
        for file in files:
            yield from _read_columns(file)
    elif path.suffix in (".parquet", ".arrow"):
        yield from _read_columns(path)
    elif path.suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    else:
        raise RecipeError(f"{path}: is not a .jsonl, .csv or .parquet file, nor the folder of a data set.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """A file's lines with their numbers. A line that is too long is refused before it is read."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                raise RecipeError(f"{where(path, number)}: is longer than {MAX_LINE:,} bytes. Is a newline missing?")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise RecipeError(f"{where(path, number)}: is not UTF-8 text. Save the file as UTF-8.") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise RecipeError(f"{where(path, number)}: is not JSON: {problem}.") from None


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_LINE)
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        for row in reader:
            if None in row:
                place = where(path, reader.line_num)
                raise RecipeError(f"{place}: has more fields than the header. Is a quote missing?")
            yield reader.line_num, row
    except csv.Error as error:
        # Its own count: that of DictReader stays at the last row that was read.
        raise RecipeError(f"{where(path, reader.reader.line_num or 1)}: is not CSV: {error}.") from None


def _read_columns(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for batch in read_batches(path) if path.suffix == ".parquet" else _arrow_batches(path):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where(path, number or None)}: cannot be read as a data set: {error}.") from None


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)
