"""Provider `anthropic`: the Messages API. The wire format only.

https://platform.claude.com/docs/en/api/messages
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.calls.batch import Remote
from pipeline.calls.reply import Parsed, Problem, Reply, Usage, bad_body, problem_of_status
from pipeline.calls.transport import Endpoint
from pipeline.errors import StopRun, UserError
from pipeline.recipe import Sampling, Teacher
from pipeline.records import Message

PATH = "/v1/messages"
KEY_ENV = "ANTHROPIC_API_KEY"
SAMPLES_AT_ONCE = 1
TERMS = (
    "Anthropic's terms do not allow using its output to train competing models",
    "https://www.anthropic.com/legal/commercial-terms",
)

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}
SPENT = ("credit balance", "spend limit", "spending limit", "usage limit", "billing")


def request(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
    """What determines an answer: the body. There is no seed, and no log-probabilities."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    made: dict[str, Any] = {
        "model": teacher.model,
        "messages": [message for message in messages if message["role"] != "system"],
        "max_tokens": sampling.max_tokens,
    }
    if system:
        # The same for every prompt: marked, so that it is read from the cache where it is long enough to be kept.
        made["system"] = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
    if sampling.temperature is not None:
        made["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        made["top_p"] = sampling.top_p
    return made | teacher.extra


def wire(request: dict[str, Any], n: int, seed: int) -> bytes:
    """The body that asks for one sample."""
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def connect(teacher: Teacher, key: str | None) -> Endpoint:
    """Base URL and headers, from the official package. Raises UserError if it refuses the settings."""
    import anthropic

    urls = teacher.urls() or (None,)
    endpoint: list[str] = []
    headers: dict[str, str] = {}
    for url in urls:
        try:
            client = anthropic.Anthropic(api_key=key or "none", base_url=url, max_retries=0)
        except anthropic.AnthropicError as error:
            raise UserError(f"collect.teachers: {teacher.model}: {error}") from None
        headers = {
            name: value
            for name, value in {**client.default_headers, **client.auth_headers}.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }
        endpoint.append(str(client.base_url).rstrip("/").removesuffix("/v1") + PATH)
        client.close()
    if key is None:
        headers = {name: value for name, value in headers.items() if name.lower() not in ("authorization", "x-api-key")}
    return Endpoint(tuple(endpoint), headers)


def limits(headers: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Requests and tokens a minute that a response's headers tell."""
    found = []
    for name in ("requests", "tokens"):
        try:
            value = float(headers.get(f"anthropic-ratelimit-{name}-limit", ""))
        except ValueError:
            value = 0.0
        found.append(value if 0 < value < 1e12 else None)
    return found[0], found[1]


def parse(status: int, body: bytes) -> Parsed | Problem:
    """What a response means. Pure; never raises, whatever the body holds."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if status != 200:
        return _problem(status, data)
    if not isinstance(data, dict):
        return bad_body("not a JSON object", body)
    if data.get("type") == "error" or not isinstance(data.get("content"), list):
        return bad_body("no content", body)
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for block in data["content"]:
        if not isinstance(block, dict):
            return bad_body("content that is no block", body)
        for kind, found in texts.items():
            if block.get("type") == kind:
                if not isinstance(block.get(kind), str):
                    return bad_body("content that is not text", body)
                found.append(block[kind])
    text, reason = "".join(texts["text"]), data.get("stop_reason")
    if reason in ("pause_turn", "tool_use") and text:
        reason = "end_turn"
    if not isinstance(reason, str) or reason not in FINISH:
        return bad_body(f"stop_reason {reason!r}", body)
    if not text and FINISH[reason] == "stop":
        return bad_body("empty", body)._replace(reason="empty")
    return Parsed([Reply(text, FINISH[reason], "".join(texts["thinking"]) or None)], _usage(data.get("usage")))


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    fresh, read, written, made = (
        value if isinstance(value, int) and value >= 0 else 0
        for value in (
            usage.get("input_tokens"),
            usage.get("cache_read_input_tokens"),
            usage.get("cache_creation_input_tokens"),
            usage.get("output_tokens"),
        )
    )
    return Usage(fresh + read + written, read, made, written)


def _problem(status: int, data: Any) -> Problem:
    error = data.get("error") if isinstance(data, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("type") or ""), str(error.get("message") or "")[:2000]
    lower = message.lower()
    problem = problem_of_status(status, code, message)
    if code == "billing_error" or (status in (400, 403, 429) and any(word in lower for word in SPENT)):
        return Problem("stop", "quota", f"the account's credit or spend limit is used up (HTTP {status}: {message}).")
    if status == 400 and ("prompt is too long" in lower or "context window" in lower or "context limit" in lower):
        return problem._replace(reason="context_length")
    if status == 400 and ("temperature" in lower or "top_p" in lower):
        hint = "This model takes no sampling parameters: set `temperature: null` and `top_p: null`."
        return Problem("stop", "form", f"the request's form was refused (HTTP {status}: {message}). {hint}")
    return problem


# --- batches ---------------------------------------------------------------------------------------------------------

STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}


def batches(endpoint: Endpoint) -> Remote:
    """The Message Batches API."""
    import anthropic

    base_url = endpoint.urls[0].removesuffix(PATH)
    client = anthropic.Anthropic(
        api_key="in the headers", base_url=base_url, default_headers=endpoint.headers, max_retries=0, timeout=300
    )

    def tried(function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except anthropic.APIStatusError as error:
            problem = parse(error.status_code, error.response.content)
            detail = problem.detail if isinstance(problem, Problem) else f"HTTP {error.status_code}"
            if isinstance(problem, Problem) and problem.kind == "retry":
                raise ConnectionError(detail) from None
            raise StopRun(f"batches: {detail}") from None
        except anthropic.APIError as error:
            raise ConnectionError(f"batches: {type(error).__name__}") from None

    def create(tag: str, rows: list[tuple[str, bytes]]) -> str:
        requests = [{"custom_id": name, "params": json.loads(body)} for name, body in rows]
        return str(tried(client.messages.batches.create, requests=requests).id)

    def find(tag: str, since: float, rows: int) -> list[str]:
        # There is no place for the tag: any batch of this size since then may be ours. Its custom_ids will tell.
        return [
            str(batch.id)
            for batch in tried(lambda: _recent(client, since))
            if sum(batch.request_counts.to_dict().values()) == rows
        ]

    def ended(remote: str) -> bool | Problem:
        return bool(tried(client.messages.batches.retrieve, remote).processing_status == "ended")

    def results(remote: str) -> Iterator[tuple[str, int, bytes]]:
        for row in tried(lambda: list(client.messages.batches.results(remote))):
            result = row.result
            if result.type == "succeeded":
                yield row.custom_id, 200, json.dumps(result.message.to_dict(mode="json")).encode()
            elif result.type == "errored":
                error = result.error.to_dict(mode="json")
                kind = (error.get("error") or {}).get("type")
                yield row.custom_id, STATUS.get(str(kind), 500), json.dumps(error).encode()

    return Remote(100_000, 240 * 2**20, create, find, ended, results)


def _recent(client: Any, since: float) -> list[Any]:
    """The account's batches since a time, newest first, an hour's margin for clocks that differ."""
    found = []
    for batch in client.messages.batches.list(limit=100):
        if batch.created_at.timestamp() < since - 3600:
            break
        found.append(batch)
    return found
