"""What requests cost, and a budget that is never passed: the worst case is reserved before sending, settled after."""

import asyncio
from typing import Any

from pipeline.calls.reply import Usage
from pipeline.recipe import Teacher

Rates = tuple[float, float, float, float]
"""US dollars a million tokens: input, cached input, input written to the cache, output."""

BATCH_SHARE = 0.5  # of the price, for a provider's batch interface
CHARACTERS_A_TOKEN = 4  # a rule of thumb, for estimates and pacing only; the budget reckons with bytes


def rates_of(teacher: Teacher, share: float = 1.0) -> Rates | None:
    """The rates of a teacher, or a share of them; None where the recipe gives no price."""
    price = teacher.price
    if price is None:
        return None
    cached = price.input if price.cached_input is None else price.cached_input
    written = price.input if price.cache_write is None else price.cache_write
    return (price.input * share, cached * share, written * share, price.output * share)


def cost(rates: Rates, usage: Usage) -> float:
    """US dollars for what was used."""
    fresh = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    amounts = (fresh, usage.cached_tokens, usage.cache_write_tokens, usage.output_tokens)
    return sum(rate * amount for rate, amount in zip(rates, amounts, strict=True)) / 1e6


def worst_case(rates: Rates, body: bytes, messages: int, max_tokens: int, n: int) -> float:
    """The most US dollars that a request can cost. No tokenizer makes more tokens than there are bytes; a message's
    frame is a few tokens more."""
    return (max(rates[:3]) * (len(body) + 32 * (messages + 1)) + rates[3] * max_tokens * n) / 1e6


def estimated(teacher: Teacher, label: str, requests: int, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What asking would take, a line of `seqkd plan`: {"teacher" (with what it is asked for, the label), "provider",
    "requests", "input_tokens", "output_tokens", "usd" (None without a price)}."""
    rates = rates_of(teacher, BATCH_SHARE if teacher.mode == "batch" else 1.0)
    return {
        "teacher": f"{teacher.called} ({label})" if label else teacher.called,
        "provider": teacher.provider,
        "requests": requests,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "usd": cost(rates, Usage(input_tokens, 0, output_tokens)) if rates else None,
    }


class Budget:
    """US dollars that may be spent; None: no limit."""

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self.limit, self.spent, self.reserved = limit, spent, 0.0
        self.closed = False  # something did not fit: nothing more is sent
        self._settled = asyncio.Condition()

    async def reserve(self, usd: float) -> bool:
        """Set the worst case of a request aside, waiting for others to settle if need be. False: it does not fit."""
        if self.limit is None:
            return True
        async with self._settled:
            while not self.closed and self.spent + self.reserved + usd > self.limit:
                if self.reserved <= 0:
                    self.closed = True
                else:
                    await self._settled.wait()
            if self.closed:
                return False
            self.reserved += usd
            return True

    def reserve_now(self, usd: float) -> bool:
        """Set a worst case aside if it fits at once."""
        if self.limit is None:
            return True
        if self.closed or self.spent + self.reserved + usd > self.limit:
            return False
        self.reserved += usd
        return True

    async def settle(self, reserved: float, usd: float) -> None:
        """What a request had reserved is free again, and what it cost is spent."""
        if self.limit is None:
            self.spent += usd
            return
        async with self._settled:
            self.reserved -= reserved
            self.spent += usd
            if self.reserved < 1e-12:
                self.reserved = 0.0  # so that rounding does not keep a waiter waiting
            self._settled.notify_all()
