"""A teacher that answers from this machine, for tests and benchmarks: OpenAI's and Anthropic's wire formats with
latency, limits and faults. A process of its own, so that its CPU seconds are not the client's.

    echo '{"latency_s": 0.1}' | python tests/teacher_server.py      prints its port

Answers depend on the request alone (`echo: ` and the last message), so a wrong answer on a row shows. GET /stats tells
what arrived.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAULTS = (
    "429", "500", "503", "529", "reset", "hang", "trickle", "truncated", "invalid_json", "empty_choices", "twice",
    "html",
)  # fmt: skip

settings: dict[str, Any] = {
    "latency_s": 0.0,
    "per_minute": None,  # requests in any 60 s; more get 429
    "burst": None,  # requests in any 60 s before the limit was ever told
    "tell_limits": True,
    "faults": [],  # names of FAULTS
    "fault_share": 0.0,
    "fault_every_time": False,  # else a request that met a fault is answered the next time
    "status": None,  # answer every request so: [status, headers, body]
    "ignore_n": False,
    "expire_share": 0.0,  # of a batch's rows that come back unanswered, the first time
    "lose_creations": 0,  # so many batches are created and not confirmed: the connection breaks
    "queue_rows": None,  # OpenAI: a batch fails that would make the unfinished ones have more rows together
    "polls": 2,  # how often a batch is asked for before it has ended
    "completion_tokens": 10,
    "silent_share": 0.0,  # of the samples that say nothing, by their seed (sample i of `n` has the i-th)
    "judge": None,  # a verdict instead of an echo: "worth" goes by "(worth N)" in the answers, "first" takes answer A
}
arrivals: deque[float] = deque()  # of the last 60 s
stats: dict[str, Any] = {"requests": 0, "answered": 0, "limited": 0, "most_in_60_s": 0, "most_in_flight": 0}
faults: Counter[str] = Counter()
seen: Counter[bytes] = Counter()
in_flight = port = 0
last_headers: dict[str, str] = {}
files: dict[str, bytes] = {}
batches: dict[str, dict[str, Any]] = {}


def answer(body: bytes, path: str) -> dict[str, Any]:
    """What a request deserves."""
    request = json.loads(body)
    if path.endswith("/completions") and "prompt" in request:
        return continuation(request, body)
    text = "echo: " + request["messages"][-1]["content"]
    if settings["judge"]:
        text = verdict(text)
    used = settings["completion_tokens"]
    if path.endswith("/messages"):
        return {
            "id": "msg", "type": "message", "role": "assistant", "model": request["model"],
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": len(body) // 4, "output_tokens": used},
        }  # fmt: skip
    n = 1 if settings["ignore_n"] else request.get("n", 1)
    logprobs = {"content": [{"token": "e", "logprob": -0.5, "top_logprobs": []}] * used}
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": request["model"],
        "choices": [
            {
                "index": i, "finish_reason": "stop",
                "message": {"role": "assistant", "content": said(request, i, text if n == 1 else f"{text} #{i}")},
                "logprobs": logprobs if request.get("logprobs") else None,
            }
            for i in range(n)
        ],
        "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": used * n},
    }  # fmt: skip


def said(request: dict[str, Any], sample: int, text: str) -> str:
    """The text, or nothing."""
    seeded = f"{request.get('seed', 0) + sample} {request['messages'][-1]['content']}"
    draw = int.from_bytes(hashlib.blake2b(seeded.encode(), digest_size=4).digest()) / 2**32
    return "" if draw < settings["silent_share"] else text


def continuation(request: dict[str, Any], body: bytes) -> dict[str, Any]:
    """vLLM's text completions: how it goes on with a text, by its seed. With a second beginning it finds no end."""
    draw = hashlib.blake2b(body, digest_size=6).hexdigest()
    text = f"After {len(request['prompt'])} characters, why is number {draw} the next one?"
    reason = "stop" if request.get("add_special_tokens") is False else "length"
    choices = [{"index": i, "text": text, "finish_reason": reason} for i in range(request.get("n", 1))]
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": settings["completion_tokens"]}
    return {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": choices, "usage": usage}


def verdict(asked: str) -> str:
    """What a judge says: of one answer what it is worth, of two which is worth more, or always the first. An answer
    without a worth gets words and no verdict."""
    told = re.findall(r"\(worth (-?[\d.]+)\)", asked)
    worth = [float(number) for number in told]
    if len(worth) == 1:
        return json.dumps({"reason": f"It is worth {told[0]}.", "score": worth[0]})
    if len(worth) != 2:
        return "I would rather not say."
    if settings["judge"] == "first":
        return '```json\n{"reason": "I like the first.", "verdict": "A"}\n```'
    better = "tie" if worth[0] == worth[1] else "A" if worth[0] > worth[1] else "B"
    return json.dumps({"reason": "One is worth more.", "verdict": better})


def batch_api(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes | None:
    """OpenAI's files and batches, Anthropic's message batches. None: the connection breaks."""
    parts = path.strip("/").split("/")
    hosted = "anthropic" if "messages" in parts else "openai"
    if parts[-1] == "files":
        boundary = headers["content-type"].partition("boundary=")[2].encode()
        file = next(part for part in body.split(b"--" + boundary) if b'name="file"' in part)
        name = f"file-{len(files)}"
        files[name] = file.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return json.dumps(
            {"id": name, "object": "file", "purpose": "batch", "filename": "x", "bytes": 1, "created_at": 0}
        ).encode()
    if "files" in parts:
        return files[parts[-2]]
    if method == "POST":
        request = json.loads(body)
        if hosted == "openai":
            asked = [json.loads(line) for line in files[request["input_file_id"]].splitlines()]
        else:
            asked = request["requests"]
        name = f"batch_{len(batches)}"
        queued = sum(len(batch["asked"]) for batch in batches.values() if batch["polls"] <= settings["polls"])
        full = settings["queue_rows"] and queued + len(asked) > settings["queue_rows"]
        batches[name] = {
            "asked": [] if full else asked, "failed": full, "polls": 0, "metadata": request.get("metadata"),
            "created": time.time(),
        }  # fmt: skip
        stats["batches_failed"] = stats.get("batches_failed", 0) + bool(full)
        stats["batch_rows"] = stats.get("batch_rows", 0) + len(asked)
        if stats.setdefault("lost_creations", 0) < settings["lose_creations"]:
            stats["lost_creations"] += 1
            return None
        return json.dumps(describe(name, hosted)).encode()
    if parts[-1] == "batches":
        data = [describe(name, hosted) for name in reversed(batches)]
        return json.dumps({"object": "list", "data": data, "has_more": False}).encode()
    if parts[-1] == "results":
        return batch_results(parts[-2], hosted)
    batches[parts[-1]]["polls"] += 1
    if hosted == "openai" and batches[parts[-1]]["polls"] > settings["polls"] and batches[parts[-1]]["asked"]:
        files[f"out-{parts[-1]}"] = batch_results(parts[-1], hosted)
    return json.dumps(describe(parts[-1], hosted)).encode()


ENQUEUED = {
    "object": "list",
    "data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "param": None, "line": None}],
}


def describe(name: str, hosted: str) -> dict[str, Any]:
    """A batch as its provider tells of it."""
    batch = batches[name]
    ended = batch["polls"] > settings["polls"]
    if hosted == "openai":
        return {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "input_file_id": "f", "created_at": int(batch["created"]), "metadata": batch["metadata"],
            "status": "completed" if ended else "in_progress", "output_file_id": f"out-{name}" if ended else None,
        } | ({"status": "failed", "output_file_id": None, "errors": ENQUEUED} if batch["failed"] else {})  # fmt: skip
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch["created"]))
    counts = {"processing": len(batch["asked"]), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    return {
        "id": name, "type": "message_batch", "processing_status": "ended" if ended else "in_progress",
        "request_counts": counts, "created_at": when, "expires_at": when,
        "results_url": f"http://127.0.0.1:{port}/v1/messages/batches/{name}/results" if ended else None,
    }  # fmt: skip


def batch_results(name: str, hosted: str) -> bytes:
    """A batch's results: out of order, some expired, one twice, one of a stranger."""
    lines = []
    for row in reversed(batches[name]["asked"]):
        body = json.dumps(row["body"] if hosted == "openai" else row["params"]).encode()
        draw = int.from_bytes(hashlib.blake2b(row["custom_id"].encode(), digest_size=4).digest()) / 2**32
        expired = draw < settings["expire_share"] and name == "batch_0"
        good = answer(body, "/messages" if hosted == "anthropic" else "")
        if hosted == "anthropic":
            result = {"type": "expired"} if expired else {"type": "succeeded", "message": good}
            lines.append({"custom_id": row["custom_id"], "result": result})
        elif not expired:
            response = {"status_code": 200, "request_id": "r", "body": good}
            lines.append({"id": "x", "custom_id": row["custom_id"], "response": response, "error": None})
    return "\n".join(json.dumps(line) for line in [*lines, *lines[:1], lines[0] | {"custom_id": "stranger"}]).encode()


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            headers = dict(
                (name.strip().lower(), value.strip())
                for name, _, value in (line.partition(":") for line in head.decode("latin1").split("\r\n")[1:])
            )
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
            self.request(method, path, headers, body)

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        global in_flight, last_headers
        if "/files" in path or "/batches" in path:
            made = batch_api(method, path.partition("?")[0], headers, body)
            if made is None:
                self.transport.abort()
            else:
                self.send(200, made)
            return
        if method == "GET":
            told = stats | {"faults": faults, "seen": len(seen), "repeats": sum(seen.values()) - len(seen)}
            self.send(200, json.dumps(told | {"headers": last_headers}).encode())
            return
        now, last_headers = time.monotonic(), headers
        stats["requests"] += 1
        stats.setdefault("first_arrival_s", now)
        stats["last_arrival_s"] = now
        while arrivals and arrivals[0] <= now - 60:
            arrivals.popleft()
        arrivals.append(now)
        stats["most_in_60_s"] = max(stats["most_in_60_s"], len(arrivals))
        if settings["status"]:
            status, extra, said = settings["status"]
            self.send(status, said.encode(), extra)
            return
        limit = settings["per_minute"]
        if limit and len(arrivals) > limit:
            stats["limited"] += 1
            arrivals.pop()
            self.send(429, b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}', {"retry-after": "1"})
            return
        key = hashlib.blake2b(body, digest_size=8).digest()
        seen[key] += 1
        in_flight += 1
        stats["most_in_flight"] = max(stats["most_in_flight"], in_flight)
        draw = int.from_bytes(hashlib.blake2b(key + b"fault", digest_size=4).digest()) / 2**32
        fault = ""
        if settings["faults"] and draw < settings["fault_share"] and (seen[key] == 1 or settings["fault_every_time"]):
            fault = settings["faults"][key[0] % len(settings["faults"])]
            faults[fault] += 1
        asyncio.get_running_loop().call_later(settings["latency_s"], self.respond, path, body, fault)

    def respond(self, path: str, body: bytes, fault: str) -> None:
        global in_flight
        in_flight -= 1
        if self.transport.is_closing():
            return
        good = json.dumps(answer(body, path)).encode()
        if fault in ("429", "500", "503", "529"):
            extra = {"retry-after": "0.2"} if fault in ("429", "503") else {}
            self.send(int(fault), b'{"error":{"message":"not now"}}', extra)
        elif fault == "reset":
            self.transport.abort()
        elif fault == "hang":
            pass
        elif fault == "trickle":
            asyncio.get_running_loop().create_task(self.trickle(good))
        elif fault == "truncated":
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(good) + good[: len(good) // 2])
            self.transport.close()
        elif fault == "invalid_json":
            self.send(200, good[: len(good) // 2])
        elif fault == "empty_choices":
            self.send(200, b'{"choices": [], "content": []}')
        elif fault == "html":
            self.send(200, b"<html><body>Welcome</body></html>")
        else:
            stats["answered"] += 1
            self.send(200, good)
            if fault == "twice":
                self.send(200, good)

    async def trickle(self, good: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(good))
        for byte in good:
            if self.transport.is_closing():
                return
            self.transport.write(bytes([byte]))
            await asyncio.sleep(0.2)

    def send(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if settings["per_minute"] and settings["tell_limits"]:
            headers["x-ratelimit-limit-requests"] = str(settings["per_minute"])
            headers["anthropic-ratelimit-requests-limit"] = str(settings["per_minute"])
        head = "".join(f"{name}: {value}\r\n" for name, value in (headers | (extra or {})).items())
        self.transport.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)


async def main() -> None:
    """Serve until SIGTERM."""
    settings.update(json.loads(sys.stdin.readline()))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", settings.get("port", 0), backlog=2048)
    global port
    port = server.sockets[0].getsockname()[1]
    print(port, flush=True)
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    await end.wait()


class Running:
    """A server of one's own."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        """What arrived so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Running]:
    """Start a server with these settings, stop it at the end."""
    command = [sys.executable, str(Path(__file__))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(options) + "\n")
        process.stdin.flush()
        yield Running(process, int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    asyncio.run(main())
