"""Ask one teacher through its provider's batch interface: half the price, within a day, and one job with online.

The keys are those of online requests, so what one way has answered the other does not ask again. The intents of a batch
are committed before it is created; a crash between creating it and recording its id is mended by looking for it at the
provider. Results are matched by custom_id (the key in hexadecimal): order, repeats and strangers do not matter. What a
batch leaves unanswered goes into the next one, and in the end is asked online. Where a provider's queue takes no batch
of that size, the rows go in smaller ones, one after the other.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.calls.budget import Budget, cost
from pipeline.calls.online import Asking, Call, Line, settle_cost, unbind
from pipeline.calls.reply import Parsed, Problem
from pipeline.calls.store import GroupCommit, Intent, Received, Settle, Sql, Store, Write, new_id
from pipeline.errors import StopRun
from pipeline.progress import say

POLL_S = 30.0
ROUNDS = 2  # batches for the same rows, before the rest is asked online
AT_ONCE = 500  # results in one commit


class Remote(NamedTuple):
    """A provider's batch interface. These functions block, raise ConnectionError where trying again can help, and
    StopRun where it cannot."""

    max_rows: int
    max_bytes: int
    create: Callable[[str, list[tuple[str, bytes]]], str]  # (tag, [(custom_id, body)]) -> the batch's id
    find: Callable[[str, float, int], list[str]]  # (tag, created after, rows) -> ids that may be that batch
    ended: Callable[[str], bool | Problem]  # id -> whether; a Problem if it failed as a whole (retry: it is too large)
    results: Callable[[str], Iterable[tuple[str, int, bytes]]]  # id -> (custom_id, status, body)


class BatchAsking:
    """The state of asking one teacher in batches: `line` has batch prices, `online` those for what is left."""

    def __init__(
        self,
        line: Line,
        online: Line,
        remote: Remote,
        store: Store,
        commits: GroupCommit,
        budget: Budget,
        advance: Callable[[int], None],
        halt: list[StopRun],
    ) -> None:
        self.line, self.online, self.remote = line, online, remote
        self.store, self.commits, self.budget, self.advance, self.halt = store, commits, budget, advance, halt
        self.sent = self.taken = 0
        self._answers = 0
        self._rows = self.remote.max_rows  # in a batch
        self._queue_is_full = False

    async def run(self, calls: Callable[[], Iterator[Call]], online: Callable[[int], Iterator[Call]]) -> int:
        """Ask everything; returns the requests sent. `calls()` gives what the store lacks now, with batch prices, and
        `online(taken)` the same with online prices, when so many answers have come in batches."""
        sql = "SELECT tag, created, rows, remote FROM batches WHERE job = ? AND teacher = ? AND ended IS NULL"
        for tag, created, rows, remote in self.store.select(sql, (self.line.job, self.line.name)):
            await self._resume(tag, created, rows, remote)
        fruitless = 0
        while fruitless < ROUNDS:
            before, rows = self._answers, self._rows
            tags = await self._submit(calls())
            if not tags:
                break
            for tag, remote in tags:
                await self._finish(tag, [remote])
            fruitless = 0 if self._answers > before or self._rows < rows else fruitless + 1
        asking = Asking(self.online, self.commits, self.budget, self.advance, self.halt)
        return self.sent + await asking.run(online(self.taken))

    async def _submit(self, calls: Iterator[Call]) -> list[tuple[str, str]]:
        """Create batches for as many calls as the budget bears: [(tag, the provider's id)]."""
        made: list[tuple[str, str]] = []
        rows: list[Call] = []
        size = 0
        for call in calls:
            if not self.budget.reserve_now(call.usd):
                break  # the next round, or the budget, sees to the rest
            length = len(call.body) + 200
            if rows and (len(rows) == self._rows or size + length > self.remote.max_bytes):
                made.append(await self._create(rows))
                rows, size = [], 0
                if self._queue_is_full:
                    await self.budget.settle(call.usd, 0.0)
                    break  # one at a time from now on
            rows.append(call)
            size += length
        if rows:
            made.append(await self._create(rows))
        return made

    async def _create(self, rows: list[Call]) -> tuple[str, str]:
        line, tag = self.line, secrets.token_hex(12)
        writes: list[Write] = [
            Sql(
                "INSERT INTO batches (tag, created, job, teacher, rows) VALUES (?, ?, ?, ?, ?)",
                (tag, time.time(), line.job, line.name, len(rows)),
            )
        ]
        for call in rows:
            usd = call.usd if line.rates else None
            writes.append(Intent(new_id(), line.job, line.provider, line.name, call.keys[0], usd, tag, call.body))
        await asyncio.gather(*{self.commits.add(write) for write in writes})
        worst = sum(call.usd for call in rows)
        await self.budget.settle(worst, worst)  # spent, until the results say less
        bodies = [(call.keys[0].hex(), call.body) for call in rows]
        try:
            remote = await asyncio.to_thread(self.remote.create, tag, bodies)
        except ConnectionError:
            # It may have been created all the same.
            found = await self._find(tag, time.time() - 3600, len(rows))
            remote = found[0] if found else await self._patiently(self.remote.create, tag, bodies)
        await self._record(tag, remote)
        self.sent += len(rows)
        say(f"  {line.name}: batch {remote} with {len(rows):,} requests")
        return tag, remote

    async def _resume(self, tag: str, created: float, rows: int, remote: str | None) -> None:
        """Go on with a batch of an earlier process."""
        found = [remote] if remote else await self._find(tag, created, rows)
        say(f"  {self.line.name}: going on with batch {', '.join(found) or '(it was never created)'}")
        await self._finish(tag, found)

    async def _find(self, tag: str, created: float, rows: int) -> list[str]:
        found: list[str] = await self._patiently(self.remote.find, tag, created, rows)
        taken = {row[0] for row in self.store.select("SELECT remote FROM batches WHERE remote IS NOT NULL")}
        return [remote for remote in found if remote not in taken]

    async def _record(self, tag: str, remote: str) -> None:
        await self.commits.write(Sql("UPDATE batches SET remote = ? WHERE tag = ?", (remote, tag)))

    async def _finish(self, tag: str, remotes: list[str]) -> None:
        """Wait for a batch, take its results, and forget the intents that it has not answered: they are not billed."""
        sql = "SELECT key, id, usd, request FROM intents WHERE batch = ?"
        waiting = {row[0].hex(): row for row in self.store.select(sql, (tag,))}
        stop: StopRun | None = None
        for remote in remotes:
            while not (outcome := await self._patiently(self.remote.ended, remote)):
                if self.halt:
                    raise self.halt[0]  # the batch goes on by itself, and is taken up again by the next run
                await asyncio.sleep(POLL_S)
            if isinstance(outcome, Problem):
                say(f"  {self.line.name}: batch {remote} failed: {outcome.detail}")
                if outcome.kind == "retry" and len(waiting) > 1:
                    self._queue_is_full, self._rows = True, min(self._rows, len(waiting) // 2)
                else:
                    stop = StopRun(f"{self.line.name} ({self.line.provider}): batch {remote} failed: {outcome.detail}")
                continue
            results = iter(await self._patiently(lambda remote: list(self.remote.results(remote)), remote))
            while some := [result for _, result in zip(range(AT_ONCE), results, strict=False)]:
                stop = await self._take(some, waiting) or stop
        for _, intent, usd, _ in waiting.values():
            await self.budget.settle(0.0, -(usd or 0.0))
            self.commits.add(Settle(intent, may_be_billed=False))
        await self.commits.write(Sql("UPDATE batches SET ended = ? WHERE tag = ?", (time.time(), tag)))
        if stop:
            self.halt.append(stop)
            raise stop

    async def _take(self, results: list[tuple[str, int, bytes]], waiting: dict[str, Any]) -> StopRun | None:
        """Store some results, then look at them."""
        line, stop = self.line, None
        taken: list[tuple[Any, int, bytes]] = []
        for custom_id, status, body in results:
            row = waiting.get(custom_id)
            if row is None:
                continue  # a stranger, or delivered twice
            if status != 200:
                problem = line.parse(status, body)
                if isinstance(problem, Problem) and problem.kind != "final":
                    if problem.kind == "stop":
                        stop = StopRun(f"{line.name} ({line.provider}): {problem.detail}")
                    continue  # goes into the next batch
            taken.append((waiting.pop(custom_id), status, body))
        writes = []
        for (key, intent, usd, request), status, body in taken:
            spent = usd if status == 200 else None if usd is None else 0.0
            received = (intent, line.job, line.provider, line.name, request, status, body, spent, line.rates, 1, (key,))
            writes.append(self.commits.add(Received(*received)))
        await asyncio.gather(*set(writes))
        for (key, intent, usd, _), status, body in taken:
            outcome = line.parse(status, body)
            spent = 0.0 if status != 200 else usd or 0.0
            if isinstance(outcome, Problem) and outcome.kind != "final":
                self.commits.add(unbind(key, intent))
                continue
            if isinstance(outcome, Parsed):
                self._answers += 1
                if line.rates and outcome.usage:
                    spent = cost(line.rates, outcome.usage)
                    self.commits.add(settle_cost(intent, spent))
            self.taken += 1
            self.advance(1)
            await self.budget.settle(0.0, spent - (usd or 0.0))
        return stop

    async def _patiently(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a blocking function in a thread, again and again while the connection fails, for a day at most."""
        wait, end = 1.0, time.monotonic() + 86400
        while True:
            try:
                return await asyncio.to_thread(function, *arguments)
            except ConnectionError as error:
                if time.monotonic() > end:
                    raise StopRun(f"{self.line.name} ({self.line.provider}): {error}") from None
                say(f"  {self.line.name}: {error}; trying again in {min(wait, POLL_S):.0f} s")
                await asyncio.sleep(min(wait, POLL_S))
                wait *= 2
