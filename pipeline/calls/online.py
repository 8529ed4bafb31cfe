"""Ask one teacher many things over HTTP: each call is sent when pace and budget allow, retried while that can help, and
ends as an answer in the store or as a fault with a reason. Knows no vendor.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.calls import transport
from pipeline.calls.budget import Budget, Rates, cost
from pipeline.calls.pace import Gate, backoff, retry_after
from pipeline.calls.reply import Parsed, Problem, unanswered
from pipeline.calls.store import Fault, GroupCommit, Intent, Received, Settle, Sql, new_id
from pipeline.calls.transport import Endpoint, Lost
from pipeline.errors import StopRun

MAX_BILLED = 5  # attempts of one call that may have been billed without bringing an answer
FIRST_CONTACT = 3  # attempts at a server that cannot be connected to and never could
ALL_REJECTED = 20  # so many rejections and no answer: it is the request's form, not its content


class Call(NamedTuple):
    """One request to send."""

    keys: tuple[bytes, ...]  # the samples that it asks for
    body: bytes  # wire JSON
    tokens: int  # counted against tokens_per_minute: the input and the most it may answer
    usd: float  # the most it can cost; 0 where no price is known
    again: Callable[[Sequence[int], int, int], list["Call"]]
    """again(places, together, shift): the calls for some of its samples, at most so many in one, with other seeds by
    `shift`: what was sampled with the same seed may say the same."""


@dataclass(frozen=True)
class Line:
    """How one teacher is reached."""

    name: str  # as the recipe calls it
    provider: str
    job: str  # the run
    endpoint: Endpoint
    parse: Callable[[int, bytes], Parsed | Problem]
    limits: Callable[[Mapping[str, str]], tuple[float | None, float | None]]  # headers -> requests, tokens a minute
    rates: Rates | None
    max_in_flight: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    timeout_s: float
    deadline_s: float


class Asking:
    """The state of asking one teacher."""

    def __init__(
        self,
        line: Line,
        commits: GroupCommit,
        budget: Budget,
        advance: Callable[[int], None],
        halt: list[StopRun],
    ) -> None:
        self.line, self.commits, self.budget, self.advance = line, commits, budget, advance
        self.halt = halt  # shared by all teachers: what stops one stops the run
        self.gate = Gate(line.max_in_flight, line.requests_per_minute, line.tokens_per_minute)
        self.sent = 0
        self._answered = self._rejected = 0
        self._last_answer = time.monotonic()
        self._load = dict.fromkeys(line.endpoint.urls, 0)
        self._avoid = dict.fromkeys(line.endpoint.urls, 0.0)
        self._proxies = {url: transport.proxy_for(url) for url in line.endpoint.urls}

    async def run(self, calls: Iterator[Call]) -> int:
        """Ask everything; returns the requests sent. Raises StopRun if going on is pointless; what was in flight is
        waited for, and nothing more is sent."""
        async with transport.session() as self._client:
            first = next(calls, None)
            if first is None:
                return 0
            # Alone: it tells whether there is a server that knows the model and the key, and what its limits are.
            await self._answer(first)
            workers = [asyncio.create_task(self._work(calls)) for _ in range(self.line.max_in_flight)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if self.halt:
            raise self.halt[0]
        return self.sent

    async def _work(self, calls: Iterator[Call]) -> None:
        for call in calls:
            if self.halt:
                return
            await self._answer(call)

    async def _answer(self, call: Call) -> None:
        """See one call through to an answer, a fault, or the end of the run."""
        begun: float | None = None
        attempts = billed = empty = 0
        while not self.halt:
            if not await self.budget.reserve(call.usd):
                detail = f"not asked: the budget of {self.budget.limit:g} US dollars was used up"
                await self._give_up(call, "budget", detail, attempts)
                return
            spent = 0.0
            try:
                entered = await self.gate.enter(call.tokens)
                try:
                    if self.halt:
                        return
                    begun = entered if begun is None else begun
                    attempts += 1
                    spent = call.usd  # until something better is known
                    outcome, spent, wait = await self._send(call, attempts)
                finally:
                    self.gate.leave()
            finally:
                await self.budget.settle(call.usd, spent)

            if isinstance(outcome, Parsed):
                self.gate.went_well()
                self._answered += 1
                self._last_answer = time.monotonic()
                # The server does not know `n`, or one of the samples says nothing.
                missing = unanswered(outcome, len(call.keys))
                self.advance(len(call.keys) - len(missing))
                for other in call.again(missing, 1, 0):
                    await self._answer(other)
                return
            if outcome.kind == "stop":
                self._stop(outcome.detail)
                return
            if outcome.kind == "final":
                self.gate.went_well()
                self._rejected += outcome.reason == "rejected"
                if self._rejected >= ALL_REJECTED and not self._answered:
                    self._stop(f"the first {self._rejected} requests were all rejected: {outcome.detail}")
                self.advance(len(call.keys))
                return
            if outcome.throttled:
                self.gate.objected(entered, wait)
            billed += outcome.may_be_billed
            delay = (backoff(attempts) if wait is None else wait) + random.uniform(0, 0.1)
            out_of_time = time.monotonic() + delay > begun + self.line.deadline_s
            hopeless = not self._answered and outcome.reason == "unreachable" and attempts >= FIRST_CONTACT
            if out_of_time or hopeless or billed >= MAX_BILLED:
                await self._give_up(call, outcome.reason, outcome.detail, attempts)
                silent = time.monotonic() - self._last_answer > self.line.deadline_s
                if outcome.reason != "empty" and (not self._answered or silent):
                    self._stop(f"no answer after {attempts} attempts: {outcome.reason}: {outcome.detail}")
                return
            if outcome.reason == "empty":
                empty += 1
                (call,) = call.again(range(len(call.keys)), len(call.keys), empty)
            await asyncio.sleep(delay)

    async def _send(self, call: Call, attempts: int) -> tuple[Parsed | Problem, float, float | None]:
        """One attempt -> (what came of it, US dollars, seconds that the server asks to wait)."""
        line = self.line
        url = min(self._load, key=lambda url: (self._avoid[url] > time.monotonic(), self._load[url]))
        priced = line.rates is not None
        intent = new_id()
        self._load[url] += 1
        try:
            await self.commits.write(
                Intent(intent, line.job, line.provider, line.name, call.keys[0], call.usd if priced else None)
            )
            self.sent += 1
            raw = await transport.post(
                self._client, url, line.endpoint.headers, call.body, line.timeout_s, self._proxies[url]
            )
        except Lost as lost:
            if not lost.sent:
                self.commits.add(Settle(intent, may_be_billed=False))
                self._avoid[url] = time.monotonic() + 5
            return Problem("retry", lost.reason, lost.detail, lost.sent), call.usd if lost.sent else 0.0, None
        finally:
            self._load[url] -= 1

        received = Received(
            intent=intent,
            job=line.job,
            provider=line.provider,
            model=line.name,
            request=call.body,
            status=raw.status,
            body=raw.body,
            usd=0.0 if priced else None,
            rates=line.rates,
            attempts=attempts,
            keys=call.keys,
        )
        if raw.status != 200:
            outcome = line.parse(raw.status, raw.body)
            if isinstance(outcome, Problem) and outcome.kind == "final":
                await self.commits.write(received)
            else:
                self.commits.add(Settle(intent, may_be_billed=False))
            return outcome, 0.0, retry_after(raw.headers)

        # Durable before it is looked at, and spent at its worst case until it is known better.
        await self.commits.write(received._replace(usd=call.usd if priced else None))
        if not self._answered:
            self.gate.limit(*line.limits(raw.headers))
        outcome = line.parse(raw.status, raw.body)
        if isinstance(outcome, Problem):
            if outcome.kind != "final":
                for key in call.keys:
                    self.commits.add(unbind(key, intent))
            return outcome, call.usd, None
        for choice in unanswered(outcome, len(call.keys)):
            self.commits.add(unbind(call.keys[choice], intent))
        if line.rates is None or outcome.usage is None:
            return outcome, call.usd, None
        usd = cost(line.rates, outcome.usage)
        self.commits.add(settle_cost(intent, usd))
        return outcome, usd, None

    async def _give_up(self, call: Call, reason: str, detail: str, attempts: int) -> None:
        await self.commits.write(Fault(call.keys, reason, detail, attempts))
        self.advance(len(call.keys))

    def _stop(self, detail: str) -> None:
        self.halt.append(
            StopRun(
                f"{self.line.name} ({self.line.provider}): {detail.rstrip('.')}. What was answered is stored; the same "
                "command goes on from there."
            )
        )


async def side_by_side(teachers: Sequence[Coroutine[Any, Any, int]], halt: list[StopRun]) -> int:
    """Ask several teachers, each a `run` of Asking or BatchAsking; returns the requests sent. Raises StopRun."""
    running = [asyncio.create_task(teacher) for teacher in teachers]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        # What a provider says halts all teachers, which then see to what they have in flight.
        for task in running if not halt else []:
            task.cancel()
    results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, StopRun | asyncio.CancelledError):
            raise result
    if halt:
        raise halt[0]
    return sum(result for result in results if isinstance(result, int))


def unbind(key: bytes, body: int) -> Sql:
    """Take a key for unanswered again that was thought to be answered by a body. The body itself stays, for the account
    of what was spent."""
    return Sql("DELETE FROM answers WHERE key = ? AND body = ?", (key, body))


def settle_cost(body: int, usd: float) -> Sql:
    """What a body really cost."""
    return Sql("UPDATE bodies SET usd = ? WHERE id = ?", (usd, body))
