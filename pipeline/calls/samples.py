"""Samples that are wanted from one teacher: which of them the response store lacks, and the requests for those."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from types import ModuleType
from typing import Any, NamedTuple

from pipeline.calls.budget import CHARACTERS_A_TOKEN, Rates, cost, worst_case
from pipeline.calls.online import Call, settle_cost, unbind
from pipeline.calls.reply import Parsed, Problem, unanswered
from pipeline.calls.store import Sql, Store
from pipeline.records import Message


class Ask(NamedTuple):
    """One sample wanted from one teacher."""

    id: str  # the row's
    prompt_id: str
    sample: int
    messages: list[Message]  # the prompt's, without the system message
    context: str | None  # the prompt's
    request: dict[str, Any]  # what determines the answer besides the sample number
    canonical: str  # the same as canonical JSON
    key: bytes  # in the response store


def seed_of(ask: Ask) -> int:
    """A sample's own seed, 63 bits. Not from the key: a teacher trained anew from the same facts samples alike."""
    content = f"{ask.sample} {ask.canonical}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8).digest()) >> 1


def missing(
    parse: Callable[[int, bytes], Parsed | Problem], asks: list[Ask], store: Store
) -> tuple[list[Ask], list[Sql]]:
    """The asks without a usable answer, and what has to be mended in the store.

    Stored bodies are parsed again: one whose process died between storing and parsing it may be no answer at all.
    """
    answers = store.answers([ask.key for ask in asks])
    lacking, mends = [], []
    for ask in asks:
        answer = answers.get(ask.key)
        if answer is None:
            lacking.append(ask)
            continue
        outcome = parse(answer.status, answer.body)
        if isinstance(outcome, Problem):
            usable = outcome.kind == "final"
        else:
            usable = answer.choice not in unanswered(outcome, answer.choice + 1)
            if answer.rates and outcome.usage and cost(answer.rates, outcome.usage) != answer.usd:
                mends.append(settle_cost(answer.body_id, cost(answer.rates, outcome.usage)))
        if not usable:
            mends.append(unbind(ask.key, answer.body_id))
            lacking.append(ask)
    return lacking, mends


def calls_of(provider: ModuleType, asks: list[Ask], rates: Rates | None, together: int, shift: int = 0) -> list[Call]:
    """The requests for `asks`, up to `together` samples of a prompt in each, with other seeds by `shift`. `provider`:
    its file in pipeline/teachers."""
    made, start = [], 0
    while start < len(asks):
        end = start + 1
        while end < len(asks) and end - start < together and asks[end].prompt_id == asks[start].prompt_id:
            end += 1
        some = asks[start:end]
        request, n = some[0].request, len(some)
        body = provider.wire(request, n, seed_of(some[0]) + shift)
        limit = next(request[name] for name in ("max_completion_tokens", "max_tokens") if name in request)
        usd = worst_case(rates, body, len(request["messages"]), limit, n) if rates else 0.0
        tokens = len(body) // CHARACTERS_A_TOKEN + limit * n

        def again(places: Sequence[int], together: int, more: int, some: list[Ask] = some) -> list[Call]:
            return calls_of(provider, [some[place] for place in places], rates, together, more)

        made.append(Call(tuple(ask.key for ask in some), body, tokens, usd, again))
        start = end
    return made
