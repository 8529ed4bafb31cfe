"""Parquet in and out, digests, and files that are written whole or not at all."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.records import KEPT, Row

ROW_GROUP = 16_384
"""Rows a row group: fixed, so that the same rows give the same bytes however they were batched on the way."""


GROUP_TEXT = 512 << 20
"""Bytes of text from which a row group has fewer rows: Arrow counts a column's text in 31 bits."""

BATCH_BYTES = 64 << 20
"""Bytes from which a batch that is read has fewer rows than ROW_GROUP; a single row may have more."""

SURE_BYTES = 1 << 30
"""Bytes of a row group that are read in one piece without asking how long its rows are."""

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
                    while rows := _full_group(pending[number]):
                        table = pa.Table.from_batches(pending[number], schema=schema)
                        write(number, table.slice(0, rows))
                        pending[number] = table.slice(rows).to_batches()
            for number, rest in enumerate(pending):
                if rest:
                    write(number, pa.Table.from_batches(rest, schema=tables[number][1]))
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return written


def _full_group(batches: Sequence[pa.RecordBatch]) -> int:
    """How many of the rows make a row group, 0 if they do not fill one: ROW_GROUP, or those up to the one with which
    they have GROUP_TEXT bytes of text. It depends on the rows alone, not on how they are cut into batches."""
    rows = sum(map(len, batches))
    if sum(batch.nbytes for batch in batches) >= GROUP_TEXT:
        text = np.cumsum(np.concatenate([_text_sizes(batch.to_struct_array()) for batch in batches]))
        rows_with = int(np.searchsorted(text, GROUP_TEXT)) + 1
        if rows_with <= min(rows, ROW_GROUP):
            return rows_with
    return ROW_GROUP if rows >= ROW_GROUP else 0


def _text_sizes(column: pa.Array) -> NDArray[np.int64]:
    """(n,) bytes of text in each value of a column, those inside lists and structs included."""
    if pa.types.is_string(column.type):
        return pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    sizes = np.zeros(len(column), np.int64)
    if pa.types.is_struct(column.type):
        for part in column.flatten():
            sizes += _text_sizes(part)
    elif pa.types.is_list(column.type):
        ends = np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
        sizes += np.diff(np.append(0, np.cumsum(_text_sizes(column.flatten())))[np.append(0, ends)])
    return sizes


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


def read_batches(
    path: Path, columns: list[str] | None = None, schema: pa.Schema | None = None
) -> Iterator[pa.RecordBatch]:
    """A table as record batches of at most ROW_GROUP rows and, unless one row has more, about BATCH_BYTES; the next is
    read while the caller works on one. Columns of `schema` get its types, which they must fit."""
    # pre_buffer would hold the compressed bytes of the whole file.
    with pq.ParquetFile(path, pre_buffer=False) as file, ThreadPoolExecutor(1) as reader:
        batches = _cut(path, file, columns, schema)
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _cut(
    path: Path, file: pq.ParquetFile, columns: list[str] | None, schema: pa.Schema | None
) -> Iterator[pa.RecordBatch]:
    """Batches of ROW_GROUP rows, over the borders of row groups, or of fewer where these have too many bytes."""
    held: list[pa.RecordBatch] = []
    pieces = itertools.chain.from_iterable(_pieces(file, n, columns) for n in range(file.num_row_groups))
    for batch in itertools.chain.from_iterable(_typed(path, piece, schema) for piece in pieces):
        begin = 0
        while begin < batch.num_rows:
            rows = min(batch.num_rows - begin, ROW_GROUP - sum(map(len, held)))
            # Halved rather than cut at the very row: what counts is that no batch is many times too large.
            while rows > 1 and batch.slice(begin, rows).nbytes > BATCH_BYTES:
                rows //= 2
            # Copied, not sliced: Arrow makes no list of the offsets of a slice and a mask.
            piece = batch if rows == batch.num_rows else batch.take(pa.array(np.arange(begin, begin + rows)))
            begin += rows
            if held and sum(one.nbytes for one in held) + piece.nbytes > BATCH_BYTES:
                yield _joined(held)
            held.append(piece)
            if sum(map(len, held)) >= ROW_GROUP:
                yield _joined(held)
    if held:
        yield _joined(held)


def _joined(held: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Some batches as one, taken out of the list, so that nobody holds them twice."""
    joined = pa.concat_batches(held) if len(held) > 1 else held[0]
    held.clear()
    return joined


def _typed(path: Path, batch: pa.RecordBatch, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    """A batch with the types of a schema, in several parts where its text has more bytes than one can hold."""
    wanted = pa.schema([schema.field(f.name) if schema and f.name in schema.names else f for f in batch.schema])
    if batch.schema.equals(wanted):
        yield batch
        return
    try:
        yield batch.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowCapacityError) as error:
        half = batch.num_rows // 2
        if not half:
            raise UserError(f"{path}: a value does not fit its column ({error}). Mend the file.") from None
        for rows in (range(half), range(half, batch.num_rows)):
            # Taken, not sliced: of a slice of lists the whole of what is in the lists would be cast.
            yield from _typed(path, batch.take(pa.array(rows)), schema)


def _pieces(file: pq.ParquetFile, group: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a row group in their order. Arrow fails where a list's text in one batch has 2 GiB."""
    described = file.metadata.row_group(group)
    size = ROW_GROUP
    if described.total_byte_size * min(ROW_GROUP, described.num_rows) > SURE_BYTES:
        # A dictionary may hold a text once that many rows have; a writer gives up on one that has about a MiB.
        size = 1024 if described.total_byte_size <= SURE_BYTES else 1
    done = 0
    try:
        for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns):
            yield batch
            done += batch.num_rows
    except pa.ArrowNotImplementedError:
        if size == 1:
            raise
        for number, batch in enumerate(file.iter_batches(batch_size=1, row_groups=[group], columns=columns)):
            if number >= done:
                yield batch


def check(path: Path, schema: pa.Schema, writer: str) -> int:
    """How many rows a table has that the stage `writer` wrote. Raises UserError if it lacks a column of the schema, has
    one of a type that does not fit, or has no rows."""
    there = pq.read_schema(path)
    for field in schema:
        if field.name not in there.names:
            raise UserError(f"{path} has no column {field.name!r}. Make it again with --from {writer}.")
        found = there.field(field.name).type
        if not fits(found, field.type):
            raise UserError(
                f"{path}: the column {field.name!r} has type {found}, not {field.type}. Make it again with "
                f"--from {writer}."
            )
    rows = count_rows(path)
    if not rows:
        raise UserError(f"{path} has no rows: nothing was left by {writer}. `seqkd status` says why.")
    return rows


def fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column has the same data as one of ours, however another program writes it down: texts with 64-bit
    offsets, as dictionaries or views, and null where no row has a value (pandas, polars, datasets)."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if pa.types.is_list(wanted):
        return _is_list(found) and fits(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        fields = {field.name: field.type for field in wanted}
        return (
            pa.types.is_struct(found)
            and {field.name for field in found} == fields.keys()
            and all(fits(field.type, fields[field.name]) for field in found)
        )
    if pa.types.is_integer(wanted) and (pa.types.is_integer(found) or pa.types.is_floating(found)):
        return True  # pandas has no null among whole numbers
    return bool(found == wanted)


def _is_list(found: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(is_kind(found) for is_kind in kinds)


def read_texts(
    path: Path, columns: list[str] | None = None, mend: str = "Make it again.", needed: Iterable[str] = ()
) -> Iterator[pa.RecordBatch]:
    """`read_batches` for a table of completions: Arrow reads bytes that are no UTF-8 without a word, and later steps
    would stumble over them, as over a null in one of the columns `needed`. Raises UserError, which names the row and
    the column and ends with `mend`, what to do about it."""
    done = 0
    for batch in read_batches(path, columns, KEPT):
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
    """The first place at which a column `is_missing`, if there is one."""
    row: int = pc.index(is_missing(column), True).as_py()
    return None if row < 0 else row


def is_missing(column: pa.Array) -> pa.Array:
    """Where a column is null, or has a list of messages one of which is null or without role or content."""
    nulls = column.is_null()
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        nulls = nulls.to_numpy(zero_copy_only=False).copy()
        for name in ("role", "content"):
            without = pc.is_null(pc.struct_field(column.flatten(), name))
            nulls[pc.list_parent_indices(column).filter(without).to_numpy()] = True
        nulls = pa.array(nulls)
    return nulls


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
