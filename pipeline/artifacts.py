"""Parquet in and out, digests, and files that are written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Row

ROW_GROUP = 16_384
"""Rows a row group: fixed, so that the same rows give the same bytes however they were batched on the way."""


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Row] | pa.Table | Iterable[pa.RecordBatch]) -> int:
    """Write rows that are already in the order they should have to a Parquet file (zstd), fsync it, and return how
    many there were. Streams: at most two row groups are in memory. `rows`: dictionaries, a table, or record batches.

    Raises OSError if the disk refuses, pyarrow.ArrowInvalid if a value does not fit its column.
    """
    written = 0
    # A file object of ours, not a path: a full disk then is an OSError with its errno, not an Arrow message.
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", write_page_index=False) as writer:
            for group in _groups(schema, rows):
                writer.write_table(group, row_group_size=ROW_GROUP)
                written += group.num_rows
        file.flush()
        os.fsync(file.fileno())
    return written


def _groups(schema: pa.Schema, rows: Iterable[Any]) -> Iterator[pa.Table]:
    """Cut any input into tables of exactly ROW_GROUP rows (the last one shorter)."""
    if isinstance(rows, pa.Table):
        rows = rows.to_batches()
    pending: list[pa.RecordBatch] = []
    buffered: list[Row] = []
    count = 0
    for item in rows:
        if isinstance(item, pa.RecordBatch):
            pending.append(item.cast(schema) if item.schema != schema else item)
            count += item.num_rows
        else:
            buffered.append(item)
            if len(buffered) < ROW_GROUP:
                continue
            pending.append(pa.RecordBatch.from_pylist(buffered, schema=schema))
            count += len(buffered)
            buffered = []
        while count >= ROW_GROUP:
            table = pa.Table.from_batches(pending, schema=schema)
            yield table.slice(0, ROW_GROUP).combine_chunks()
            rest = table.slice(ROW_GROUP)
            pending, count = rest.to_batches(), rest.num_rows
    if buffered:
        pending.append(pa.RecordBatch.from_pylist(buffered, schema=schema))
        count += len(buffered)
    if count:
        yield pa.Table.from_batches(pending, schema=schema).combine_chunks()


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A whole table, or some of its columns."""
    return pq.read_table(path, columns=columns, partitioning=None)


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table as record batches of at most ROW_GROUP rows, one in memory at a time."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROW_GROUP, columns=columns)


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """A table as dictionaries, one batch in memory at a time."""
    for batch in read_batches(path, columns):
        yield from batch.to_pylist()


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return pq.read_metadata(path).num_rows


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents, hidden files left out. Raises OSError."""
    if not path.is_dir():
        return file_digest(path)
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith((".", "__")) for part in name.parts):
            total.update(f"{name.as_posix()}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file, fsynced."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, fsynced."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(path: Path) -> None:
    """fsync a folder (or a file), so that names made or renamed in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """fsync every file and folder under a folder, and the folder itself: libraries do not all sync what they wrote."""
    for inside in path.rglob("*"):
        sync_folder(inside)
    sync_folder(path)
