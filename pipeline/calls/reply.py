"""What a provider's body means, in one vocabulary for all of them.

A provider's file has a pure function `parse(status, body, n) -> Parsed | Problem`; nothing behind it knows a vendor.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Logprob = dict[str, Any]
"""{"token": text or None, "id": int or None, "logprob": nats, "top": list of the same or None}"""


class Reply(NamedTuple):
    """One answer."""

    text: str
    finish_reason: str  # one of records.FINISH_REASONS
    reasoning: str | None = None
    logprobs: list[Logprob] | None = None


class Usage(NamedTuple):
    """Tokens of a whole request, all its answers together."""

    input_tokens: int  # cached ones included
    cached_tokens: int  # of the input: read from the provider's cache
    output_tokens: int
    cache_write_tokens: int = 0  # of the input: written to the provider's cache, where that costs extra


class Parsed(NamedTuple):
    """A body with answers."""

    replies: Sequence[Reply | None]  # None: no answer among others that are; asked again alone
    usage: Usage | None  # None where the server does not say


class Problem(NamedTuple):
    """A body without answers, and what to do about it.

    retry   it may go well the next time (overload, a broken body)
    final   it will not: the row ends here and is not asked again
    stop    no request can go well (key, quota, unknown model): the run stops
    """

    kind: Literal["retry", "final", "stop"]
    reason: str  # one word, the failures table's `reason`
    detail: str  # what the provider said
    may_be_billed: bool = False
    throttled: bool = False  # the provider asks for fewer requests


def unanswered(parsed: Parsed, n: int) -> list[int]:
    """Which of the n samples that were asked for a body does not have."""
    there = len(parsed.replies)
    return [choice for choice in range(n) if choice >= there or parsed.replies[choice] is None]


def mend(text: str) -> str:
    """The text with lone surrogates, which neither UTF-8 nor Parquet can hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shares(total: int, n: int) -> list[int]:
    """`total` shared out among n, whole numbers that add up to it: the first ones get the remainder."""
    return [total // n + (i < total % n) for i in range(n)]


def output_shares(parsed: Parsed) -> Sequence[int | None]:
    """Output tokens of each answer. Providers give only their sum: exact for one answer and where there is an entry of
    logprobs for each token, else shared out evenly."""
    if parsed.usage is None:
        return [None] * len(parsed.replies)
    counts = [len(reply.logprobs or ()) if reply else 0 for reply in parsed.replies]
    if len(counts) > 1 and sum(counts) == parsed.usage.output_tokens:
        return counts
    return shares(parsed.usage.output_tokens, len(parsed.replies))


def problem_of_status(status: int, code: str, message: str) -> Problem:
    """What an HTTP status other than 200 means at any provider, where its own file knows no better."""
    said = f"HTTP {status}{f' {code}' if code else ''}: {message or 'no explanation'}"
    if status in (401, 403):
        return Problem("stop", "auth", f"the key was refused ({said}).")
    if status == 402:
        return Problem("stop", "quota", f"the account has to be paid for ({said}).")
    if status == 404:
        return Problem("stop", "not_found", f"unknown model or wrong base_url ({said}).")
    if 300 <= status < 400:
        return Problem("stop", "redirect", f"the server redirects, which is not followed ({said}). Mend base_url.")
    if status in (429, 503, 529):
        return Problem("retry", "throttled" if status == 429 else "overloaded", said, throttled=True)
    if status in (408, 409, 425) or status >= 500:
        return Problem("retry", "server_error", said)
    if 400 <= status < 500:
        return Problem("final", "too_large" if status == 413 else "rejected", said)
    return Problem("retry", "bad_status", said)


def bad_body(detail: str, body: bytes) -> Problem:
    """A body with status 200 that is no answer."""
    start = body[:200].decode("utf-8", "replace")
    return Problem("retry", "bad_body", f"{detail}; the body begins {start!r}", may_be_billed=True)
