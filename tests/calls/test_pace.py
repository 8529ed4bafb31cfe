"""Pacing on a made-up clock: never above the limit in any 60 seconds, and close to it."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calls.pace import RETRY_AFTER_CAP_S, Bucket, Gate, backoff, retry_after


def sent_at(limit: int, seconds: float, units: float = 1, late: float = 0.0) -> list[float]:
    """When a client that always has something to send gets it through, `late` seconds later than it could."""
    now, bucket, times = 0.0, Bucket(limit, 0.0), []
    while now < seconds:
        wait = bucket.wait(now, units)
        if wait > 0:
            now += max(wait, 1e-6) + late  # rounding must not make time stand still
            continue
        bucket.take(units)
        times.append(now)
    return times


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 0.05))
def test_never_more_than_the_limit_in_any_60_s(limit, late):
    times = sent_at(limit, 150, late=late)
    start = 0
    for end, now in enumerate(times):
        while times[start] <= now - 60:
            start += 1
        assert end - start + 1 <= limit


@pytest.mark.parametrize("limit", [50, 500, 3000, 10_000])
def test_at_least_95_percent_of_the_limit_is_used(limit):
    assert len(sent_at(limit, 600)) >= 0.95 * limit * 10


@pytest.mark.parametrize("units", [600, 5000, 20_000])
def test_tokens_too(units):
    limit = 100_000
    times = sent_at(limit, 300, units)
    for end in times:
        assert units * sum(end - 60 < at <= end for at in times) <= limit
    assert units * len(times) >= 0.7 * limit * 5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0),
        ({"retry-after": "86400"}, RETRY_AFTER_CAP_S),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 100}, None),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2),
        ({"retry-after": "Thu, 99 Foo 99999 00:00:01 GMT"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, now=10) == seconds


@given(st.text(max_size=80))
def test_retry_after_takes_any_text(text):
    wait = retry_after({"retry-after": text})
    assert wait is None or 0 <= wait <= RETRY_AFTER_CAP_S


def test_backoff_grows_and_is_bounded():
    assert all(0 < backoff(attempt) <= 30 for attempt in range(1, 50))


def test_the_gate_holds_to_its_window_halves_once_and_grows_again():
    async def go():
        gate = Gate(100)
        assert int(gate.window) == 64
        entered = [await gate.enter(1) for _ in range(10)]
        gate.objected(entered[-1], None)
        for at in entered[:-1]:
            gate.objected(at, None)
        assert gate.window == 32
        for _ in range(40):
            gate.went_well()
        assert 33 <= gate.window < 34
        gate.window = 10.0
        waiting = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(0)
        assert not waiting.done() and gate.in_flight == 10
        gate.leave()
        await asyncio.wait_for(waiting, 1)
        assert gate.in_flight == 10

    asyncio.run(go())


def test_the_gate_stays_shut_as_long_as_the_server_asks():
    async def go():
        gate = Gate(10)
        gate.objected(await gate.enter(1), 0.2)
        asked = time.monotonic()
        assert await gate.enter(1) - asked >= 0.15

    asyncio.run(go())
