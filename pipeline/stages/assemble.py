"""assemble: the training set, free of held-out questions and split in two.

Reads dedupe's kept rows (and collect's completions, for the baseline), writes

    train.parquet          in TRL's conversational prompt-completion form
    validation.parquet     the same form; all rows of a share of the prompts
    withheld.parquet       rows that are neither, each with the reason
    random_subset.parquet  if train.baselines asks for it: as many rows as train, drawn from all completions
    README.md              the data card, with which datasets.load_dataset opens the folder as train and validation

Withheld are, in this order: rows that repeat a held-out question or an item of `evaluations`, word for word
(held_out_exact) or embedded or edited (held_out_overlap; pipeline/overlap.py says when a text repeats another), and
rows that are not among the `best_of` of their prompt, by `best_by`, then by id (not_best).

The split is by prompt: all rows of a prompt, and of prompts nearly like it, are on one side. A hash of the seed
decides, so that a prompt stays on its side when others come and go; a group of similar prompts that is larger than the
share for validation is trained on.

The random subset is a baseline for what filter and dedupe are worth: a uniform draw from all completions that ended by
themselves or at max_tokens, unfiltered, but as free of held-out questions as train and without the prompts (or nearly
the prompts) of validation, so that nothing else differs.

No text is held. What is remembered of a row are numbers, while a column of ids is compared those ids, and what
dedupe.similar_rows remembers and writes beside the result.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import artifacts, cards, near, overlap, questions
from pipeline.errors import RecipeError, UserError, where
from pipeline.near import Rows
from pipeline.progress import progress
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, KEPT, TRAIN, WITHHELD, Row
from pipeline.stages import dedupe
from pipeline.stages.dedupe import COMPARED, best_first, texts_of

VERSION = 5
TOLD = ("generate", "collect", "filter", "dedupe")  # sections and tables that only the data card speaks of
SECTIONS = (*TOLD, "assemble", "train.baselines", "evaluate.limit")
READS = {
    "kept": "dedupe",
    "completions": "collect",
    **{"prompts": "generate", "failures": "collect", "rejected": "filter", "duplicates": "dedupe"},
}

SPLIT_THRESHOLD = 0.7
"""Prompts that share so much of their word 5-grams are on one side of the split, and so are chains of them."""

OUTCOMES = ("train", "validation", "held_out_exact", "held_out_overlap", "not_best")
TRAINED, VALIDATED, EXACT, OVERLAP, NOT_BEST = range(5)
"""What becomes of a row: a side of the split, or the reason why it is withheld."""

QUALITY = {"agreement": "agreement", "judge": "score", "reward": "reward", "logprob": "logprobs"}
"""assemble.best_by -> the column that it goes by."""


class Plan(NamedTuple):
    """What becomes of each of n rows of a table."""

    outcome: NDArray[np.int8]  # (n,) place in OUTCOMES
    repeats: Rows  # (n,) the item that a row repeats, the better row where that is the reason; -1 for others


def sources(recipe: Recipe) -> dict[str, Path]:
    """The held-out questions and the evaluation sets that must not be trained on."""
    files = dict(questions.sources(recipe))
    for number, path in enumerate(recipe.assemble.evaluations):
        files[f"evaluations.{number}"] = path
    return files


def forbidden(recipe: Recipe) -> list[overlap.Item]:
    """Everything that must not be trained on: the last user turn of the held-out questions and of `evaluations`."""
    items = []
    for question in questions.held_out(recipe):
        # A question's last turn; what comes before it (a system prompt, earlier turns) may well be anybody's.
        items.append(overlap.Item(question.id, question.prompt, question.subject))
    for path in recipe.assemble.evaluations:
        found = 0
        for line, row in questions.read_objects(path):
            name = _text(str(row.get("id") or where(path.name, line)))
            items.append(overlap.Item(name, _item_text(path, line, row)))
            found += 1
        if not found:
            raise UserError(f"{path}: has no rows. Remove it from assemble.evaluations, or name another file.")
    return items


def _text(value: str) -> str:
    """Half a surrogate pair, which JSON can hold, is no character, and no file takes it."""
    return value.encode("utf-8", "replace").decode()


def _item_text(path: Path, line: int, row: Row) -> str:
    if row.get("prompt") is None and row.get("messages") is None:
        name = next((name for name in ("question", "text") if row.get(name) is not None), None)
        if name is None:
            raise RecipeError(
                f"{where(path, line)}: expected `question`, `text`, `prompt` or `messages`, found none. Rename "
                "the field that has the question."
            )
        if not isinstance(row[name], str):
            raise RecipeError(f"{where(path, line, name)}: expected a text. Give it one, or remove the row.")
        if not row[name].strip():
            raise RecipeError(f"{where(path, line, name)}: is empty. Remove the row, or give it a text.")
        return _text(row[name])
    return questions.prompt_messages(path, line, row)[-1]["content"]


def contaminated(path: Path, index: overlap.Index, complete: bool = True) -> Plan:
    """Which rows of a table repeat an item in prompt or answer; all others are TRAINED so far. complete: whether every
    row has an answer; a completion that failed may have none, but its prompt counts all the same.

    Raises UserError at a row without id, prompt or answer, or with bytes that are no text."""
    rows, columns = artifacts.count_rows(path), COMPARED["pair"]
    outcome, repeats = np.full(rows, TRAINED, np.int8), np.full(rows, -1, np.int64)
    compiled = artifacts.text_bytes(path, columns) >= near.COMPILE_BYTES
    begin = 0
    with progress("assemble: comparing with held-out questions", rows, "rows") as advance:
        for batch in _read(path, ["id", *columns], needed=["id", "messages", *(["text"] if complete else [])]):
            if not complete:
                batch = batch.set_column(batch.schema.get_field_index("text"), "text", batch["text"].fill_null(""))
            for hit in overlap.find(index, texts_of(batch, columns), compiled):
                outcome[begin + hit.row], repeats[begin + hit.row] = EXACT if hit.exact else OVERLAP, hit.item
            begin += batch.num_rows
            advance(batch.num_rows)
    return Plan(outcome, repeats)


def prompts_of(path: Path) -> tuple[Rows, Rows]:
    """The prompts of a table, numbered in the order of their ids: (rows,) each row's prompt, (prompts,) its first row.

    Raises UserError at a row without a prompt_id, or with one that is no text."""
    names = _column(path, "prompt_id")
    prompt = pc.rank(names, tiebreaker="dense").to_numpy().astype(np.int64) - 1
    first = np.empty(int(prompt.max()) + 1, np.int64)
    first[prompt[::-1]] = np.arange(len(prompt))[::-1]
    return prompt, first


def plan(recipe: Recipe, path: Path, decided: Plan, scratch: Path) -> Plan:
    """Decide for each kept row whether it is withheld, trained on or validated on. `decided`: as of `contaminated`, and
    changed; `scratch`: a folder for files that are gone afterwards."""
    section, (outcome, repeats) = recipe.assemble, decided
    prompt, first = prompts_of(path)

    # The best rows of each prompt, among those that may be trained on.
    order = best_first(_column(path, "id"), quality(path, section.best_by))
    order = order[outcome[order] == TRAINED]
    order = order[np.argsort(prompt[order], kind="stable")]
    eligible, begins, counts = np.unique(prompt[order], return_index=True, return_counts=True)
    best = np.repeat(begins, counts)
    worse = np.arange(len(order)) - best >= section.best_of
    outcome[order[worse]], repeats[order[worse]] = NOT_BEST, order[best[worse]]

    chosen = np.zeros(len(first), bool)
    chosen[eligible] = for_validation(path, first[eligible], section.validation_fraction, recipe.seed, scratch)
    outcome[chosen[prompt] & (outcome == TRAINED)] = VALIDATED
    return decided


def quality(path: Path, by: str) -> NDArray[np.float64]:
    """(n,) how good each row is, by `assemble.best_by`; -inf where that is not known.

    logprob: the mean natural log-probability of the answer's tokens, its end included, under the teacher itself."""
    if by != "logprob":
        return dedupe.quality(path, QUALITY[by])
    found = []
    for batch in artifacts.read_batches(path, ["logprobs"], KEPT):
        values = batch.column("logprobs")
        tokens = values.flatten().field("logprob").cast(pa.float64()).fill_null(-np.inf).to_numpy()
        ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
        counts = np.diff(ends, prepend=0)
        means = np.full(len(values), -np.inf)
        if len(tokens):
            means[counts > 0] = np.add.reduceat(tokens, (ends - counts)[counts > 0]) / counts[counts > 0]
        found.append(means)
    return np.concatenate(found)


def for_validation(path: Path, rows: Rows, fraction: float, seed: int, scratch: Path) -> NDArray[np.bool_]:
    """Which prompts are for validation: a share of the groups of similar ones, by hash; at least one if there are two.
    `rows`: a row of each prompt, in the order of the prompts' ids."""
    if fraction == 0 or len(rows) < 2:
        return np.zeros(len(rows), bool)
    group = dedupe.similar_rows(path, COMPARED["prompt"], rows, SPLIT_THRESHOLD, scratch)
    _, firsts, group, sizes = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    shares = np.ones(len(firsts))
    small = np.flatnonzero(sizes <= max(1, int(fraction * len(rows))))
    # A group is drawn by the first id of its prompts.
    shares[small] = _draws(seed, "split", _column(path, "prompt_id").take(pa.array(rows[firsts[small]])))
    chosen = shares < fraction
    if not chosen.any() and len(firsts) > 1:
        # Every prompt may be like every other one: then there is no clean split, and the smallest group must do.
        chosen[np.lexsort((firsts, shares if len(small) else sizes))[0]] = True
    return chosen[group]


def random_subset(path: Path, count: int, seed: int, allowed: NDArray[np.bool_]) -> Rows:
    """`count` of the rows of the completions that are `allowed` and complete (or as many as there are), drawn
    uniformly, in ascending order."""
    rows, draws = [], []
    begin = 0
    for batch in artifacts.read_batches(path, ["id", "finish_reason", "text"], KEPT):
        ended = pc.is_in(batch.column("finish_reason"), pa.array(["stop", "length"]))
        usable = pc.and_(ended, batch.column("text").is_valid()).to_numpy(zero_copy_only=False)
        here = np.flatnonzero(usable & allowed[begin : begin + batch.num_rows])
        rows.append(begin + here)
        draws.append(_draws(seed, "random_subset", batch.column("id").take(pa.array(here))))
        begin += batch.num_rows
    order = np.argsort(np.concatenate(draws), kind="stable")
    return np.sort(np.concatenate(rows)[order[:count]])


def training_form(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Completions in TRL's conversational prompt-completion form, with their logprobs where the batch has them."""
    rows = batch.num_rows
    schema = TRAIN.append(KEPT.field("logprobs")) if "logprobs" in batch.schema.names else TRAIN
    answer = pa.StructArray.from_arrays([pa.array(["assistant"] * rows), batch.column("text")], ["role", "content"])
    columns = [
        batch.column("id"),
        batch.column("messages"),
        pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), answer),
        pa.StructArray.from_arrays(
            [
                batch.column("prompt_id"),
                batch.column("teacher"),
                batch.column("agreement") if "agreement" in batch.schema.names else pa.nulls(rows, pa.float64()),
            ],
            ["prompt_id", "teacher", "agreement"],
        ),
    ]
    if schema is not TRAIN:
        columns.append(batch.column("logprobs"))
    return pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _draws(seed: int, purpose: str, names: pa.Array) -> NDArray[np.float64]:
    """For each name a number in [0, 1) that depends on nothing but seed, purpose and name."""
    start = f"{seed}\0{purpose}\0".encode()
    digests = (hashlib.blake2b(start + name.as_buffer(), digest_size=8).digest() for name in names)
    return np.fromiter((int.from_bytes(digest, "big") / 2**64 for digest in digests), np.float64, len(names))


def _read(path: Path, columns: list[str], needed: Iterable[str] = ()) -> Iterator[pa.RecordBatch]:
    return artifacts.read_texts(path, columns, f"Make it again with --from {READS[path.stem]}.", needed)


def _column(path: Path, name: str) -> pa.ChunkedArray:
    """A whole column of ids."""
    return pa.chunked_array([batch.column(name) for batch in _read(path, [name], needed=[name])])


def _rows_at(path: Path, rows: Rows, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a table by number (ascending), one batch in memory at a time."""
    begin = 0
    for batch in _read(path, columns):
        first, last = np.searchsorted(rows, [begin, begin + batch.num_rows])
        if last > first:
            yield batch.select(columns).take(pa.array(rows[first:last] - begin))
        begin += batch.num_rows


def _withheld(path: Path, decided: Plan, items: list[overlap.Item]) -> Iterator[pa.RecordBatch]:
    rows = np.flatnonzero(decided.outcome > VALIDATED)
    outcome, repeats = decided.outcome[rows], decided.repeats[rows]
    worse = outcome == NOT_BEST
    overlaps = pc.coalesce(
        pa.array([item.id for item in items], pa.string()).take(pa.array(repeats, mask=worse)),
        _column(path, "id").take(pa.array(repeats, mask=~worse)),
    )
    begin = 0
    for batch in _rows_at(path, rows, KEPT.names):
        here = slice(begin, begin + batch.num_rows)
        more = [pa.array(OUTCOMES).take(pa.array(outcome[here])), overlaps[here].combine_chunks()]
        yield pa.RecordBatch.from_arrays([*batch.columns, *more], schema=WITHHELD)
        begin += batch.num_rows


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write train, validation, withheld, the baselines' data and the data card; return the counts.

    Raises UserError if a table is damaged, if nothing is left to train on, or if a named evaluation set is malformed.
    """
    kept, completions = inputs["kept"], inputs["completions"]
    artifacts.check(kept, KEPT, "dedupe")
    artifacts.check(completions, COMPLETIONS, "collect")
    items = forbidden(recipe)
    index = overlap.index(items, recipe.assemble.overlap)
    decided = plan(recipe, kept, contaminated(kept, index), out)
    outcomes = dict(zip(OUTCOMES, np.bincount(decided.outcome, minlength=len(OUTCOMES)).tolist(), strict=True))
    reasons = {name: outcomes[name] for name in OUTCOMES[EXACT:]}
    if not outcomes["train"]:
        raise UserError(_nothing_left(len(decided.outcome), reasons, outcomes["validation"]))

    columns = ["id", "prompt_id", "messages", "text", "teacher", "agreement"]
    schema = TRAIN
    if recipe.collect.sampling.top_logprobs:  # which nobody asks for but to train on them
        columns, schema = [*columns, "logprobs"], TRAIN.append(KEPT.field("logprobs"))
    for side in (TRAINED, VALIDATED):
        selected = map(training_form, _rows_at(kept, np.flatnonzero(decided.outcome == side), columns))
        artifacts.write_table(out / f"{OUTCOMES[side]}.parquet", schema, selected)
    artifacts.write_table(out / "withheld.parquet", WITHHELD, _withheld(kept, decided, items))

    notes = [] if items else ["no held-out questions, so nothing was compared with them"]
    # Such as "???" or an emoji; whoever wrote the set may have meant it.
    if wordless := [item.id for item, words in zip(items, index.exact, strict=True) if not words]:
        named = ", ".join(wordless[:3]) + (" ..." if len(wordless) > 3 else "")
        notes.append(f"{len(wordless):,} held-out items have no words, so nothing can repeat them ({named})")
    if "random_subset" in recipe.train.baselines:
        count = outcomes["train"]
        allowed = _baseline_rows(inputs, decided, index, out)
        drawn = random_subset(completions, count, recipe.seed, allowed)
        given = [column for column in columns if column != "agreement"]
        selected = map(training_form, _rows_at(completions, drawn, given))
        artifacts.write_table(out / "random_subset.parquet", schema, selected)
        if len(drawn) < count:
            notes.append(f"only {len(drawn):,} completions for the random subset of {count:,}")
    counts = {
        "rows_in": len(decided.outcome),
        "outcomes": {
            "train": outcomes["train"],
            "validation": outcomes["validation"],
            "withheld": sum(reasons.values()),
        },
        "reasons": {name: many for name, many in reasons.items() if many},
        **({"note": "; ".join(notes)} if notes else {}),
    }
    told = cards.story_before("assemble", recipe, out.parent)
    told = told._replace(counts={**told.counts, "assemble": counts}, code=None)  # the same bytes in every revision
    example = next(artifacts.read_rows(out / "train.parquet", ["prompt", "completion"]))
    artifacts.write_text(out / "README.md", cards.data_card(told, example=example))
    return counts


def _baseline_rows(inputs: dict[str, Path], decided: Plan, index: overlap.Index, scratch: Path) -> NDArray[np.bool_]:
    """(n,) which completions repeat no held-out question and no prompt of validation, nearly or at all."""
    path = inputs["completions"]
    allowed = contaminated(path, index, complete=False).outcome == TRAINED
    validated = _column(inputs["kept"], "prompt_id").filter(pa.array(decided.outcome == VALIDATED)).unique()
    if len(validated):
        prompt, first = prompts_of(path)
        group = dedupe.similar_rows(path, COMPARED["prompt"], first, SPLIT_THRESHOLD, scratch)[prompt]
        itself = pc.is_in(_column(path, "prompt_id"), validated).to_numpy()
        allowed &= ~np.isin(group, group[itself])
    return allowed


def _nothing_left(rows: int, reasons: dict[str, int], validation: int) -> str:
    counts = ", ".join(f"{name} {many:,}" for name, many in reasons.items() if many) or "none withheld"
    advice = "Ask for more prompts (generate.count) or filter less."
    if reasons["held_out_exact"] + reasons["held_out_overlap"] > validation:
        advice = (
            "The prompts repeat the held-out questions: hold out others (evaluate.questions, assemble.evaluations) "
            "or make other prompts."
        )
    elif validation:
        advice = "Lower assemble.validation_fraction, or ask for more prompts (generate.count)."
    return f"nothing is left to train on: of {rows:,} rows {counts}, validation {validation:,}. {advice}"


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("assemble")
