"""Verdicts of a teacher on answers: how good one is, and which of two is better (LLM-as-a-judge: Zheng et al., 2023).

    score     prompt, answer -> a number on a scale
    compare   prompt, two answers -> win, tie or loss of the first. Asked in both orders, because judges lean towards
              one of the places: where the two verdicts are not the same it is a tie

The judge does not learn whose answers they are. They reach it as data between tags that have a hash of the contents in
their names: nobody can write an answer that closes its own tag, and the same answer makes the same request, which the
response store has already. What a judge says besides its verdict, or instead of it, is no verdict.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pipeline import asking
from pipeline.paths import template_of
from pipeline.recipe import Collect, Judge, Recipe
from pipeline.records import Message, canonical_json
from pipeline.templates import fill, load

Outcome = Literal["win", "loss", "tie", "order", "same", "unclear", "failed"]
"""Of the first of two answers. Three kinds of tie: the judge says so in both orders (tie), what it says hangs on the
order (order), or both answers are the same and it was not asked (same). Two kinds of none: in one of the orders it said
something else than a verdict (unclear), or nothing, for its provider failed or the budget was spent (failed)."""

MAX_VERDICT = 1 << 16
"""Characters of a judge's answer, its last ones, in which a verdict is looked for."""

_PREFERENCES = {"a": "A", "b": "B", "tie": "tie"}


def score(
    recipe: Recipe,
    judge: Judge,
    pairs: Iterable[tuple[Sequence[Message], str]],
    scale: tuple[int, int],
    out: Path,
) -> tuple[list[float | None], dict[str, Any]]:
    """How good answers are, from scale[0] to scale[1].

    pairs: a conversation that ends with a user turn, and the answer to it; taken one by one. out: the folder of the
    stage that asks. Returns a score for each pair, None where the judge gave none, and what was used, as collect counts
    it. Raises what collect raises, RecipeError for a template that cannot be filled in.
    """
    low, high = scale
    form = load(template_of(recipe.domain, "judge_score.jinja"))

    def requests() -> Iterator[list[Message]]:
        for messages, answer in pairs:
            asked = conversation(messages)
            tag = tag_of(asked, answer)
            text = fill(form, prompt=asked, answer=answer, tag=tag, criteria=judge.criteria, low=low, high=high)
            yield [{"role": "user", "content": text}]

    schema = _schema("score", {"type": "integer", "enum": list(range(low, high + 1))})
    section = _asked_for(recipe, judge, schema)
    return asking.ask(recipe, section, requests(), out, lambda row: read_score(row["text"], scale))


def compare(
    recipe: Recipe, judge: Judge, triples: Sequence[tuple[Sequence[Message], str, str]], out: Path
) -> tuple[list[Outcome], dict[str, Any]]:
    """Whether the first of two answers is better than the second, asked in both orders.

    triples: a conversation that ends with a user turn, and two answers to it. Returns for each the outcome of the first
    answer, and what was used, as collect counts it. Two answers that are the same are a tie, and the judge is not
    asked. Raises what collect raises, RecipeError for a template that cannot be filled in.
    """
    form, requests = load(template_of(recipe.domain, "judge_compare.jinja")), []
    open_to_doubt = [number for number, (_, one, other) in enumerate(triples) if one != other]
    for number in open_to_doubt:
        messages, one, other = triples[number]
        asked = conversation(messages)
        for first, second in ((one, other), (other, one)):
            tag = tag_of(asked, first, second)
            text = fill(form, prompt=asked, first=first, second=second, tag=tag, criteria=judge.criteria)
            requests.append([{"role": "user", "content": text}])
    schema = _schema("verdict", {"type": "string", "enum": list(_PREFERENCES.values())})
    rows, usage = asking.ask(recipe, _asked_for(recipe, judge, schema), requests, out)
    said = [read_preference(row["text"]) or "unclear" if row else "failed" for row in rows]
    outcomes: list[Outcome] = ["same"] * len(triples)
    for number, forwards, backwards in zip(open_to_doubt, said[::2], said[1::2], strict=True):
        outcomes[number] = _agreed(forwards, backwards)
    return outcomes, usage


def _agreed(forwards: str, backwards: str) -> Outcome:
    """The outcome of the first answer; backwards it was shown as B."""
    if "failed" in (forwards, backwards):
        return "failed"
    if "unclear" in (forwards, backwards):
        return "unclear"
    outcomes: dict[tuple[str, str], Outcome] = {("A", "B"): "win", ("B", "A"): "loss", ("tie", "tie"): "tie"}
    return outcomes.get((forwards, backwards), "order")


def conversation(messages: Sequence[Message]) -> str:
    """A conversation as a text: one user turn as it is, several turns each after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)


def tag_of(*contents: str) -> str:
    """16 hexadecimal digits that are in none of the contents, for they are a hash of them."""
    return blake2b(canonical_json(contents).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_score(text: str, scale: tuple[int, int]) -> float | None:
    """The number in a judge's answer, or None if there is none on the scale, or more than one."""
    said = read_verdict(text, "score")
    if isinstance(said, str) and re.fullmatch(r"\s*\d{1,3}(?:\.\d{1,3})?\s*", said):
        said = float(said)
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    # NaN is on no scale, and a number of hundreds of digits, which is no float, is not either.
    return float(said) if scale[0] <= said <= scale[1] else None


def read_preference(text: str) -> str | None:
    """A, B or tie in a judge's answer, or None if there is none, or more than one."""
    said = read_verdict(text, "verdict")
    return _PREFERENCES.get(said.strip().lower()) if isinstance(said, str) else None


def read_verdict(text: str, key: str) -> Any:
    """The value of `key` in the JSON object that a judge's answer has somewhere (after its thoughts, between words, in
    a code block), or None if there is none, or if several such objects say different things. Never raises."""
    # Longer ones are some server's garbage; to say where it is wrong, json counts the lines before it, every time.
    text = re.sub(r"(?s)^.*</think(?:ing)?>", "", text)[-MAX_VERDICT:]
    decoder, found, place = json.JSONDecoder(), [], text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict) and key in value:
                found.append(value[key])
        place = text.find("{", end)
    return found[0] if found and all(value == found[0] for value in found) else None


def _schema(key: str, values: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a verdict: the reason comes first, so that the verdict follows from it."""
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, key: values},
        "required": ["reason", key],
        "additionalProperties": False,
    }


def _asked_for(recipe: Recipe, judge: Judge, schema: dict[str, Any]) -> Collect:
    """How the judge is asked: with the schema where the provider takes one. Anthropic's and local models get it in
    words only, in the template."""
    section = recipe.judging(judge)
    (teacher,) = section.teachers
    if not judge.structured or teacher.provider not in ("openai", "vllm"):
        return section
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    teacher = teacher.model_copy(update={"extra": {"response_format": form} | teacher.extra})
    return section.model_copy(update={"teachers": [teacher]})
