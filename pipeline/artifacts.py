"""Parquet in and out, digests, and files that are written whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.records import Row

ROW_GROUP = 16_384
"""Rows a row group: fixed, so that the same rows give the same bytes however they were batched on the way."""


SORTED_AT_ONCE = 8_192
"""Rows that Sorter sorts in memory."""

SORTED_PARTS = 64
"""Parts that it sorts more rows in; one part must fit into memory."""


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Row] | pa.Table | Iterable[pa.RecordBatch]) -> int:
    """Write rows that are already in the order they should have to a Parquet file (zstd), fsync it, and return how
    many there were. Streams: at most two row groups are in memory. `rows`: dictionaries, a table, or record batches.

    Raises OSError if the disk refuses, pyarrow.ArrowInvalid if a value does not fit its column.
    """
    return write_tables([(path, schema)], ([batch] for batch in _batches_of(schema, rows)))[0]


def write_tables(tables: Sequence[tuple[Path, pa.Schema]], parts: Iterable[Sequence[pa.RecordBatch]]) -> list[int]:
    """`write_table` for several tables at once, so that what is sorted into them is read only once. `parts`: one batch
    (it may be empty) for each of `tables`, again and again. Returns how many rows each table has. Raises the same."""
    written = [0] * len(tables)
    pending: list[list[pa.RecordBatch]] = [[] for _ in tables]  # rows that do not fill a row group yet
    with ExitStack() as opened:
        # File objects of ours, not paths: a full disk then is an OSError with its errno, not an Arrow message.
        files = [opened.enter_context(path.open("wb")) for path, _ in tables]
        with ExitStack() as writing:
            writers = [
                writing.enter_context(pq.ParquetWriter(file, schema, compression="zstd", write_page_index=False))
                for file, (_, schema) in zip(files, tables, strict=True)
            ]

            def write(number: int, group: pa.Table) -> None:
                writers[number].write_table(group.combine_chunks(), row_group_size=ROW_GROUP)
                written[number] += group.num_rows

            for part in parts:
                for number, batch in enumerate(part):
                    if not batch.num_rows:
                        continue
                    schema = tables[number][1]
                    pending[number].append(batch.cast(schema) if batch.schema != schema else batch)
                    while sum(map(len, pending[number])) >= ROW_GROUP:
                        table = pa.Table.from_batches(pending[number], schema=schema)
                        write(number, table.slice(0, ROW_GROUP))
                        pending[number] = table.slice(ROW_GROUP).to_batches()
            for number, rest in enumerate(pending):
                if rest:
                    write(number, pa.Table.from_batches(rest, schema=tables[number][1]))
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return written


def _batches_of(schema: pa.Schema, rows: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    """Record batches of any input."""
    if isinstance(rows, pa.Table):
        rows = rows.to_batches()
    buffered: list[Row] = []
    for item in rows:
        if isinstance(item, pa.RecordBatch):
            yield item
            continue
        buffered.append(item)
        if len(buffered) == ROW_GROUP:
            yield pa.RecordBatch.from_pylist(buffered, schema=schema)
            buffered = []
    if buffered:
        yield pa.RecordBatch.from_pylist(buffered, schema=schema)


class Sorter:
    """Rows in any order in, a Parquet file sorted by id out. More than SORTED_AT_ONCE rows are sorted in
    SORTED_PARTS parts by the ids' first digits, on disk, with one part in memory at a time."""

    def __init__(self, out: Path, table: str, schema: pa.Schema) -> None:
        self._out, self._table, self._schema = out, table, schema
        self._rows: list[Row] = []
        self._parts: dict[int, tuple[pa.OSFile, pa.RecordBatchStreamWriter]] = {}

    def add(self, rows: list[Row]) -> None:
        """Take some rows."""
        self._rows += rows
        if len(self._rows) >= SORTED_AT_ONCE:
            self._spill()

    def write(self) -> int:
        """Write TABLE.parquet and return its rows."""
        if self._parts:
            self._spill()
        for file, writer in self._parts.values():
            writer.close()
            file.close()
        rows = self._sorted() if self._parts else sorted(self._rows, key=lambda row: str(row["id"]))
        return write_table(self._out / f"{self._table}.parquet", self._schema, rows)

    def _spill(self) -> None:
        parts: dict[int, list[Row]] = {}
        for row in self._rows:
            parts.setdefault(int(row["id"][:2], 16) * SORTED_PARTS // 256, []).append(row)
        self._rows = []
        for part, rows in parts.items():
            if part not in self._parts:
                file = pa.OSFile(str(self._path(part)), "wb")
                self._parts[part] = (file, pa.ipc.new_stream(file, self._schema))
            self._parts[part][1].write_batch(pa.RecordBatch.from_pylist(rows, schema=self._schema))

    def _sorted(self) -> Iterator[pa.RecordBatch]:
        for part in sorted(self._parts):
            with pa.OSFile(str(self._path(part)), "rb") as file:
                table = pa.ipc.open_stream(file).read_all()
            yield from table.sort_by("id").to_batches()
            self._path(part).unlink()

    def _path(self, part: int) -> Path:
        return self._out / f".{self._table}.{part}"


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A whole table, or some of its columns."""
    return pq.read_table(path, columns=columns, partitioning=None)


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table as record batches of at most ROW_GROUP rows; the next is read while the caller works on one."""
    # pre_buffer would hold the compressed bytes of the whole file.
    with pq.ParquetFile(path, pre_buffer=False) as file, ThreadPoolExecutor(1) as reader:
        batches = file.iter_batches(batch_size=ROW_GROUP, columns=columns)
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def check(path: Path, schema: pa.Schema, writer: str) -> int:
    """How many rows a table has that the stage `writer` wrote. Raises UserError if it lacks a column of the schema, has
    one of another type, or has no rows."""
    there = pq.read_schema(path)
    for field in schema:
        if field.name not in there.names:
            raise UserError(f"{path} has no column {field.name!r}. Make it again with --from {writer}.")
        found = there.field(field.name).type
        if found != field.type:
            raise UserError(
                f"{path}: the column {field.name!r} has type {found}, not {field.type}. Make it again with "
                f"--from {writer}."
            )
    rows = count_rows(path)
    if not rows:
        raise UserError(f"{path} has no rows: nothing was left by {writer}. `seqkd status` says why.")
    return rows


def read_texts(
    path: Path, columns: list[str] | None = None, mend: str = "Make it again.", needed: Iterable[str] = ()
) -> Iterator[pa.RecordBatch]:
    """`read_batches` for columns of text: Arrow reads bytes that are no UTF-8 without a word, and later steps would
    stumble over them, as over a null in one of the columns `needed`. Raises UserError, which names the row and the
    column and ends with `mend`, what to do about it."""
    done = 0
    for batch in read_batches(path, columns):
        if _damage(batch):
            for row in range(batch.num_rows):
                if said := _damage(batch.take(pa.array([row]))):
                    raise UserError(f"{path}: row {done + row + 1:,} is damaged ({said}). {mend}")
        for name in needed:
            if (null := first_null(batch.column(name))) is not None:
                raise UserError(f"{path}: row {done + null + 1:,} has no {name} (null). {mend}")
        yield batch
        done += batch.num_rows


def first_null(column: pa.Array) -> int | None:
    """The first place at which a column is null, or a list of messages has one without content, if there is one."""
    nulls = column.is_null()
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        nulls = nulls.to_numpy(zero_copy_only=False).copy()
        without = pc.is_null(pc.struct_field(column.flatten(), "content"))
        nulls[pc.list_parent_indices(column).filter(without).to_numpy()] = True
        nulls = pa.array(nulls)
    row: int = pc.index(nulls, True).as_py()
    return None if row < 0 else row


def _damage(batch: pa.RecordBatch) -> str | None:
    """What makes a batch invalid, None if nothing does."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        # "In column 1: Invalid: List child array invalid: ...: Invalid UTF8 sequence at string index 0"
        column, _, reason = str(error).removeprefix("In column ").partition(": ")
        reason = reason.rpartition("Invalid: ")[2].partition(" at string index")[0]
        return f"{batch.schema.names[int(column)]}: {reason}" if column.isdigit() else str(error)
    return None


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """A table as dictionaries, one batch in memory at a time."""
    for batch in read_batches(path, columns):
        yield from batch.to_pylist()


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return pq.read_metadata(path).num_rows


def text_bytes(path: Path, columns: Sequence[str]) -> int:
    """About how much text some columns hold: their uncompressed size, from the footer; of JSONL the file's."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    footer = pq.read_metadata(path)
    total = 0
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            if chunk.path_in_schema.partition(".")[0] in columns:
                total += chunk.total_uncompressed_size
    return total


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


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
