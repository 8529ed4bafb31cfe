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

The table is read three times and never held. What is remembered of a row are numbers: its fingerprint, word count,
place in the order, verdict. The band keys of all rows, and the shingles of those that met another one in a bucket, lie
in files beside the result, and are read one band and at most SHINGLES_AT_ONCE shingles at a time. With `semantic`, the
vectors of the rows that are left are held.
"""

import tempfile
from collections.abc import Iterable, Iterator
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
from pipeline.records import COMPLETIONS, DUPLICATES, KEPT, Row

VERSION = 4
SECTIONS = ("dedupe",)
READS = {"kept": "filter"}

SHINGLES_AT_ONCE = 16 << 20
"""Shingles (8 bytes each) of candidates in memory at a time; a group that has more than these is still done whole."""

REASONS = ("exact", "near", "semantic")
EXACT, NEAR, SEMANTIC = range(3)
"""Why a row repeats another one: the same words in the same order, similar sets of shingles, similar meaning."""

QUALITIES = ("score", "reward", "agreement")
"""Columns that make a row of a group the best, the first one first: filter's judge, its reward model, agreement."""

REMAKE = "Make the table again with --from filter."
"""What to do about a table that is damaged."""

OURS = ("id", "prompt_id", "sample", "messages", "text", "finish_reason", "teacher")
"""Columns by which a table of completions of a run is known."""

COMPARED = {"pair": ("messages", "text"), "prompt": ("messages",), "completion": ("text",)}
"""dedupe.on -> the columns that are compared."""


class Tables(NamedTuple):
    """What is compared: a table of kept rows, and a data set that exists already, whose rows are numbered first."""

    own: Path
    against: Path | None = None


class Choice(NamedTuple):
    """What becomes of each of n rows of the tables."""

    leader: Rows  # (n,) the row that this one repeats, -1 for a row that is kept
    similarity: NDArray[np.float64]  # (n,) Jaccard similarity to it, cosine if that is the reason; 1.0 for a kept row
    reason: NDArray[np.int8]  # (n,) place in REASONS, 0 as well for a row that is kept


class Meeting(NamedTuple):
    """Rows that meet in buckets, and meet no others."""

    rows: Rows  # ascending; in what follows they are numbered 0 ..
    met: near.Buckets
    sets: near.Sets  # the rows' shingles
    answers: near.Sets  # those of the answers alone where prompt and answer are compared, else empty


class Verdict(NamedTuple):
    """What becomes of each of n rows of the table."""

    leader: pa.Array  # (n,) id of the row that this one repeats, null for a row that is kept
    similarity: NDArray[np.float64]  # as of Choice
    reason: NDArray[np.int8]


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
    Neither may be null."""
    parts = []
    for name in columns:
        column = batch.column(name)
        if name == "messages":
            contents = pc.struct_field(column.values, "content")
            column = pc.binary_join(
                pa.ListArray.from_arrays(column.offsets, contents, mask=column.is_null()), near.PART
            )
        parts.append(column)
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, near.PART)


def find_duplicates(tables: Tables, section: Dedupe, scratch: Path) -> Verdict:
    """Say which rows of a table repeat which. `scratch`: an empty folder for files that are read once."""
    on, threshold = section.on, section.near.threshold if section.near else None
    columns = COMPARED[on]
    if tables.against:
        _is_ours(tables.against)  # raises where its footer, which text_bytes reads, is damaged
    compiled = sum(artifacts.text_bytes(path, columns) for path in tables if path) >= near.COMPILE_BYTES
    cut = near.scheme(threshold) if threshold is not None else near.Scheme(0, 1)
    prints, words = _sketch(tables, columns, cut, compiled, scratch)
    there = len(words) - artifacts.count_rows(tables.own)  # rows of the data set that exists already
    if tables.against and not there:
        raise UserError(
            f"dedupe.against: {tables.against} has no rows. Remove it from the recipe, or name another data set."
        )
    ids = pa.chunked_array([batch.column("id") for batch in artifacts.read_batches(tables.own, ["id"], KEPT)])
    order = np.append(np.arange(there), there + best_first(ids, *(quality(tables.own, name) for name in QUALITIES)))
    del ids

    leader = _exact(prints, order) if section.exact else np.full(len(words), -1, np.int64)
    del prints
    is_exact = leader >= 0
    similarity = np.ones(len(words))
    if threshold is not None:
        keys = _keys(cut, scratch)
        found, similar = _near(tables, columns, words, keys, ~is_exact, order, there, threshold, compiled, scratch)
        # A row whose exact copy repeats a third row repeats that one too, and just as nearly.
        copies = np.flatnonzero(is_exact)
        moved = copies[found[leader[copies]] >= 0]
        is_exact[moved] = False
        similarity = similar
        similarity[moved] = similar[leader[moved]]
        found[copies] = leader[copies]
        found[moved] = found[leader[moved]]
        leader = found
    reason = np.where(is_exact, EXACT, np.where(leader >= 0, NEAR, 0)).astype(np.int8)
    if section.semantic:
        _semantic(tables, section, order, there, Choice(leader, similarity, reason))
    leader = leader[there:]
    return Verdict(_ids(tables, leader), similarity[there:], reason[there:])


def _sketch(
    tables: Tables, columns: tuple[str, ...], cut: near.Scheme, compiled: bool, scratch: Path
) -> tuple[near.Bits, NDArray[np.int32]]:
    """(n, 2) fingerprints and (n,) word counts of all rows; the band keys go into files that _keys reads."""
    prints, words = [], []
    with progress("reading texts", artifacts.count_rows(tables.own), "rows") as advance:
        for batch in _batches(tables, ["id", *columns]):
            sketch = near.sketch(texts_of(batch, columns), cut, compiled)
            prints.append(sketch.fingerprints)
            words.append(sketch.words.astype(np.int32))
            for band, keys in enumerate(sketch.keys):
                _append(scratch / f"band{band}", keys)
            advance(batch.num_rows)
    return np.concatenate(prints), np.concatenate(words)


def _keys(cut: near.Scheme, scratch: Path) -> Iterator[NDArray[np.uint32]]:
    """The keys of all rows, band by band."""
    return (np.fromfile(scratch / f"band{band}", np.uint32) for band in range(cut.bands))


def _append(path: Path, values: NDArray[Any]) -> None:
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(values).data)


def _ids(tables: Tables, rows: Rows) -> pa.Array:
    """The ids of some rows of the tables, null for -1."""
    wanted = np.unique(rows[rows >= 0])
    found: list[pa.Array] = [pa.array([], pa.string())]
    begin = 0
    for batch in _batches(tables, ["id"]):
        first, last = np.searchsorted(wanted, [begin, begin + batch.num_rows])
        found.append(batch.column("id").take(pa.array(wanted[first:last] - begin)))
        begin += batch.num_rows
    return pa.concat_arrays(found).take(pa.array(np.searchsorted(wanted, rows), mask=rows < 0))


def _semantic(tables: Tables, section: Dedupe, order: Rows, there: int, choice: Choice) -> None:
    """Look for rows that say the same among those that are kept so far, and change `choice` where there are any.

    What repeats a row that is dropped now is then homeless. An exact copy of it says what it says, and repeats what it
    repeats; a near copy is compared by meaning itself, after all others, and is kept if it is like none that is kept.
    """
    from pipeline import semantic

    if not section.semantic:
        return
    leader, similarity, reason = choice
    columns, threshold = COMPARED[section.semantic.on or section.on], section.semantic.threshold
    model = semantic.load(section.semantic.model)
    rows = order[leader[order] < 0]  # the best first; those of the other data set stay
    vectors = _vectors(tables, columns, rows, model)
    found, cosine = semantic.choose(vectors, int((rows < there).sum()), threshold)
    dropped = found >= 0
    leader[rows[dropped]], similarity[rows[dropped]] = rows[found[dropped]], cosine[dropped]
    reason[rows[dropped]] = SEMANTIC

    homeless = (leader >= 0) & (leader[leader] >= 0)
    near_copies = order[(homeless & (reason == NEAR))[order]]
    copies = np.flatnonzero(homeless & (reason == EXACT))
    similarity[copies], reason[copies] = similarity[leader[copies]], SEMANTIC
    leader[copies] = leader[leader[copies]]
    if len(near_copies):
        rows, vectors = rows[~dropped], vectors[~dropped]
        fixed = len(rows)
        rows = np.append(rows, near_copies)
        vectors = np.concatenate([vectors, _vectors(tables, columns, near_copies, model)])
        found, cosine = semantic.choose(vectors, fixed, threshold)
        found, cosine = found[fixed:], cosine[fixed:]
        leader[near_copies] = np.where(found >= 0, rows[found], -1)
        similarity[near_copies], reason[near_copies] = cosine, np.where(found >= 0, SEMANTIC, 0)


def quality(path: Path, column: str) -> NDArray[np.float64]:
    """(n,) a column that says how good each row is; -inf where it says nothing."""
    found = [
        batch.column(column).fill_null(-np.inf).to_numpy(zero_copy_only=False)
        for batch in artifacts.read_batches(path, [column], KEPT)
    ]
    return np.nan_to_num(np.concatenate(found), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def best_first(ids: pa.ChunkedArray, *qualities: NDArray[np.float64]) -> Rows:
    """Row numbers, the best first: by the first of the qualities, equals by the next one, and at last by id."""
    sorted_already = pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is not False
    order = np.arange(len(ids)) if sorted_already else pc.sort_indices(ids).to_numpy()
    for values in reversed(qualities):
        order = order[np.argsort(-values[order], kind="stable")]
    return order.astype(np.int64)


def _vectors(tables: Tables, columns: tuple[str, ...], wanted: Rows, model: Any) -> Any:
    """(rows, dimensions) unit vectors of some rows of the tables."""
    from pipeline.semantic import embed

    rows = np.sort(wanted)
    found, begin = [], 0
    with progress("dedupe: embedding", len(rows), "rows") as advance:
        for batch in _batches(tables, ["id", *columns]):
            first, last = np.searchsorted(rows, [begin, begin + batch.num_rows])
            if last > first:
                texts = texts_of(batch.take(pa.array(rows[first:last] - begin)), columns)
                found.append(embed(model, texts))
                advance(int(last - first))
            begin += batch.num_rows
    return np.concatenate(found)[np.searchsorted(rows, wanted)]


def _exact(fingerprints: near.Bits, order: Rows) -> Rows:
    """For each row the best row with the same fingerprint, -1 for the best one itself."""
    leader = np.full(len(order), -1, np.int64)
    # By half of the fingerprint first, which leaves few rows to sort by all of it.
    rows = np.argsort(fingerprints[:, 0])
    half = fingerprints[rows, 0]
    same = half[1:] == half[:-1]
    meets = np.zeros(len(rows), bool)
    meets[1:] |= same
    meets[:-1] |= same
    rows = rows[meets]
    if not len(rows):
        return leader
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    rows = rows[np.lexsort((rank[rows], fingerprints[rows, 1], fingerprints[rows, 0]))]
    ordered = fingerprints[rows]
    first = np.ones(len(rows), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    best = rows[np.flatnonzero(first)][np.cumsum(first) - 1]
    leader[rows[~first]] = best[~first]
    return leader


def _near(
    tables: Tables,
    columns: tuple[str, ...],
    words: NDArray[np.int32],
    keys: Iterable[NDArray[np.uint32]],
    alive: NDArray[np.bool_],
    order: Rows,
    there: int,
    threshold: float,
    compiled: bool,
    scratch: Path,
) -> tuple[Rows, NDArray[np.float64]]:
    """(leader or -1, similarity) of each row, looking at the rows `alive` only; the first `there` rows stay."""
    leader, similarity = np.full(len(order), -1, np.int64), np.ones(len(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    for part in _meetings(tables, columns, words, keys, alive, threshold, compiled, scratch):
        found, similar = near.loop(
            near.choose,
            compiled or near.many_pairs(part.met),
            np.argsort(rank[part.rows]),
            int((part.rows < there).sum()),
            *part.met,
            *part.sets,
            *part.answers,
            threshold,
        )
        dropped = found >= 0
        leader[part.rows[dropped]] = part.rows[found[dropped]]
        similarity[part.rows[dropped]] = similar[dropped]
    return leader, similarity


def similar_rows(path: Path, columns: tuple[str, ...], rows: Rows, threshold: float, folder: Path) -> Rows:
    """For each of some rows of a table one of them, the same for all that a chain of rows connects, each of which is at
    least `threshold` similar to the next in `columns`. `folder`: for files that are gone afterwards.

    Texts are read twice and never held, as in find_duplicates."""
    tables, cut = Tables(path), near.scheme(threshold)
    compiled = artifacts.text_bytes(path, columns) >= near.COMPILE_BYTES
    with tempfile.TemporaryDirectory(prefix=".scratch", dir=folder) as name:
        scratch = Path(name)
        prints, words = _sketch(tables, columns, cut, compiled, scratch)
        # Of equal rows one takes part.
        leader = _exact(prints[rows], np.arange(len(rows)))
        del prints
        leader = rows[np.where(leader < 0, np.arange(len(rows)), leader)]
        alive = np.zeros(len(words), bool)
        alive[leader] = True
        group = np.arange(len(words))
        for part in _meetings(tables, columns, words, _keys(cut, scratch), alive, threshold, compiled, scratch):
            many = compiled or near.many_pairs(part.met)
            (first,) = near.loop(near.connect, many, len(part.rows), *part.met, *part.sets, threshold)
            group[part.rows] = part.rows[first]
    return group[leader]


def _meetings(
    tables: Tables,
    columns: tuple[str, ...],
    words: NDArray[np.int32],
    keys: Iterable[NDArray[np.uint32]],
    alive: NDArray[np.bool_],
    threshold: float,
    compiled: bool,
    scratch: Path,
) -> Iterator[Meeting]:
    """The rows `alive` that meet another one in a bucket, as many at a time as fit into memory."""
    members, starts, core = near.buckets(keys, np.flatnonzero(alive))
    if not len(members):
        return
    rows = np.unique(members)  # the candidates; from here on they are numbered 0 ..
    members = np.searchsorted(rows, members)
    # Rows that no chain of buckets connects have nothing to do with each other: as many groups at a time as fit.
    (group,) = near.loop(near.components, compiled, len(rows), members, starts)
    share = _shares(group, words[rows])
    _write_sets(tables, columns, rows, share, compiled, scratch)
    sizes = np.diff(starts)
    bucket_share = share[members[starts[:-1]]]
    with progress("comparing similar texts", len(rows), "candidates") as advance:
        for number in range(int(share.max()) + 1):
            chosen = np.flatnonzero(share == number)
            local = np.full(len(rows), -1, np.int64)
            local[chosen] = np.arange(len(chosen))
            here = bucket_share == number
            met = near.Buckets(local[members[np.repeat(here, sizes)]], np.append(0, np.cumsum(sizes[here])), core[here])
            sets = _read_sets(scratch / f"sets{number}")
            answers = near.Sets(np.empty(0, np.uint64), np.empty(0, np.int64))
            measures = [(sets, threshold)]
            if len(columns) > 1:
                answers = _read_sets(scratch / f"answers{number}")
                measures.append((answers, threshold / 2))
            yield Meeting(rows[chosen], near.narrow(met, group[chosen], *measures), sets, answers)
            advance(len(chosen))


def _shares(group: Rows, words: NDArray[np.int32]) -> Rows:
    """Number the candidates' groups off into shares 0, 1 .. of about SHINGLES_AT_ONCE shingles."""
    names, which = np.unique(group, return_inverse=True)
    weight = np.bincount(which, weights=words + 1, minlength=len(names)).astype(np.int64)
    number = (np.cumsum(weight) - weight) // SHINGLES_AT_ONCE
    return np.unique(number, return_inverse=True)[1][which]


def _write_sets(
    tables: Tables, columns: tuple[str, ...], rows: Rows, share: Rows, compiled: bool, scratch: Path
) -> None:
    """Write the sets of shingles of some rows (ascending) of the tables into files that _read_sets reads, one for each
    share; and where prompt and answer are compared, those of the answers alone into others."""
    begin = 0
    for batch in _batches(tables, ["id", *columns]):
        first, last = np.searchsorted(rows, [begin, begin + batch.num_rows])
        if last > first:
            of = share[first:last]
            by_share = np.argsort(of, kind="stable")
            taken = batch.take(pa.array(rows[first:last][by_share] - begin))
            parts, starts = np.unique(of[by_share], return_index=True)
            ends = np.append(starts[1:], last - first)
            for name, read in (("sets", columns), ("answers", columns[1:])):
                if not read:
                    continue
                sets = near.shingle_sets(texts_of(taken, read), compiled=compiled)
                for number, a, b in zip(parts, starts, ends, strict=True):
                    path = scratch / f"{name}{number}"
                    _append(path, sets.values[sets.starts[a] : sets.starts[b]])
                    _append(path.with_suffix(".sizes"), np.diff(sets.starts[a : b + 1]))
        begin += batch.num_rows


def _read_sets(path: Path) -> near.Sets:
    """The sets of one share."""
    sizes = np.fromfile(path.with_suffix(".sizes"), np.int64)
    return near.Sets(np.fromfile(path, np.uint64), np.append(0, np.cumsum(sizes)))


def _batches(tables: Tables, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns (id, and what else is needed of messages and text) of the data set that exists already, then of the
    table."""
    if tables.against:
        yield from _existing(tables.against, columns)
    yield from artifacts.read_texts(tables.own, columns, REMAKE, needed=columns)


def _existing(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A data set that exists already: a table of ours, or rows with prompt and completion, or messages, in any file
    that questions.read_objects reads."""
    schema = pa.schema([KEPT.field(name) for name in columns])
    if _is_ours(path):
        try:
            for batch in artifacts.read_texts(path, columns, "Name another file in dedupe.against.", columns):
                yield batch.cast(schema)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None
        return
    chunk: list[Row] = []
    size = 0
    for line, given in questions.read_objects(path):
        chunk.append(row := _existing_row(path, line, given, columns))
        size += len(row.get("text", "")) + sum(len(turn["content"]) for turn in row.get("messages", ()))
        if len(chunk) == artifacts.ROW_GROUP or size >= artifacts.BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(chunk, schema=schema)
            chunk, size = [], 0
    if chunk:
        yield pa.RecordBatch.from_pylist(chunk, schema=schema)


def _is_ours(path: Path) -> bool:
    """Whether a data set is a table of completions of a run. Raises UserError where it cannot be read."""
    if path.suffix != ".parquet":
        return False
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    # Chat data of others has some of our names, with the answer in `messages` or the whole conversation in `text`.
    return all(
        name in found.names and artifacts.fits(found.field(name).type, COMPLETIONS.field(name).type) for name in OURS
    )


def _unreadable(path: Path, error: Exception) -> UserError:
    said = str(error).strip().rstrip(".")
    return UserError(f"dedupe.against: {path} cannot be read as Parquet ({said}). Copy it again, or name another file.")


def _existing_row(path: Path, line: int, row: Row, columns: list[str]) -> Row:
    found: Row = {"id": str(row.get("id") or where(path.name, line)).encode("utf-8", "replace").decode()}
    if "messages" in columns:
        found["messages"] = list(questions.prompt_messages(path, line, row))
    if "text" in columns:
        answer = row.get("completion", row.get("text"))
        turns = row.get("completion", row.get("messages"))
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
            answer = turns[-1].get("content")
        if not isinstance(answer, str):
            place = where(
                path, line, next((name for name in ("completion", "text", "messages") if name in row), "completion")
            )
            raise RecipeError(
                f"{place}: expected an answer: a text, or messages that end with the assistant's, which has a text. "
                "Give the row one, or leave it out."
            )
        found["text"] = answer.encode("utf-8", "replace").decode()
    return found


def _split(path: Path, verdict: Verdict) -> Iterator[list[pa.RecordBatch]]:
    """The table's batches, each as the part that is kept and the part that is not."""
    reasons = pa.array(REASONS)
    begin = 0
    for batch in artifacts.read_texts(path, KEPT.names, REMAKE):
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


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write kept.parquet and duplicates.parquet; return the counts.

    Raises UserError if the table lacks a column, has no rows, has a row without id or text or bytes that are no text,
    or if none of its rows is left.
    """
    path = inputs["kept"]
    section = recipe.dedupe
    artifacts.check(path, KEPT, "filter")
    with tempfile.TemporaryDirectory(prefix=".scratch", dir=out) as scratch:
        verdict = find_duplicates(Tables(path, section.against), section, Path(scratch))
    dropped = verdict.leader.is_valid().to_numpy(zero_copy_only=False)
    counts = np.bincount(verdict.reason[dropped], minlength=len(REASONS))
    looked_for = REASONS if section.semantic else REASONS[:SEMANTIC]
    reasons = {name: int(rows) for name, rows in zip(looked_for, counts, strict=False)}
    if dropped.all():  # of a group within the table one is kept
        said = ", ".join(f"{name} {rows:,}" for name, rows in reasons.items() if rows)
        raise UserError(
            f"dedupe: none of the {len(dropped):,} rows is left ({said}): all repeat rows of {section.against}. Name "
            "another data set in dedupe.against, or none; or ask the teacher for something else."
        )
    targets = [(out / "kept.parquet", KEPT), (out / "duplicates.parquet", DUPLICATES)]
    written = artifacts.write_tables(targets, _split(path, verdict))
    return {
        "rows_in": len(dropped),
        "outcomes": dict(zip(("kept", "duplicate"), written, strict=True)),
        "reasons": reasons,
    }


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("dedupe")
