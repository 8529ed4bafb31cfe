"""A teacher on loopback whose answers are a function of the request's last message, in the tests' own process, so that
what was asked and how often is known after the one who asked was killed."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Scripted(NamedTuple):
    """A server at work."""

    url: str
    asked: Counter[bytes]  # request body -> how often it came
    most_in_flight: list[int]  # one number


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked was killed


@contextlib.contextmanager
def scripted(say: Callable[[str], str], latency_s: float = 0.0) -> Iterator[Scripted]:
    """Serve OpenAI's chat completions until the end of the block; `n` answers are the same but for a letter (a number
    would not be grounded in a passage)."""
    asked: Counter[bytes] = Counter()
    lock, flying, most = threading.Lock(), [0], [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                asked[body] += 1
                flying[0] += 1
                most[0] = max(most[0], flying[0])
            time.sleep(latency_s)
            with lock:
                flying[0] -= 1
            request = json.loads(body)
            text, n = say(request["messages"][-1]["content"]), request.get("n", 1)
            choices = [
                {
                    "index": i,
                    "finish_reason": "stop",
                    "message": {
                        "role": "assistant",
                        "content": text if n == 1 else f"{text} So much for {chr(97 + i)}.",
                    },
                }
                for i in range(n)
            ]
            sent = json.dumps(
                {
                    "id": "x", "object": "chat.completion", "created": 0, "model": request["model"],
                    "choices": choices, "usage": {"prompt_tokens": 50, "completion_tokens": 10 * n},
                }
            ).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Scripted(f"http://127.0.0.1:{server.server_port}/v1", asked, most)
    finally:
        server.shutdown()
        server.server_close()
