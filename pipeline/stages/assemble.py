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
"""

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import artifacts, cards, near, overlap, questions
from pipeline.errors import UserError, where
from pipeline.progress import progress
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, KEPT, TRAIN, WITHHELD, Row
from pipeline.stages import dedupe
from pipeline.stages.dedupe import COMPARED, best_first, texts_of

VERSION = 3
TOLD = ("generate", "collect", "filter", "dedupe")  # sections and tables that only the data card speaks of
SECTIONS = (*TOLD, "assemble", "train.baselines", "evaluate.limit")
READS = {
    "kept": "dedupe",
    "completions": "collect",
    **{"prompts": "generate", "failures": "collect", "rejected": "filter", "duplicates": "dedupe"},
}

SPLIT_THRESHOLD = 0.7
"""Prompts that share so much of their word 5-grams are on one side of the split, and so are chains of them."""

TRAIN_SIDE, VALIDATION_SIDE, WITHHELD_SIDE = 0, 1, 2

QUALITY = {"agreement": "agreement", "judge": "score", "reward": "reward", "logprob": "logprobs"}
"""assemble.best_by -> the column that it goes by."""


class Plan(NamedTuple):
    """What becomes of each row of a table, in the order of its rows."""

    side: NDArray[np.int8]
    reason: list[str | None]
    overlaps: list[str | None]


def sources(recipe: Recipe) -> dict[str, Path]:
    """The held-out questions and the evaluation sets that must not be trained on."""
    files = dict(questions.sources(recipe))
    for number, path in enumerate(recipe.assemble.evaluations):
        files[f"evaluations.{number}"] = path
    return files


def forbidden(recipe: Recipe) -> list[overlap.Item]:
    """Everything that must not be trained on: each user turn of the held-out questions and of `evaluations`."""
    items = []
    for question in questions.held_out(recipe):
        # A question's last turn; what comes before it (a system prompt, earlier turns) may well be anybody's.
        items.append(overlap.Item(question.id, question.prompt, question.subject))
    for path in recipe.assemble.evaluations:
        found = 0
        for line, row in questions.read_objects(path):
            items.append(overlap.Item(str(row.get("id") or where(path.name, line)), _item_text(path, line, row)))
            found += 1
        if not found:
            raise UserError(f"{path}: has no rows. Remove it from assemble.evaluations, or name another file.")
    return items


def _item_text(path: Path, line: int, row: Row) -> str:
    for name in ("question", "text"):
        if isinstance(row.get(name), str) and "prompt" not in row and "messages" not in row:
            return str(row[name])
    return questions.prompt_messages(path, line, row)[-1]["content"]


def contaminated(path: Path, index: overlap.Index, items: list[overlap.Item]) -> dict[int, tuple[str, str]]:
    """Row number -> (reason, id of the item) of the rows of a table that repeat an item in prompt or answer."""
    found: dict[int, tuple[str, str]] = {}
    columns = COMPARED["pair"]
    compiled = artifacts.text_bytes(path, columns) >= near.COMPILE_BYTES
    begin = 0
    with progress("assemble: comparing with held-out questions", artifacts.count_rows(path), "rows") as advance:
        for batch in artifacts.read_texts(path, ["id", *columns]):
            # A completion that failed may have no text; its prompt counts all the same.
            batch = batch.set_column(2, "text", batch.column("text").fill_null(""))
            for hit in overlap.find(index, texts_of(batch, columns), compiled):
                found[begin + hit.row] = ("held_out_exact" if hit.exact else "held_out_overlap", items[hit.item].id)
            begin += batch.num_rows
            advance(batch.num_rows)
    return found


def plan(recipe: Recipe, path: Path, found: dict[int, tuple[str, str]]) -> Plan:
    """Decide for each kept row whether it is withheld, trained on or validated on. `found`: as of `contaminated`."""
    section = recipe.assemble
    table = artifacts.read_table(path, ["id", "prompt_id"])
    ids = table.column("id")
    codes = table.column("prompt_id").combine_chunks().dictionary_encode()
    prompt, prompt_ids = codes.indices.to_numpy(), codes.dictionary.to_pylist()
    reason: list[str | None] = [None] * len(table)
    overlaps: list[str | None] = [None] * len(table)
    for row, (why, item) in found.items():
        reason[row], overlaps[row] = why, item

    # The best rows of each prompt, among those that may be trained on.
    taken = [0] * len(prompt_ids)
    best: dict[int, int] = {}
    for row in best_first(ids, quality(path, section.best_by)).tolist():
        if reason[row] is not None:
            continue
        group = int(prompt[row])
        if taken[group] < section.best_of:
            taken[group] += 1
            best.setdefault(group, row)
        else:
            reason[row], overlaps[row] = "not_best", ids[best[group]].as_py()

    eligible = [prompt_ids[group] for group in range(len(prompt_ids)) if taken[group]]
    chosen = validation_prompts(path, eligible, section.validation_fraction, recipe.seed)
    in_validation = np.array([name in chosen for name in prompt_ids], bool)
    side = np.where(in_validation[prompt], VALIDATION_SIDE, TRAIN_SIDE).astype(np.int8)
    side[[row for row in range(len(table)) if reason[row] is not None]] = WITHHELD_SIDE
    return Plan(side, reason, overlaps)


def quality(path: Path, by: str) -> NDArray[np.float64]:
    """(n,) how good each row is, by `assemble.best_by`; -inf where that is not known.

    logprob: the mean natural log-probability of the answer's tokens, its end included, under the teacher itself."""
    if by != "logprob":
        return dedupe.quality(path, QUALITY[by])
    found = []
    for batch in artifacts.read_batches(path, ["logprobs"]):
        values = batch.column("logprobs")
        tokens = values.flatten().field("logprob").cast(pa.float64()).fill_null(-np.inf).to_numpy()
        ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
        counts = np.diff(ends, prepend=0)
        means = np.full(len(values), -np.inf)
        if len(tokens):
            means[counts > 0] = np.add.reduceat(tokens, (ends - counts)[counts > 0]) / counts[counts > 0]
        found.append(means)
    return np.concatenate(found)


def validation_prompts(path: Path, prompt_ids: list[str], fraction: float, seed: int) -> set[str]:
    """The prompts for validation: a share of the groups of similar prompts, by hash; at least one if there are two."""
    if fraction == 0 or len(prompt_ids) < 2:
        return set()
    groups: dict[str, list[str]] = {}
    for name, group in similar_prompts([path], set(prompt_ids)).items():
        groups.setdefault(group, []).append(name)
    most = max(1, int(fraction * len(prompt_ids)))
    small = sorted((_draw(seed, "split", group), group) for group, names in groups.items() if len(names) <= most)
    drawn = [group for share, group in small if share < fraction] or [group for _, group in small[:1]]
    if not drawn:
        # Every prompt is like every other one: then there is no clean split, and the smallest group must do.
        drawn = [min(groups, key=lambda group: (len(groups[group]), group))] if len(groups) > 1 else []
    return {name for group in drawn for name in groups[group]}


def similar_prompts(paths: list[Path], wanted: set[str] | None = None) -> dict[str, str]:
    """prompt id -> the smallest id among the prompts that a chain of similar prompts connects with it."""
    names: list[str] = []
    chunks: list[pa.Array] = []
    seen: set[str] = set()
    for path in paths:
        for batch in artifacts.read_texts(path, ["id", "prompt_id", "messages"]):
            new = []
            for row, name in enumerate(batch.column("prompt_id").to_pylist()):
                if name not in seen and (wanted is None or name in wanted):
                    seen.add(name)
                    names.append(name)
                    new.append(row)
            if new:
                chunks.append(texts_of(batch.take(pa.array(new)), COMPARED["prompt"]))
    texts = pa.chunked_array(chunks).combine_chunks()
    order = pc.sort_indices(pa.array(names))
    names, texts = [names[place] for place in order.to_pylist()], texts.take(order)
    group = near.similar_groups(texts, SPLIT_THRESHOLD, texts.nbytes >= near.COMPILE_BYTES)
    return {name: names[first] for name, first in zip(names, group.tolist(), strict=True)}


def random_subset(path: Path, count: int, seed: int, forbidden_rows: set[int], excluded: set[str]) -> list[int]:
    """`count` rows of the completions (or as many as there are), drawn uniformly, in ascending order."""
    draws: list[tuple[float, int]] = []
    begin = 0
    for batch in artifacts.read_batches(path, ["id", "prompt_id", "finish_reason", "text"]):
        columns = (batch.column(name).to_pylist() for name in ("id", "prompt_id", "finish_reason"))
        present = batch.column("text").is_valid().to_pylist()
        for row, (name, prompt, finish) in enumerate(zip(*columns, strict=True)):
            usable = finish in ("stop", "length") and present[row] and prompt not in excluded
            if usable and begin + row not in forbidden_rows:
                draws.append((_draw(seed, "random_subset", name), begin + row))
        begin += batch.num_rows
    return sorted(row for _, row in heapq.nsmallest(count, draws))


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


def _draw(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _rows_at(path: Path, numbers: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a table by number (ascending), one batch in memory at a time."""
    wanted = np.asarray(numbers, np.int64)
    begin = 0
    for batch in artifacts.read_batches(path, columns):
        first, last = np.searchsorted(wanted, [begin, begin + batch.num_rows])
        if last > first:
            yield batch.take(pa.array(wanted[first:last] - begin))
        begin += batch.num_rows


def _withheld(path: Path, plan: Plan) -> Iterator[pa.RecordBatch]:
    numbers = np.flatnonzero(plan.side == WITHHELD_SIDE).tolist()
    begin = 0
    for batch in _rows_at(path, numbers, KEPT.names):
        here = numbers[begin : begin + batch.num_rows]
        more = [pa.array([values[n] for n in here], pa.string()) for values in (plan.reason, plan.overlaps)]
        yield pa.RecordBatch.from_arrays([*batch.columns, *more], schema=WITHHELD)
        begin += batch.num_rows


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write train, validation, withheld, the baselines' data and the data card; return the counts.

    Raises UserError if nothing is left to train on, or if a named evaluation set is malformed.
    """
    kept, completions = inputs["kept"], inputs["completions"]
    dedupe.check(kept, KEPT, "dedupe")
    dedupe.check(completions, COMPLETIONS, "collect")
    items = forbidden(recipe)
    index = overlap.index(items, recipe.assemble.overlap)
    decided = plan(recipe, kept, contaminated(kept, index, items))
    rows = {side: np.flatnonzero(decided.side == side).tolist() for side in (TRAIN_SIDE, VALIDATION_SIDE)}
    reasons = {name: decided.reason.count(name) for name in ("held_out_exact", "held_out_overlap", "not_best")}
    if not rows[TRAIN_SIDE]:
        raise UserError(_nothing_left(len(decided.side), reasons, len(rows[VALIDATION_SIDE])))

    columns = ["id", "prompt_id", "messages", "text", "teacher", "agreement"]
    schema = TRAIN
    if recipe.collect.sampling.top_logprobs:  # which nobody asks for but to train on them
        columns, schema = [*columns, "logprobs"], TRAIN.append(KEPT.field("logprobs"))
    for side, name in ((TRAIN_SIDE, "train"), (VALIDATION_SIDE, "validation")):
        selected = map(training_form, _rows_at(kept, rows[side], columns))
        artifacts.write_table(out / f"{name}.parquet", schema, selected)
    artifacts.write_table(out / "withheld.parquet", WITHHELD, _withheld(kept, decided))

    notes = [] if items else ["no held-out questions, so nothing was compared with them"]
    if "random_subset" in recipe.train.baselines:
        count = len(rows[TRAIN_SIDE])
        drawn = _draw_baseline(recipe, inputs, decided, index, items, count)
        given = [column for column in columns if column != "agreement"]
        selected = map(training_form, _rows_at(completions, drawn, given))
        artifacts.write_table(out / "random_subset.parquet", schema, selected)
        if len(drawn) < count:
            notes.append(f"only {len(drawn):,} completions for the random subset of {count:,}")
    counts = {
        "rows_in": len(decided.side),
        "outcomes": {
            "train": len(rows[TRAIN_SIDE]),
            "validation": len(rows[VALIDATION_SIDE]),
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


def _draw_baseline(
    recipe: Recipe,
    inputs: dict[str, Path],
    decided: Plan,
    index: overlap.Index,
    items: list[overlap.Item],
    count: int,
) -> list[int]:
    prompts = artifacts.read_table(inputs["kept"], ["prompt_id"]).column("prompt_id")
    validated = set(prompts.filter(pa.array(decided.side == VALIDATION_SIDE)).to_pylist())
    excluded: set[str] = set()
    if validated:
        group = similar_prompts([inputs["completions"]])
        near_validation = {group[name] for name in validated}
        excluded = {name for name, first in group.items() if first in near_validation}
    dirty = set(contaminated(inputs["completions"], index, items))
    return random_subset(inputs["completions"], count, recipe.seed, dirty, excluded)


def _nothing_left(rows: int, reasons: dict[str, int], validation: int) -> str:
    counts = ", ".join(f"{name} {many:,}" for name, many in reasons.items() if many) or "none withheld"
    advice = "Ask for more prompts (generate.count) or filter less."
    if reasons["held_out_exact"] + reasons["held_out_overlap"] > validation:
        advice = (
            "The prompts repeat the held-out questions: hold out others (evaluate.questions) or make other prompts."
        )
    elif validation:
        advice = "Lower assemble.validation_fraction, or ask for more prompts (generate.count)."
    return f"nothing is left to train on: of {rows:,} rows {counts}, validation {validation:,}. {advice}"


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("assemble")
