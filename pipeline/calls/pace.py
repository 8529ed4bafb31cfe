"""How fast one teacher may be asked: requests and tokens a minute, how many in flight, and when to hold back.

Limits come from the recipe or from the first answer's headers. Where there are none, the number in flight grows until
the server objects and then follows additive increase, multiplicative decrease (Chiu & Jain, 1989). All times are of the
monotonic clock.
"""

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Mapping

RETRY_AFTER_CAP_S = 120.0
FIRST_WINDOW = 64  # in flight before it is known what the server bears


class Bucket:
    """At most `limit` units in any 60 seconds: a bucket that begins almost empty, with burst + 60 x rate below `limit`
    (a bucket that begins full would let twice the limit through in its first minute)."""

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self._burst = max(1.0, limit / 124)
        self._largest = 0.0
        self._level = 1.0
        self._at = now

    def wait(self, now: float, units: float) -> float:
        """Seconds until `units` may be taken."""
        self._largest = max(self._largest, units)
        # What one large request takes beyond the burst has to be saved up from the rate.
        rate = max(self.limit * 60 / 62 - max(0.0, self._largest - self._burst), self.limit / 4) / 60
        self._level = min(self._burst, self._level + (now - self._at) * rate)
        self._at = now
        return max(0.0, (min(units, self._burst) - self._level) / rate)

    def take(self, units: float) -> None:
        """Take them; the level may go below zero."""
        self._level -= units


class Gate:
    """Lets requests through, in the order in which they came."""

    def __init__(
        self, max_in_flight: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self.max_in_flight = max_in_flight
        self.window = float(min(max_in_flight, FIRST_WINDOW))
        self.in_flight = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._closed_until = 0.0
        self._objected_at: float | None = None
        self.limit(requests_per_minute, tokens_per_minute)

    def limit(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Set limits where none are known yet."""
        now = time.monotonic()
        if requests_per_minute and not self.requests:
            self.requests = Bucket(requests_per_minute, now)
        if tokens_per_minute and not self.tokens:
            self.tokens = Bucket(tokens_per_minute, now)
        if requests_per_minute or tokens_per_minute:
            self.window = float(self.max_in_flight)

    async def enter(self, tokens: int) -> float:
        """Wait until one more request of so many tokens may be sent; returns the time at which it was let through."""
        async with self._turn:
            while True:
                now = time.monotonic()
                wait = self._closed_until - now
                if self.requests:
                    wait = max(wait, self.requests.wait(now, 1))
                if self.tokens:
                    wait = max(wait, self.tokens.wait(now, tokens))
                if wait > 0:
                    await asyncio.sleep(wait)
                elif self.in_flight >= int(self.window):
                    self._room.clear()
                    await self._room.wait()
                else:
                    break
            if self.requests:
                self.requests.take(1)
            if self.tokens:
                self.tokens.take(tokens)
            self.in_flight += 1
            return now

    def leave(self) -> None:
        """A request that was let through has ended."""
        self.in_flight -= 1
        self._room.set()

    def went_well(self) -> None:
        """The server bears the present number in flight."""
        step = 1.0 if self._objected_at is None else 1.0 / self.window
        self.window = min(float(self.max_in_flight), self.window + step)
        self._room.set()

    def objected(self, entered: float, retry_after: float | None) -> None:
        """The server asked for less (429, 503, 529) of a request that was let through at `entered`."""
        now = time.monotonic()
        if self._objected_at is None or entered > self._objected_at:
            # Once for all that were in flight together.
            self.window = max(1.0, self.window / 2)
            self._objected_at = now
        if retry_after is not None:
            self._closed_until = max(self._closed_until, now + retry_after)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a response asks to wait (Retry-After-Ms, or Retry-After in seconds or as a date), between 0 and
    RETRY_AFTER_CAP_S; None where it says nothing sensible. `now`: seconds since the epoch, for dates."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text or len(text) > 64:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            try:
                date = email.utils.parsedate_to_datetime(text)
                seconds = date.timestamp() - (time.time() if now is None else now)
            except (ValueError, TypeError, OverflowError):
                continue
            seconds = max(0.0, seconds)
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, RETRY_AFTER_CAP_S)
    return None


def backoff(attempt: int) -> float:
    """Seconds before the attempt after `attempt` (from 1): exponential with full jitter, at most 30."""
    return random.uniform(0.1, 1.0) * min(30.0, 0.25 * 2 ** min(attempt, 10))
