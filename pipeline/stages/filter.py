"""filter: keep the teacher's answers that are worth learning from.

The rules are in pipeline/rules.py, refusals.py and premises.py. Every rule that rejects an answer is recorded; the
first one is the row's reason. What they keep is scored, where the recipe asks for it, by a reward model, by a causal
model (pipeline/local_scores.py) and by a judge (pipeline/judge.py), each asked only about what those before it have
kept. Of all rows only some numbers are in memory; of prompts and answers some thousand at a time. Nothing is thrown
away: what is not in kept.parquet is in rejected.parquet.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline import artifacts, asking, judge, paths
from pipeline.answers import Answer
from pipeline.calls.budget import CHARACTERS_A_TOKEN, estimated
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.recipe import Filter, Recipe
from pipeline.records import COMPLETIONS, KEPT, REJECTED, Message
from pipeline.rules import ENGLISH, PERSONAL_DATA, RULE_REASONS, RULES, Measured, Rule, personal_data, redacted

VERSION = 8
SECTIONS = ("filter", "filter_judge")
READS = {"completions": "collect"}

REASONS = (*RULE_REASONS, "reward", "ifd", "judge", "unjudged")
"""All reasons, in the order in which they decide: those of the rules, then those of the models."""

SCORES = ("score", "reward", "perplexity", "ifd")
"""Columns of KEPT that models fill in."""


def sources(recipe: Recipe) -> dict[str, Path]:
    """What the judge and the local models are made from."""
    config, found = recipe.filter, {}
    if not config.enabled:
        return {}
    for name, section in (("reward", config.reward), ("ifd", config.ifd), ("presidio", config.presidio)):
        if section and Path(section.model).is_dir():
            found[name] = Path(section.model)
    if recipe.filter_judge:
        from pipeline.stages import collect

        judging = recipe.model_copy(update={"collect": recipe.filter_judge})
        found |= {f"judge_{name}": path for name, path in collect.sources(judging).items()}
        found["judge_template"] = paths.template_of(recipe.domain, "judge_score.jinja")
    return found


def check(recipe: Recipe) -> None:
    """Raises UserError if the judge's key is not there."""
    if recipe.filter_judge:
        from pipeline.stages import collect

        collect.check(recipe.model_copy(update={"collect": recipe.filter_judge}))


_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Marks that carry a number's value stay: the point of 1513.1 and the minus of -5.
_MARKS = re.compile(r"(?!(?<=\d)\.(?=\d))(?!(?<!\w)-(?=\d))[^\w\s]|_")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def normalised(text: str) -> str:
    """An answer reduced to what it says: NFKC, case-folded, without articles, punctuation and white space (but for the
    space between two numbers). Two samples agree if this is equal."""
    if text.isascii() and not any(map(text.__contains__, string.digits)):
        marked = text.lower().translate(_PUNCTUATION)  # the same, faster
    else:
        marked = _MARKS.sub("", unicodedata.normalize("NFKC", text).casefold())
    *words, last = marked.split() or [text]
    said = " ".join([word for word in words if word not in _ARTICLES] + [last])
    return _SPACE.sub("", said)


# All of ASCII but the letters and digits that no article has and that `normalised` keeps.
_GIST = set(string.ascii_lowercase + string.digits) - set("".join(_ARTICLES))
_NO_GIST = bytes(code for code in range(128) if chr(code) not in _GIST)


def gist(text: str) -> bytes:
    """Some of an answer's letters, many times as fast as `normalised`: what has another gist says something else."""
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return plain.encode("ascii", "ignore").translate(None, _NO_GIST)


def agreements(source: Path) -> np.ndarray:
    """For each row, in order, the share of its prompt's completions that say the same as it does (itself included);
    NaN for a prompt with one completion. 24 bytes a row are held. Self-consistency: Wang et al., 2022.

    source: a table with prompt_id and text.
    """
    prompts = (batch["prompt_id"] for batch in _batches(source, ["id", "prompt_id"], needed=["id", "prompt_id"]))
    prompt = np.concatenate([_hashes(name.encode() for name in ids.to_pylist()) for ids in prompts])
    samples = _group_sizes(prompt, prompt)
    if samples.max() == 1:
        return np.full(len(prompt), np.nan)
    texts = (batch["text"].fill_null("") for batch in _batches(source, ["text"]))
    said = np.concatenate([_hashes(map(gist, some.to_pylist())) for some in texts])
    alike = _group_sizes(prompt, said) > 1
    done = 0
    for batch in _batches(source, ["text"]) if alike.any() else ():
        rows = np.flatnonzero(alike[done : done + batch.num_rows])
        texts = batch["text"].take(pa.array(rows)).fill_null("").to_pylist()
        said[done + rows] = _hashes(normalised(text).encode() for text in texts)
        done += batch.num_rows
    return np.where(samples > 1, _group_sizes(prompt, said) / samples, np.nan)


def _hashes(values: Iterable[bytes]) -> np.ndarray:
    return np.fromiter(map(xxhash.xxh3_64_intdigest, values), dtype=np.uint64)


def _group_sizes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each position, how many positions have the same pair of values."""
    order = np.lexsort((second, first))
    one, two = first[order], second[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    group = np.cumsum(new) - 1
    sizes = np.empty(len(order), dtype=np.int64)
    sizes[order] = np.bincount(group)[group]
    return sizes


def verdicts(batch: pa.RecordBatch, shares: np.ndarray, config: Filter, compiled: bool = False) -> np.ndarray:
    """For each row of a batch, the reasons to reject it, as a bit mask over REASONS (0: the row is kept).

    batch: columns messages, text, finish_reason, context. shares: each row's agreement, NaN where there is none.
    compiled: whether to count words with machine code first. That changes how fast it goes, not what comes out.
    """
    prompts, texts = _prompts(batch), batch["text"].fill_null("")
    on = [rule for rule in RULES if not rule.fields or any(getattr(config, field) not in OFF for field in rule.fields)]
    asked = _to_ask(on, batch, prompts, texts, shares, config, compiled)
    rows = np.flatnonzero(asked)
    columns = (prompts, texts, batch["finish_reason"], batch["context"])
    parts = zip(*(column.take(pa.array(rows)).to_pylist() for column in columns), shares[rows].tolist(), strict=True)
    chosen = {bits: [rule for bit, rule in enumerate(on) if bits >> bit & 1] for bits in np.unique(asked).tolist()}
    masks = np.zeros(len(texts), dtype=np.uint64)
    for row, bits, (prompt, text, ended, context, share) in zip(
        rows.tolist(), asked[rows].tolist(), parts, strict=True
    ):
        answer, mask = Answer(prompt, text, ended, None if share != share else share, context), 0
        for rule in chosen[bits]:
            if reason := rule.check(answer, config):
                mask |= _BIT[reason]
                if mask & _UNREAD:  # what is empty or too long is not looked at any further
                    break
        masks[row] = mask
    return masks


COMPILE_BYTES = 16 << 20
"""From so much text on, it is faster to count words with machine code although that has to be loaded first."""

OFF = (False, None, "off")
"""Values of a recipe's field that turn a rule off."""

LONG_HINT = 1_000
"""Characters of a hint (Rule.in_text) from which it is looked for by itself."""

_BIT = {reason: 1 << bit for bit, reason in enumerate(REASONS)}
_UNREAD = _BIT["empty"] | _BIT["too_long"]


def _to_ask(
    on: list[Rule],
    batch: pa.RecordBatch,
    prompts: pa.Array,
    texts: pa.Array,
    shares: np.ndarray,
    config: Filter,
    compiled: bool,
) -> np.ndarray:
    """(n,) for each row of a batch, the rules in `on` that may reject it, as a bit mask over them."""
    plain = pc.replace_substring(texts, "\u2019", "'")
    rows = _measured(prompts, texts, shares, compiled)
    need = np.zeros(len(texts), np.int64)
    # All short hints at once cost little more than one, and only the texts in which any is found are looked at for
    # each; with a long one among them RE2 runs out of room for its states and is ten times as slow.
    short = [rule for rule in on if 0 < len(rule.in_text) <= LONG_HINT]
    some = _found_in(plain, "|".join(f"(?:{rule.in_text})" for rule in short))
    few = plain.take(pa.array(some))
    for bit, rule in enumerate(on):
        here = np.zeros(len(texts), np.bool_)
        if rule in short:
            here[some[_found_in(few, rule.in_text)]] = True
        elif rule.in_text:
            here[_found_in(plain, rule.in_text)] = True
        if rule.in_prompt:
            here[_found_in(prompts, rule.in_prompt)] = True
        if rule.in_context:
            here |= batch["context"].is_valid().to_numpy(zero_copy_only=False)
        if rule.ended:
            here |= pc.is_in(batch["finish_reason"], pa.array(rule.ended)).to_numpy(zero_copy_only=False)
        if rule.where:
            here |= rule.where(rows, config)
        if not (rule.in_text or rule.in_prompt or rule.in_context or rule.ended or rule.where):
            here[:] = True
        need |= here.astype(np.int64) << bit
    return need


def _measured(prompts: pa.Array, texts: pa.Array, shares: np.ndarray, compiled: bool) -> Measured:
    characters, asked = (pc.utf8_length(column).to_numpy().astype(np.int64) for column in (texts, prompts))
    if compiled:
        from pipeline import measures

        counts: Any = measures.count(texts, ENGLISH)
    else:
        counts = [np.zeros(len(texts), np.bool_), *np.zeros((9, len(texts)), np.int64)]
    return Measured(prompts, characters, asked, shares, *counts)


def _found_in(texts: pa.Array, pattern: str) -> np.ndarray:
    """The positions of the texts in which a pattern is found. No pattern is found nowhere."""
    if not pattern:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(pc.match_substring_regex(texts, pattern, ignore_case=True))


def _prompts(batch: pa.RecordBatch) -> pa.Array:
    """The content of each row's last message, "" where there is none."""
    messages = batch["messages"]
    offsets = messages.offsets.to_numpy()
    last = pa.array(offsets[1:] - 1, mask=offsets[1:] == offsets[:-1])
    return messages.values.field("content").take(last).fill_null("")


def score(
    recipe: Recipe, source: Path, masks: np.ndarray, out: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None, str | None]:
    """Let the models of the recipe score the rows that no rule rejects; what they reject is added to `masks`.

    out: the folder of the stage. Returns {column of SCORES: (rows,), NaN where there is no score}, what the judge used
    as collect counts it (None without a judge), and a sentence about it.
    """
    config, usage, note = recipe.filter, None, None
    scores = {name: np.full(len(masks), np.nan) for name in SCORES}
    if config.reward:
        from pipeline.local_scores import rewards

        rows = np.flatnonzero(masks == 0)
        with progress("reward", len(rows), "rows") as advance:
            scores["reward"][rows] = rewards(config.reward, _pairs(source, rows, config), advance)
        if config.reward.min_score is not None:
            masks[scores["reward"] < config.reward.min_score] |= np.uint64(_BIT["reward"])
    if config.ifd:
        from pipeline.local_scores import difficulty

        rows = np.flatnonzero(masks == 0)
        with progress("ifd", len(rows), "rows") as advance:
            found = difficulty(config.ifd, _pairs(source, rows, config), advance)
        scores["perplexity"][rows], scores["ifd"][rows] = found
        low, high = config.ifd.min, config.ifd.max
        masks[scores["ifd"] < (-np.inf if low is None else low)] |= np.uint64(_BIT["ifd"])
        masks[scores["ifd"] > (np.inf if high is None else high)] |= np.uint64(_BIT["ifd"])
    if config.judge:
        rows = np.flatnonzero(masks == 0)
        scale = config.judge.low, config.judge.high
        given, usage = judge.score(recipe, config.judge, _pairs(source, rows, config), scale, out)
        scores["score"][rows] = [np.nan if one is None else one for one in given]
        if config.judge.min_score is not None:
            masks[scores["score"] < config.judge.min_score] |= np.uint64(_BIT["judge"])
        unjudged = rows[np.isnan(scores["score"][rows])]
        if config.judge.unjudged == "reject":
            masks[unjudged] |= np.uint64(_BIT["unjudged"])
        note = f"{len(rows):,} judged for ${usage.get('cost_usd', 0):,.4f}"
        if len(unjudged):
            note += f", {len(unjudged):,} without a score"
        if usage.get("over_budget"):
            note += f". {asking.over_budget(usage['over_budget'], 'filter')}"
    return scores, usage, note


def _pairs(source: Path, numbers: np.ndarray, config: Filter) -> Iterator[tuple[list[Message], str]]:
    """The prompts (with the passage before the question, where there is one) and answers of the rows with these
    numbers, a batch in memory at a time; personal data is redacted where the recipe says so, for a judge may be a
    stranger."""
    read, done = ["messages", "text", "context"], 0
    for batch in _batches(source, read):
        rows = numbers[np.searchsorted(numbers, done) : np.searchsorted(numbers, done + batch.num_rows)] - done
        taken = batch.take(pa.array(rows))
        columns = {name: taken[name] for name in read}
        if config.pii == "redact":
            columns |= _marked(taken, config)
        for messages, text, context in zip(*(columns[name].to_pylist() for name in read), strict=True):
            last = messages[-1]
            if context and context not in last["content"]:
                messages[-1] = last | {"content": f"{context}\n\n{last['content']}"}
            yield messages, text
        done += batch.num_rows


def estimate(recipe: Recipe, prompts: Path | None, completions: Path | None) -> list[dict[str, Any]]:
    """What the judge would take at the most, were every answer kept so far and nothing stored: lines as of
    collect.estimate. prompts, completions: the tables as far as they are there; an answer that is not there yet is
    taken to be as long as it may be, a prompt to have 200 characters."""
    from pipeline.stages import collect

    if not recipe.filter.judge or not recipe.filter_judge:
        return []
    (teacher,), sampling = recipe.filter_judge.teachers, recipe.collect.sampling
    answers = sum(line["output_tokens"] for line in collect.estimate(recipe, prompts)) // sampling.max_tokens
    characters = answers * (200 + sampling.max_tokens * CHARACTERS_A_TOKEN)
    if completions:
        answers, characters = artifacts.count_rows(completions), 0
        for batch in artifacts.read_batches(completions, ["messages", "text"]):
            for texts in (batch["messages"].flatten().field("content"), batch["text"]):
                characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
    template = (
        paths.template_of(recipe.domain, "judge_score.jinja").read_text(encoding="utf-8") + recipe.filter.judge.criteria
    )
    read = (characters + answers * len(template)) // CHARACTERS_A_TOKEN
    return [estimated(teacher, "filter.judge", answers, read, answers * recipe.filter.judge.max_tokens)]


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Split completions into kept and rejected. Raises UserError if the input is not usable or nothing is kept, and
    what collect raises where there is a judge."""
    source, config = inputs["completions"], recipe.filter
    total = artifacts.check(source, COMPLETIONS, "collect")
    shares = agreements(source)

    masks = np.zeros(total, dtype=np.uint64)
    scores: dict[str, np.ndarray] = {}
    usage, note = None, None
    done, compiled = 0, artifacts.text_bytes(source, ("text",)) >= COMPILE_BYTES
    with progress("filter", total, "rows") as advance:
        for batch in _batches(source, ["messages", "text", "finish_reason", "context"]):
            rows = slice(done, done + batch.num_rows)
            if config.enabled:
                masks[rows] = verdicts(batch, shares[rows], config, compiled)
            # What has no answer or no prompt is of no use to any stage, and none after this one takes it.
            missing = pc.or_(artifacts.is_missing(batch["messages"]), artifacts.is_missing(batch["text"]))
            masks[rows][missing.to_numpy(zero_copy_only=False)] |= np.uint64(_BIT["empty"])
            done += batch.num_rows
            advance(batch.num_rows)
    _stop_if_nothing_is_left(source, masks)
    if config.enabled:
        scores, usage, note = score(recipe, source, masks, out)
        _stop_if_nothing_is_left(source, masks)

    scores["agreement"] = shares
    targets = [(out / "kept.parquet", KEPT), (out / "rejected.parquet", REJECTED)]
    kept, rejected = artifacts.write_tables(targets, _split(source, scores, masks, config))
    return {
        "rows_in": total,
        "outcomes": {"kept": kept, "rejected": rejected},
        "reasons": dict(sorted(_counted(masks).items())),
        **({"usage": usage} if usage else {}),
        **({"note": note} if note else {}),
    }


def _counted(masks: np.ndarray) -> Counter[str]:
    """The rejected rows by the reason that decided."""
    reasons: Counter[str] = Counter()
    for mask, rows_with in zip(*np.unique(masks[masks > 0], return_counts=True), strict=True):
        reasons[_names(mask)[0]] += int(rows_with)
    return reasons


def _stop_if_nothing_is_left(source: Path, masks: np.ndarray) -> None:
    reasons = _counted(masks)
    if reasons.total() == len(masks):
        said = ", ".join(f"{reason} {rows_with:,}" for reason, rows_with in reasons.most_common())
        raise UserError(
            f"filter: none of the {len(masks):,} answers is left ({said}). Look at them in {source}; then turn off or "
            "loosen the rule in the recipe's `filter:` section, or mend the prompts or the teacher."
        )


def _batches(source: Path, columns: list[str], needed: Iterable[str] = ()) -> Iterator[pa.RecordBatch]:
    """Batches whose text is text. Raises UserError where bytes that are not UTF-8 were put into a column of text, or
    where one of the columns `needed` is null."""
    return artifacts.read_texts(source, columns, "Make the table again with --from collect.", needed)


def _names(mask: np.uint64) -> list[str]:
    """The reasons in a mask, the one that decides first."""
    return [reason for bit, reason in enumerate(REASONS) if int(mask) >> bit & 1]


def _split(
    source: Path, scores: dict[str, np.ndarray], masks: np.ndarray, config: Filter
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """The rows as KEPT and REJECTED, a batch of each at a time."""
    done = 0
    for batch in _batches(source, COMPLETIONS.names):
        here = slice(done, done + batch.num_rows)
        columns = {name: batch[name] for name in COMPLETIONS.names}
        columns |= {name: pa.nulls(batch.num_rows, KEPT.field(name).type) for name in ("pii", *SCORES)}
        columns |= {name: pa.array(values[here], from_pandas=True) for name, values in scores.items()}
        if config.enabled and config.pii in ("flag", "redact"):
            columns |= _marked(batch, config)
        rows = pa.RecordBatch.from_arrays([columns[name] for name in KEPT.names], schema=KEPT)
        kept = pa.array(masks[here] == 0)
        earned = [_names(mask) for mask in masks[here][masks[here] != 0]]
        rejected = [*rows.filter(pc.invert(kept)).columns, pa.array([names[0] for names in earned], pa.string())]
        rejected.append(pa.array(earned, REJECTED.field("reasons").type))
        yield rows.filter(kept), pa.RecordBatch.from_arrays(rejected, schema=REJECTED)
        done += batch.num_rows


def _marked(batch: pa.RecordBatch, config: Filter) -> dict[str, pa.Array]:
    """The column pii, and where the recipe says `redact`, the columns text, messages, context and, if the batch has it,
    reasoning without personal data; logprobs spell out what was redacted, and are null in such rows."""
    redact, presidio = config.pii == "redact", config.presidio
    thoughts: list[Any] = [None] * batch.num_rows
    if "reasoning" in batch.schema.names:
        thoughts = batch["reasoning"].to_pylist()
    spelled = np.zeros(batch.num_rows, np.bool_)
    texts, conversations, contexts = (batch[name].to_pylist() for name in ("text", "messages", "context"))
    kinds: list[list[str]] = [[] for _ in texts]
    for i in range(len(texts)) if presidio else _with_patterns(batch):
        said = [texts[i] or "", *(message["content"] or "" for message in conversations[i] or [])]
        kinds[i] = sorted({kind for part in said for kind, _, _ in personal_data(part, presidio)})
        if redact:
            before = texts[i], thoughts[i]
            texts[i] = texts[i] and redacted(texts[i], presidio)
            thoughts[i] = thoughts[i] and redacted(thoughts[i], presidio)
            spelled[i] = before != (texts[i], thoughts[i])
            contexts[i] = contexts[i] and redacted(contexts[i], presidio)
            for message in conversations[i] or []:
                message["content"] = message["content"] and redacted(message["content"], presidio)
    columns: dict[str, list[Any]] = {"pii": kinds}
    if redact:
        columns |= {"text": texts, "messages": conversations, "context": contexts, "reasoning": thoughts}
    made = {name: pa.array(values, KEPT.field(name).type) for name, values in columns.items()}
    if redact and "logprobs" in batch.schema.names:
        made["logprobs"] = batch["logprobs"].take(pa.array(np.arange(batch.num_rows), mask=spelled))
    return made


def _with_patterns(batch: pa.RecordBatch) -> list[int]:
    """The rows in which a pattern of personal data may be found."""
    messages = batch["messages"]
    turns = _found_in(messages.flatten().field("content"), PERSONAL_DATA)
    of_turn = pc.list_parent_indices(messages).to_numpy()[turns]
    texts = (name for name in ("text", "context", "reasoning") if name in batch.schema.names)
    rows = [_found_in(batch[name].fill_null(""), PERSONAL_DATA) for name in texts]
    return np.unique(np.concatenate([of_turn, *rows])).tolist()


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("filter")
