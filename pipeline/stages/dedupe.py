"""dedupe: drop rows that repeat another one, exactly or nearly.

Reads filter's kept rows, writes

    kept.parquet         the rows that repeat nothing
    duplicates.parquet   the others, each with the kept row that it repeats and how similar it is

Compared are the words of prompt and answer together (`on: pair`), or of one of them; pipeline/near.py says what a word
is and how similar pairs are found. Two rows are *exact* duplicates if their words are the same in the same order, and
*near* duplicates if the Jaccard similarity of their sets of word 5-grams is at least `near.threshold`. A text of fewer
than five words is similar to its equals only. For pairs the answers must besides be half as similar as that by
themselves, so that two questions about one long passage are not the same because the passage is.

The best row of a group is kept: by the judge's score, then the reward model's, then agreement, as far as filter noted
them, then the first by id. Rows are taken from the best to the worst; a
row repeats the most similar of the rows kept before it, or is kept. Rows of `against`, a data set that exists already,
come before all others and are not written.

With `semantic`, rows that are left repeat each other if the vectors that a model makes of their texts are similar.

The table is read three times and never held: what is remembered are 128 bits of fingerprint and the band keys of each
row, and the shingles of rows that met another one in a bucket, at most SHINGLES_AT_ONCE of them at a time; with
`semantic`, the vectors of the rows that are left.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import artifacts, near, questions
from pipeline.errors import RecipeError, UserError, where
from pipeline.near import Rows
from pipeline.progress import progress
from pipeline.recipe import Dedupe, Recipe
from pipeline.records import DUPLICATES, KEPT, Row

VERSION = 1
SECTIONS = ("dedupe",)
READS = {"kept": "filter"}

SHINGLES_AT_ONCE = 64 << 20
"""Shingles (8 bytes each) of candidates in memory at a time; a group that has more than these is still done whole."""

REASONS = ("exact", "near", "semantic")
"""Why a row repeats another one: the same words in the same order, similar sets of shingles, similar meaning."""

QUALITIES = ("score", "reward", "agreement")
"""Columns that make a row of a group the best, the first one first: filter's judge, its reward model, agreement."""

COMPARED = {"pair": ("messages", "text"), "prompt": ("messages",), "completion": ("text",)}
"""dedupe.on -> the columns that are compared."""


class Tables(NamedTuple):
    """What is compared: a table of kept rows, and a data set that exists already, whose rows are numbered first."""

    own: Path
    against: Path | None = None


class Verdict(NamedTuple):
    """What becomes of each of n rows of the table."""

    leader: pa.Array  # (n,) id of the row that this one repeats, null for a row that is kept
    similarity: NDArray[np.float64]  # (n,) Jaccard similarity to it; cosine if that is the reason
    reason: NDArray[np.int8]  # (n,) place in REASONS, 0 as well for a row that is kept


def sources(recipe: Recipe) -> dict[str, Path]:
    """The data set to compare with, if there is one, and the folder of the model of `semantic`."""
    found, semantic = {}, recipe.dedupe.semantic
    if recipe.dedupe.against:
        found["against"] = recipe.dedupe.against
    if semantic and Path(semantic.model).is_dir():
        found["semantic"] = Path(semantic.model)
    return found


def texts_of(batch: pa.RecordBatch, columns: tuple[str, ...]) -> pa.Array:
    """One text a row: the messages' contents and the answer, as far as they are in `columns`, joined with near.PART.

    Raises UserError if one of them is null."""
    parts = []
    for name in columns:
        column = batch.column(name)
        if name == "messages":
            contents = pc.struct_field(column.values, "content")
            column = pc.binary_join(
                pa.ListArray.from_arrays(column.offsets, contents, mask=column.is_null()), near.PART
            )
        parts.append(column)
    texts = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, near.PART)
    if texts.null_count:
        row = pc.index(pc.is_null(texts), True).as_py()
        raise UserError(
            f"row {batch.column('id')[row].as_py()}: {' or '.join(columns)} is null. Every row needs a text."
        )
    return texts


def find_duplicates(tables: Tables, section: Dedupe) -> Verdict:
    """Say which rows of a table repeat which."""
    on, threshold = section.on, section.near.threshold if section.near else None
    columns = COMPARED[on]
    compiled = sum(text_bytes(path, columns) for path in tables if path) >= near.COMPILE_BYTES
    cut = near.scheme(threshold) if threshold is not None else near.Scheme(0, 1)
    sketches, ids = [], []
    total = artifacts.count_rows(tables.own)
    with progress("dedupe: reading", total, "rows") as advance:
        for batch in _batches(tables, ["id", *columns]):
            sketches.append(near.sketch(texts_of(batch, columns), cut, compiled))
            ids.append(batch.column("id"))
            advance(batch.num_rows)
    fingerprints = np.concatenate([part.fingerprints for part in sketches])
    words = np.concatenate([part.words for part in sketches])
    keys = np.empty((cut.bands, len(words)), np.uint32)
    end = len(words)
    while sketches:  # from the last to the first, giving their memory back on the way
        part = sketches.pop()
        keys[:, end - len(part.words) : end] = part.keys
        end -= len(part.words)
    names = pa.chunked_array(ids)
    there = len(words) - total  # rows of the data set that exists already
    qualities = [quality(tables.own, name) for name in QUALITIES]
    order = np.append(np.arange(there), there + best_first(names[there:], *qualities))

    leader = _exact(fingerprints, order) if section.exact else np.full(len(words), -1, np.int64)
    is_exact = leader >= 0
    similarity = np.ones(len(words))
    if threshold is not None:
        found, similar = _near(tables, columns, words, keys, ~is_exact, order, there, threshold, compiled)
        # A row whose exact copy repeats a third row repeats that one too, and just as nearly.
        copies = np.flatnonzero(is_exact)
        moved = copies[found[leader[copies]] >= 0]
        is_exact[moved] = False
        similarity = similar
        similarity[moved] = similar[leader[moved]]
        found[copies] = leader[copies]
        found[moved] = found[leader[moved]]
        leader = found
    reason = np.where(is_exact, 0, leader >= 0).astype(np.int8)
    if section.semantic:
        from pipeline import semantic

        # Of the rows that are still there, the best first; those of the other data set stay.
        left = order[leader[order] < 0]
        model, wanted = semantic.load(section.semantic.model), COMPARED[section.semantic.on or on]
        ascending = np.sort(left)
        vectors = _vectors(tables, wanted, ascending, model)[np.searchsorted(ascending, left)]
        found, cosine = semantic.choose(vectors, int((left < there).sum()), section.semantic.threshold)
        dropped = found >= 0
        leader[left[dropped]], similarity[left[dropped]] = left[found[dropped]], cosine[dropped]
        reason[left[dropped]] = REASONS.index("semantic")
        # What repeated a row that is dropped now repeats that row's leader, by the same reason and with its similarity:
        # a near copy is not compared with that leader itself.
        moved = np.flatnonzero((leader >= 0) & (leader[leader] >= 0))
        similarity[moved], reason[moved] = similarity[leader[moved]], reason[leader[moved]]
        leader[moved] = leader[leader[moved]]
    leader = leader[there:]
    of = names.take(pa.array(leader, mask=leader < 0)).combine_chunks()
    return Verdict(of, similarity[there:], reason[there:])


def quality(path: Path, column: str) -> NDArray[np.float64]:
    """(n,) a column that says how good each row is; -inf where it says nothing."""
    found = [
        batch.column(column).fill_null(-np.inf).to_numpy(zero_copy_only=False)
        for batch in artifacts.read_batches(path, [column])
    ]
    return np.nan_to_num(np.concatenate(found), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def best_first(ids: pa.ChunkedArray, *qualities: NDArray[np.float64]) -> Rows:
    """Row numbers, the best first: by the first of the qualities, equals by the next one, and at last by id."""
    flat = ids.combine_chunks()
    sorted_already = pc.all(pc.less_equal(flat[:-1], flat[1:])).as_py() is not False
    order = np.arange(len(flat)) if sorted_already else pc.sort_indices(flat).to_numpy()
    for values in reversed(qualities):
        order = order[np.argsort(-values[order], kind="stable")]
    return order.astype(np.int64)


def _vectors(tables: Tables, columns: tuple[str, ...], rows: Rows, model: Any) -> Any:
    """(rows, dimensions) unit vectors of some rows (ascending) of the tables."""
    from pipeline.semantic import embed

    found, begin = [], 0
    with progress("dedupe: embedding", len(rows), "rows") as advance:
        for batch in _batches(tables, ["id", *columns]):
            first, last = np.searchsorted(rows, [begin, begin + batch.num_rows])
            if last > first:
                texts = texts_of(batch.take(pa.array(rows[first:last] - begin)), columns)
                found.append(embed(model, texts))
                advance(int(last - first))
            begin += batch.num_rows
    return np.concatenate(found)


def _exact(fingerprints: near.Bits, order: Rows) -> Rows:
    """For each row the best row with the same fingerprint, -1 for the best one itself."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_print = np.lexsort((rank, fingerprints[:, 1], fingerprints[:, 0]))
    ordered = fingerprints[by_print]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    best = by_print[np.flatnonzero(first)][np.cumsum(first) - 1]
    leader = np.full(len(order), -1, np.int64)
    leader[by_print[~first]] = best[~first]
    return leader


def _near(
    tables: Tables,
    columns: tuple[str, ...],
    words: Rows,
    keys: NDArray[np.uint32],
    alive: NDArray[np.bool_],
    order: Rows,
    there: int,
    threshold: float,
    compiled: bool,
) -> tuple[Rows, NDArray[np.float64]]:
    """(leader or -1, similarity) of each row, looking at the rows `alive` only; the first `there` rows stay."""
    leader, similarity = np.full(len(order), -1, np.int64), np.ones(len(order))
    members, starts = near.buckets(keys, np.flatnonzero(alive))
    if not len(members):
        return leader, similarity
    rows = np.unique(members)  # the candidates; from here on they are numbered 0 ..
    members = np.searchsorted(rows, members)
    place = np.full(len(order), -1, np.int64)
    place[rows] = np.arange(len(rows))
    best = place[order]
    best = best[best >= 0]
    # Rows that no chain of buckets connects have nothing to do with each other: as many groups at a time as fit.
    (group,) = near.loop(near.components, compiled, len(rows), members, starts)
    share = _shares(group, words[rows])
    sizes = np.diff(starts)
    bucket_share = share[members[starts[:-1]]]
    with progress("dedupe: comparing", len(rows), "candidates") as advance:
        for number in np.unique(share):
            chosen = np.flatnonzero(share == number)
            local = np.full(len(rows), -1, np.int64)
            local[chosen] = np.arange(len(chosen))
            sets = _read_sets(tables, columns, rows[chosen], words, compiled)
            answers = near.Sets(np.empty(0, np.uint64), np.empty(0, np.int64))
            if len(columns) > 1:
                answers = _read_sets(tables, columns[-1:], rows[chosen], words, compiled)
            local_starts = np.append(0, np.cumsum(sizes[bucket_share == number]))
            found, similar = near.loop(
                near.choose,
                compiled or near.many_pairs(local_starts),
                local[best[share[best] == number]],
                int((rows[chosen] < there).sum()),
                local[members[np.repeat(bucket_share == number, sizes)]],
                local_starts,
                *sets,
                *answers,
                threshold,
            )
            dropped = found >= 0
            leader[rows[chosen[dropped]]] = rows[chosen[found[dropped]]]
            similarity[rows[chosen[dropped]]] = similar[dropped]
            advance(len(chosen))
    return leader, similarity


def _shares(group: Rows, words: Rows) -> Rows:
    """Number the candidates' groups off into shares of about SHINGLES_AT_ONCE shingles."""
    names, which = np.unique(group, return_inverse=True)
    weight = np.bincount(which, weights=words + 1, minlength=len(names)).astype(np.int64)
    return ((np.cumsum(weight) - weight) // SHINGLES_AT_ONCE)[which]


def _read_sets(tables: Tables, columns: tuple[str, ...], rows: Rows, words: Rows, compiled: bool) -> near.Sets:
    """The sets of shingles of some rows (ascending) of the tables."""
    values = np.empty(int((words[rows] + 1).sum()), np.uint64)  # at most a shingle a word, at least one
    starts = np.zeros(len(rows) + 1, np.int64)
    begin = 0
    for batch in _batches(tables, ["id", *columns]):
        first, last = np.searchsorted(rows, [begin, begin + batch.num_rows])
        if last > first:
            texts = texts_of(batch.take(pa.array(rows[first:last] - begin)), columns)
            sets = near.shingle_sets(texts, compiled=compiled)
            starts[first + 1 : last + 1] = starts[first] + sets.starts[1:]
            values[starts[first] : starts[last]] = sets.values
        begin += batch.num_rows
    return near.Sets(values, starts)


def text_bytes(path: Path, columns: tuple[str, ...]) -> int:
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


def _batches(tables: Tables, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns (of id, messages, text) of the data set that exists already, then of the table."""
    if tables.against:
        yield from _existing(tables.against, columns)
    yield from artifacts.read_batches(tables.own, columns)


def _existing(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A data set that exists already: a table of ours, or rows with prompt and completion, or messages, in any file
    that questions.read_objects reads."""
    schema = pa.schema([KEPT.field(name) for name in columns])
    if path.suffix == ".parquet":
        try:
            names = set(pq.read_schema(path).names)
        except pa.ArrowException as error:
            raise UserError(f"dedupe.against: {path} cannot be read as Parquet ({error}).") from None
        if names.issuperset(columns):
            for batch in artifacts.read_batches(path, columns):
                yield batch.cast(schema)
            return
    objects = questions.read_objects(path)
    while chunk := list(itertools.islice(objects, artifacts.ROW_GROUP)):
        yield pa.RecordBatch.from_pylist([_existing_row(path, *row, columns) for row in chunk], schema=schema)


def _existing_row(path: Path, line: int, row: Row, columns: list[str]) -> Row:
    found: Row = {"id": str(row.get("id") or where(path.name, line))}
    if "messages" in columns:
        found["messages"] = list(questions.prompt_messages(path, line, row))
    if "text" in columns:
        answer = next((row[name] for name in ("completion", "text") if row.get(name) is not None), None)
        turns = row.get("messages") if answer is None else answer
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
            answer = turns[-1].get("content")
        if not isinstance(answer, str):
            place = where(path, line, "completion")
            raise RecipeError(f"{place}: expected a text, or messages that end with the assistant's.")
        found["text"] = answer
    return found


def _split(path: Path, verdict: Verdict) -> Iterator[list[pa.RecordBatch]]:
    """The table's batches, each as the part that is kept and the part that is not."""
    reasons = pa.array(REASONS)
    begin = 0
    for batch in artifacts.read_batches(path, KEPT.names):
        batch = batch.select(KEPT.names)  # the file's columns may be in another order
        here = slice(begin, begin + batch.num_rows)
        leader = verdict.leader[here]
        rows = np.flatnonzero(leader.is_valid().to_numpy(zero_copy_only=False))
        columns = [
            *batch.take(pa.array(rows)).columns,
            reasons.take(pa.array(verdict.reason[here][rows])),
            leader.take(pa.array(rows)),
            pa.array(verdict.similarity[here][rows]),
        ]
        yield [batch.filter(leader.is_null()), pa.RecordBatch.from_arrays(columns, schema=DUPLICATES)]
        begin += batch.num_rows


def check(path: Path, schema: pa.Schema, writer: str) -> None:
    """Raises UserError if a table that the stage `writer` wrote lacks a column, has one of another type or no rows."""
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
    if not artifacts.count_rows(path):
        raise UserError(f"{path} has no rows: nothing was left by {writer}. `seqkd status` says why.")


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write kept.parquet and duplicates.parquet; return the counts.

    Raises UserError if the table lacks a column, has no rows, or has a null text.
    """
    path = inputs["kept"]
    section = recipe.dedupe
    check(path, KEPT, "filter")
    verdict = find_duplicates(Tables(path, section.against), section)
    targets = [(out / "kept.parquet", KEPT), (out / "duplicates.parquet", DUPLICATES)]
    kept, dropped = artifacts.write_tables(targets, _split(path, verdict))
    counts = np.bincount(verdict.reason[verdict.leader.is_valid().to_numpy(zero_copy_only=False)], minlength=3)
    looked_for = REASONS if section.semantic else REASONS[:2]
    return {
        "rows_in": artifacts.count_rows(path),
        "outcomes": {"kept": kept, "duplicate": dropped},
        "reasons": {name: int(rows) for name, rows in zip(looked_for, counts, strict=False)},
    }


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("dedupe")
