"""Text completions of a vLLM server, for the method magpie: how a model goes on with a text that ends in the middle of
a conversation. No recipe names this provider; generate asks it in place of `vllm`.

The text is in the chat template's form already, control tokens and all, so the server must not add a second beginning.
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#completions-api
"""

import json
from typing import Any

from pipeline.calls.reply import Parsed, Problem, Reply, bad_body
from pipeline.calls.transport import Endpoint
from pipeline.recipe import Teacher
from pipeline.teachers import openai, vllm
from pipeline.teachers.vllm import limits, request, serve

__all__ = ["connect", "limits", "parse", "request", "serve", "wire"]

PATH = "/completions"
KEY_ENV = None
SAMPLES_AT_ONCE = 16


def wire(request: dict[str, Any], n: int, seed: int) -> bytes:
    """The body that asks for n continuations of the last message's text."""
    body = {name: value for name, value in request.items() if name not in ("messages", "logprobs")}
    body |= {"prompt": request["messages"][-1]["content"], "add_special_tokens": False}
    return openai.wire(body, n, seed)


def connect(teacher: Teacher, key: str | None) -> Endpoint:
    """Base URLs and headers."""
    endpoint = vllm.connect(teacher, key)
    return Endpoint(tuple(url.removesuffix(openai.PATH) + PATH for url in endpoint.urls), endpoint.headers)


def parse(status: int, body: bytes) -> Parsed | Problem:
    """What a response means. Pure; never raises, whatever the body holds."""
    if status != 200:
        return openai.parse(status, body)
    try:
        data = json.loads(body)
        choices = sorted(data["choices"], key=openai._index)
        replies = [Reply(choice["text"], openai.FINISH[choice["finish_reason"]], None, None) for choice in choices]
        if not replies or not all(isinstance(reply.text, str) for reply in replies):
            return bad_body("no text completion", body)
        return Parsed(replies, openai._usage(data.get("usage")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return bad_body("no text completion", body)
