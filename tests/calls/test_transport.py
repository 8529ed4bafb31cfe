"""The transport keeps its connections, and only those that are fit to be kept."""

import asyncio

import pytest

from pipeline.calls import transport
from pipeline.calls.transport import Lost
from teacher_server import running

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'


def connections(url: str, requests: int) -> int:
    """How many connections a number of requests in turn opened."""

    async def go() -> int:
        opened = 0
        async with transport.session() as client:
            create = client.connector._create_connection

            async def counted(*arguments):
                nonlocal opened
                opened += 1
                return await create(*arguments)

            client.connector._create_connection = counted
            for _ in range(requests):
                assert (await transport.post(client, url, {}, BODY, 5)).status == 200
        return opened

    return asyncio.run(go())


def test_connections_are_used_again_unless_they_have_said_too_much():
    with running(latency_s=0.04) as server:
        assert connections(f"{server.url}/chat/completions", 20) < 10  # each rests for 0.1 s
    with running(faults=["twice"], fault_share=1.0, fault_every_time=True) as server:
        assert connections(f"{server.url}/chat/completions", 5) == 5


@pytest.mark.parametrize(
    ("fault", "reason", "sent"),
    [
        ("hang", "timeout", True),
        ("trickle", "timeout", True),
        ("reset", "connection", True),
        ("truncated", "connection", True),
    ],
)
def test_what_goes_wrong_on_the_way(fault, reason, sent):
    async def go(url):
        async with transport.session() as client:
            await transport.post(client, url, {}, BODY, 0.5)

    with running(faults=[fault], fault_share=1.0) as server, pytest.raises(Lost) as caught:
        asyncio.run(go(f"{server.url}/chat/completions"))
    assert (caught.value.reason, caught.value.sent) == (reason, sent)


def test_a_response_that_is_too_large(monkeypatch):
    monkeypatch.setattr(transport, "MAX_BODY", 100)

    async def go(url):
        async with transport.session() as client:
            await transport.post(client, url, {}, BODY, 5)

    with running() as server, pytest.raises(Lost, match="larger than"):
        asyncio.run(go(f"{server.url}/chat/completions"))


def test_proxies(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert transport.proxy_for("https://api.example/v1") == "http://proxy:3128"
    assert transport.proxy_for("https://inside.example/v1") is None
    assert transport.proxy_for("https://localhost:8000/v1") is None
