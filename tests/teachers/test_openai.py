"""OpenAI's wire format: what bodies mean, and that no body can break the parser."""

import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calls.reply import Parsed, Problem
from pipeline.errors import UserError
from pipeline.recipe import Sampling, Teacher
from pipeline.teachers import openai

TEACHER = Teacher(provider="openai", model="m")
MESSAGES = [{"role": "user", "content": "Who?"}]


def body(message=None, finish="stop", **more) -> bytes:
    choice = {"index": 0, "message": message or {"role": "assistant", "content": "Spock"}, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [choice], "usage": usage} | more).encode()


def test_an_answer():
    parsed = openai.parse(200, body())
    assert isinstance(parsed, Parsed)
    assert parsed.replies[0][:2] == ("Spock", "stop")
    assert parsed.usage == (9, 4, 3, 0)


@pytest.mark.parametrize(
    ("message", "finish", "text", "reason"),
    [
        ({"content": "cut"}, "length", "cut", "length"),
        ({"content": None}, "length", "", "length"),
        ({"content": None, "refusal": "No."}, "stop", "No.", "refusal"),
        ({"content": None}, "content_filter", "", "content_filter"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", "ab", "stop"),
    ],
)
def test_finish_reasons(message, finish, text, reason):
    parsed = openai.parse(200, body(message, finish))
    assert isinstance(parsed, Parsed)
    assert (parsed.replies[0].text, parsed.replies[0].finish_reason) == (text, reason)


def test_reasoning_and_logprobs():
    message = {"content": "x", "reasoning_content": "because"}
    entry = {"token": "x", "logprob": -0.25, "top_logprobs": [{"token": "y", "logprob": -2}]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [entry]}}
    parsed = openai.parse(200, json.dumps({"choices": [choice]}).encode())
    assert isinstance(parsed, Parsed) and parsed.usage is None
    assert parsed.replies[0].reasoning == "because"
    assert parsed.replies[0].logprobs[0]["logprob"] == -0.25
    assert parsed.replies[0].logprobs[0]["top"][0]["token"] == "y"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        body()[:-5],
        b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"error": {"message": "overloaded"}}',
        body({"content": 5}),
        body({"content": ""}),
        body(finish=None),
        body(finish="surprise"),
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_a_200_that_is_no_answer_is_retried(broken):
    problem = openai.parse(200, broken)
    assert isinstance(problem, Problem)
    assert problem.kind == "retry" and problem.may_be_billed


@pytest.mark.parametrize(
    ("status", "error", "kind", "reason"),
    [
        (401, {}, "stop", "auth"),
        (403, {}, "stop", "auth"),
        (404, {"code": "model_not_found"}, "stop", "not_found"),
        (429, {"code": "insufficient_quota"}, "stop", "quota"),
        (429, {"code": "rate_limit_exceeded"}, "retry", "throttled"),
        (500, {}, "retry", "server_error"),
        (503, {}, "retry", "overloaded"),
        (529, {}, "retry", "overloaded"),
        (307, {}, "stop", "redirect"),
        (400, {"code": "context_length_exceeded"}, "final", "context_length"),
        (400, {"message": "maximum context length is 10"}, "final", "context_length"),
        (400, {"code": "content_policy_violation"}, "final", "content_filter"),
        (400, {"code": "unsupported_value", "message": "temperature"}, "stop", "form"),
        (400, {"code": "other"}, "final", "rejected"),
        (413, {}, "final", "too_large"),
    ],
)
def test_errors(status, error, kind, reason):
    problem = openai.parse(status, json.dumps({"error": error}).encode())
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.reason) == (kind, reason)
    assert not problem.may_be_billed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "usage", "error", "index", "logprobs", "stop"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from([200, 200, 200, 400, 429, 500]), JSON | st.binary(max_size=50))
def test_nothing_breaks_the_parser(status, data):
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    outcome = openai.parse(status, raw)
    assert isinstance(outcome, Parsed | Problem)
    assert status == 200 or isinstance(outcome, Problem)


def test_every_parameter_is_in_the_request_and_n_is_not():
    sampling = Sampling(temperature=0.3, top_p=0.8, max_tokens=7, logprobs=True)
    request = openai.request(TEACHER.model_copy(update={"extra": {"stop": ["x"]}}), MESSAGES, sampling, 5)
    assert request == {
        "model": "m", "messages": MESSAGES, "max_completion_tokens": 7, "temperature": 0.3, "top_p": 0.8,
        "logprobs": True, "seed": 5, "stop": ["x"],
    }  # fmt: skip
    silent = openai.request(TEACHER, MESSAGES, Sampling(temperature=None, top_p=None), 5)
    assert "temperature" not in silent and "top_p" not in silent
    sent = json.loads(openai.wire(request, 3, 2**40 + 1))
    assert sent["n"] == 3 and sent["seed"] == 1
    assert "n" not in json.loads(openai.wire(request, 1, 0))


def test_lone_surrogates_are_sent_as_something():
    assert openai.wire({"messages": [{"role": "user", "content": "\ud800\0"}]}, 1, 0).decode()


def test_limits():
    assert openai.limits({"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "x"}) == (3000, None)
    assert openai.limits({"x-ratelimit-limit-requests": "0"}) == (None, None)


def test_the_endpoint_shows_no_key():
    endpoint = openai.connect(TEACHER, "canary-key")
    assert endpoint.urls == ("https://api.openai.com/v1/chat/completions",)
    assert endpoint.headers["Authorization"] == "Bearer canary-key"
    assert "canary" not in repr(endpoint) + str(endpoint)
    other = openai.connect(Teacher(provider="openai", model="m", base_url=["http://h/v1", "http://i/v1/"]), None)
    assert other.urls == ("http://h/v1/chat/completions", "http://i/v1/chat/completions")
    assert "Authorization" not in other.headers
    try:
        raise UserError(f"{endpoint}")
    except UserError:
        assert "canary" not in traceback.format_exc()
