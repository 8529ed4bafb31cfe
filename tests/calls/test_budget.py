"""The budget is never passed, and nothing waits for ever."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calls.budget import Budget, cost, worst_case
from pipeline.calls.reply import Usage

AMOUNTS = st.lists(st.tuples(st.floats(0.001, 2), st.floats(0, 1)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(AMOUNTS, st.floats(0.01, 20), st.integers(1, 40))
def test_spending_never_passes_the_limit(amounts, limit, at_once):
    async def go():
        budget, refused = Budget(limit), 0

        async def one(worst, share):
            nonlocal refused
            async with turn:
                if not await budget.reserve(worst):
                    refused += 1
                    return
                assert budget.spent + budget.reserved <= limit * (1 + 1e-9)
                await asyncio.sleep(0)
                await budget.settle(worst, worst * share)

        turn = asyncio.Semaphore(at_once)
        order = list(amounts)
        random.Random(0).shuffle(order)
        await asyncio.wait_for(asyncio.gather(*(one(*amount) for amount in order)), 20)
        assert budget.spent <= limit * (1 + 1e-9)
        if sum(worst for worst, _ in amounts) <= limit:
            assert refused == 0

    asyncio.run(go())


def test_what_was_spent_before_counts():
    async def go():
        budget = Budget(10, spent=9.5)
        assert await budget.reserve(0.4)
        await budget.settle(0.4, 0.4)
        assert not await budget.reserve(0.4)
        assert not budget.reserve_now(0.01)  # closed: what comes later is not asked either
        assert await Budget(None).reserve(1e9)

    asyncio.run(go())


def test_cost_and_worst_case():
    rates = (2.0, 0.2, 2.5, 10.0)
    assert cost(rates, Usage(1000, 400, 100, 100)) == (500 * 2 + 400 * 0.2 + 100 * 2.5 + 100 * 10) / 1e6
    body = b"x" * 1000
    assert worst_case(rates, body, 1, 100, 2) >= cost(rates, Usage(1000, 0, 200, 1000))
