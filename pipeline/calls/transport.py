"""One HTTP POST: aiohttp, no redirects, a timeout for the whole of it, a bounded body.

What can go wrong on the way is a `Lost`; what the server said, whatever it said, is a `Raw`.
"""

import asyncio
import select
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import aiohttp

MAX_BODY = 64 * 2**20
REST_S = 0.1  # for what is delivered twice to come in
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is asked. The headers hold its key, so they are in no repr."""

    urls: tuple[str, ...]
    headers: dict[str, str] = field(repr=False)


class Raw(NamedTuple):
    """A response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Exception):
    """No response. `sent`: the request may have reached the server, and may be billed."""

    def __init__(self, reason: str, detail: str, sent: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.sent = reason, detail, sent


def session() -> "aiohttp.ClientSession":
    """A client session: keeps connections, no cookies, no limit of its own on their number."""
    import aiohttp

    class Connector(aiohttp.TCPConnector):
        """A connection rests for a moment before it is used again, and one that then has something to say before it is
        asked is not: a response that was delivered twice would become the answer to the next request."""

        async def _get(self, key: Any, traces: Any) -> Any:
            while True:
                idle = self._conns.get(key)  # (connection, since when), the one that has rested longest first
                if idle and time.monotonic() - idle[0][1] < REST_S:
                    return None  # another one is opened
                connection = await super()._get(key, traces)
                if connection is None:
                    return None
                protocol = connection.protocol
                if protocol is not None and not protocol.should_close and not _readable(connection.transport):
                    return connection
                connection.close()

    return aiohttp.ClientSession(
        connector=Connector(limit=0, keepalive_timeout=30, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=2**18,
    )


def _readable(transport: Any) -> bool:
    """Whether bytes (or the end of the stream) wait on an idle connection."""
    socket = transport and transport.get_extra_info("socket")
    if not socket or socket.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL (https_proxy, no_proxy ...); none for this machine itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


async def post(
    client: "aiohttp.ClientSession",
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    timeout_s: float,
    proxy: str | None = None,
) -> Raw:
    """Send `body` and read the whole response within `timeout_s` seconds. Raises Lost."""
    import aiohttp

    try:
        async with asyncio.timeout(timeout_s):
            async with client.post(url, data=body, headers=headers, allow_redirects=False, proxy=proxy) as response:
                content = response.content
                parts, size = [], 0
                while part := await content.readany():
                    size += len(part)
                    if size > MAX_BODY:
                        response.close()
                        raise Lost("too_large", f"the response is larger than {MAX_BODY:,} bytes", sent=True)
                    parts.append(part)
                return Raw(response.status, response.headers, b"".join(parts))
    except TimeoutError:
        raise Lost("timeout", f"no complete response within {timeout_s:g} s", sent=True) from None
    except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError) as error:
        raise Lost(
            "unreachable", f"{urlsplit(url).netloc}: {error.os_error.strerror or error.os_error}", False
        ) from None
    except aiohttp.InvalidURL:
        raise Lost("unreachable", f"{url} is not a URL", sent=False) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # `from None`, and only the kind of the error: its text and its frames may hold the request with its key.
        raise Lost("connection", f"the connection broke ({type(error).__name__})", sent=True) from None
