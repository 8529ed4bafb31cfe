"""Provider `openai`: chat completions, at OpenAI or any server with the same interface. The wire format only.

https://platform.openai.com/docs/api-reference/chat
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.calls.batch import Remote
from pipeline.calls.reply import Logprob, Parsed, Problem, Reply, Usage, bad_body, problem_of_status
from pipeline.calls.transport import Endpoint
from pipeline.errors import StopRun, UserError
from pipeline.recipe import Sampling, Teacher
from pipeline.records import Message

PATH = "/chat/completions"
KEY_ENV = "OPENAI_API_KEY"
SAMPLES_AT_ONCE = 8  # `n`
TERMS = (
    "OpenAI's terms do not allow using its output to develop models that compete with OpenAI",
    "https://openai.com/policies/row-terms-of-use/",
)

FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated")
FORM = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "model_not_found", "invalid_model")


def request(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
    """What determines an answer: the body but for `n` and the sample's own seed."""
    made: dict[str, Any] = {"model": teacher.model, "messages": messages, "max_completion_tokens": sampling.max_tokens}
    if sampling.temperature is not None:
        made["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        made["top_p"] = sampling.top_p
    if sampling.logprobs:
        made |= {"logprobs": True} | ({"top_logprobs": sampling.top_logprobs} if sampling.top_logprobs else {})
    return made | {"seed": seed} | teacher.extra


def wire(request: dict[str, Any], n: int, seed: int) -> bytes:
    """The body that asks for n samples of a request."""
    body = request | {"seed": seed % 2**31}
    return json.dumps(body | {"n": n} if n > 1 else body, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


def connect(teacher: Teacher, key: str | None) -> Endpoint:
    """Base URL and headers, from the official package. Raises UserError if it refuses the settings."""
    import openai

    urls = teacher.urls() or (None,)
    endpoint: list[str] = []
    headers: dict[str, str] = {}
    for url in urls:
        try:
            client = openai.OpenAI(api_key=key or "none", base_url=url, max_retries=0)
        except openai.OpenAIError as error:
            raise UserError(f"collect.teachers: {teacher.model}: {error}") from None
        headers = {
            name: value
            for name, value in {**client.default_headers, **client.auth_headers}.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }
        endpoint.append(str(client.base_url).rstrip("/") + PATH)
        client.close()
    if key is None:
        headers.pop("Authorization", None)
    return Endpoint(tuple(endpoint), headers)


def limits(headers: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Requests and tokens a minute that a response's headers tell."""
    return _number(headers.get("x-ratelimit-limit-requests")), _number(headers.get("x-ratelimit-limit-tokens"))


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
    if data.get("error"):
        return bad_body("an error with status 200", body)
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        return bad_body("no choices", body)
    replies: list[Reply | None] = []
    for index, choice in enumerate(sorted(choices, key=_index)):
        reply = _reply(choice, index)
        if isinstance(reply, str):
            return bad_body(reply, body)
        replies.append(reply)
    if not any(replies):
        return bad_body("empty", body)._replace(reason="empty")
    return Parsed(replies, _usage(data.get("usage")))


def _reply(choice: Any, index: int) -> Reply | str | None:
    """One choice, None if it says nothing, or what is wrong with it."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return "a choice without a message"
    if _index(choice) not in (index, -1):
        return "a choice is missing or given twice"
    text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    if isinstance(text, list):  # content in parts
        text = "".join(part.get("text") or "" for part in text if isinstance(part, dict))
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        return "content that is not text"
    if reason in ("tool_calls", "function_call") and text:
        reason = "stop"
    if not isinstance(reason, str) or reason not in FINISH:
        return f"finish_reason {reason!r}"
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    finish = "refusal" if refusal else FINISH[reason]
    if not text and not refusal and finish == "stop":
        return None
    logprobs = choice.get("logprobs")
    entries = _logprobs(logprobs.get("content")) if isinstance(logprobs, dict) else None
    return Reply(refusal or text or "", finish, reasoning if isinstance(reasoning, str) else None, entries)


def _logprobs(content: Any) -> list[Logprob] | None:
    if not isinstance(content, list):
        return None
    entries = []
    for entry in content:
        if not isinstance(entry, dict) or not isinstance(entry.get("logprob"), int | float):
            return None
        top = _logprobs(entry.get("top_logprobs")) or None
        # vLLM gives ids instead of texts where it is asked to.
        token = str(entry.get("token"))
        ident = TOKEN_ID.fullmatch(token)
        named = {"token": None, "id": int(ident[1])} if ident else {"token": token, "id": None}
        entries.append({**named, "logprob": float(entry["logprob"]), "top": top})
    return entries


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    read, cached, written, made = (
        value if isinstance(value, int) and value >= 0 else 0
        for value in (
            usage.get("prompt_tokens"),
            details.get("cached_tokens"),
            details.get("cache_write_tokens"),
            usage.get("completion_tokens"),
        )
    )
    return Usage(read, min(cached, read), made, min(written, read - min(cached, read)))


def _problem(status: int, data: Any) -> Problem:
    error = data.get("error") if isinstance(data, dict) else None
    error = error if isinstance(error, dict) else data if isinstance(data, dict) else {}
    code = next((str(error[name]) for name in ("code", "type") if isinstance(error.get(name), str)), "")
    message = str(error.get("message") or "")[:2000]
    lower = message.lower()
    problem = problem_of_status(status, code, message)
    if code in QUOTA or "exceeded your current quota" in lower:
        return Problem("stop", "quota", f"the account's quota is used up (HTTP {status} {code}: {message}).")
    if code in ("context_length_exceeded", "string_above_max_length") or "context length" in lower:
        return problem._replace(kind="final", reason="context_length")
    if code in ("content_filter", "content_policy_violation"):
        return problem._replace(kind="final", reason="content_filter")
    if status in (400, 422) and code in FORM:
        hint = "Take it out of the recipe: `temperature: null` or `top_p: null` is not sent."
        return Problem("stop", "form", f"the request's form was refused (HTTP {status} {code}: {message}). {hint}")
    return problem


def _index(choice: Any) -> int:
    index = choice.get("index") if isinstance(choice, dict) else None
    return index if isinstance(index, int) else -1


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < 1e12 else None


# --- batches ---------------------------------------------------------------------------------------------------------


def batches(endpoint: Endpoint) -> Remote:
    """The Batch API: a file of requests, a batch of it, a file of results and one of errors."""
    import openai

    base_url = endpoint.urls[0].removesuffix(PATH)
    client = openai.OpenAI(
        api_key="in the headers", base_url=base_url, default_headers=endpoint.headers, max_retries=0, timeout=300
    )

    def tried(function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except openai.APIStatusError as error:
            problem = parse(error.status_code, error.response.content)
            detail = problem.detail if isinstance(problem, Problem) else f"HTTP {error.status_code}"
            if isinstance(problem, Problem) and problem.kind == "retry":
                raise ConnectionError(detail) from None
            raise StopRun(f"batches: {detail}") from None
        except openai.APIError as error:
            raise ConnectionError(f"batches: {type(error).__name__}") from None

    def create(tag: str, rows: list[tuple[str, bytes]]) -> str:
        head, tail = b'{"custom_id":"%s","method":"POST","url":"/v1%s","body":', b"}\n"
        lines = b"".join(head % (name.encode(), PATH.encode()) + body + tail for name, body in rows)
        file = tried(client.files.create, file=("seqkd.jsonl", lines), purpose="batch")
        made = tried(
            client.batches.create,
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"seqkd": tag},
        )
        return str(made.id)

    def find(tag: str, since: float, rows: int) -> list[str]:
        for batch in tried(lambda: _recent(client, since)):
            if (batch.metadata or {}).get("seqkd") == tag:
                return [str(batch.id)]
        return []

    def ended(remote: str) -> bool | Problem:
        batch = tried(client.batches.retrieve, remote)
        if batch.status == "failed":
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            said = "; ".join(f"{error.code}: {error.message}" for error in errors[:3]) or "no reason given"
            full = any(error.code == "token_limit_exceeded" for error in errors)  # more tokens than may be enqueued
            return Problem("retry" if full else "stop", "batch", said)
        return batch.status in ("completed", "expired", "cancelled")

    def results(remote: str) -> Iterator[tuple[str, int, bytes]]:
        batch = tried(client.batches.retrieve, remote)
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                yield from _results(tried(lambda file=file: client.files.content(file).content))

    return Remote(50_000, 190 * 2**20, create, find, ended, results)


def _recent(client: Any, since: float) -> list[Any]:
    """The account's batches since a time, newest first, an hour's margin for clocks that differ."""
    found = []
    for batch in client.batches.list(limit=100):
        if batch.created_at < since - 3600:
            break
        found.append(batch)
    return found


def _results(content: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The rows of a file of results. A broken line is left out: its row is asked again."""
    for line in content.splitlines():
        try:
            row = json.loads(line)
            response = row.get("response") or {}
            name, status, body = row["custom_id"], response["status_code"], response["body"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if isinstance(name, str) and isinstance(status, int):
            yield name, status, json.dumps(body).encode()
