"""Anthropic's wire format."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calls.reply import Parsed, Problem
from pipeline.recipe import Sampling, Teacher
from pipeline.teachers import anthropic

TEACHER = Teacher(provider="anthropic", model="m")
USAGE = {"input_tokens": 5, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 2, "output_tokens": 3}


def body(content=None, stop="end_turn", **more) -> bytes:
    content = [{"type": "text", "text": "Spock"}] if content is None else content
    return json.dumps({"type": "message", "content": content, "stop_reason": stop, "usage": USAGE} | more).encode()


def test_an_answer_with_thinking():
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parsed = anthropic.parse(200, body(content))
    assert isinstance(parsed, Parsed)
    assert parsed.replies[0] == ("ab", "stop", "hm", None)
    assert parsed.usage == (17, 10, 3, 2)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("pause_turn", "stop"),
    ],
)
def test_stop_reasons(stop, reason):
    parsed = anthropic.parse(200, body(stop=stop))
    assert isinstance(parsed, Parsed)
    assert parsed.replies[0].finish_reason == reason


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"<html>",
        b'{"type":"error"}',
        body([]),
        body([5]),
        body([{"type": "text"}]),
        body(stop=None),
        body(stop=[]),
    ],
)
def test_a_200_that_is_no_answer_is_retried(broken):
    problem = anthropic.parse(200, broken)
    assert isinstance(problem, Problem) and problem.kind == "retry" and problem.may_be_billed


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (401, "authentication_error", "", ("stop", "auth")),
        (404, "not_found_error", "", ("stop", "not_found")),
        (429, "rate_limit_error", "slow", ("retry", "throttled")),
        (429, "rate_limit_error", "You have reached your spend limit", ("stop", "quota")),
        (400, "invalid_request_error", "Your credit balance is too low", ("stop", "quota")),
        (400, "invalid_request_error", "prompt is too long: 10 tokens", ("final", "context_length")),
        (400, "invalid_request_error", "temperature is not supported", ("stop", "form")),
        (400, "invalid_request_error", "odd", ("final", "rejected")),
        (529, "overloaded_error", "", ("retry", "overloaded")),
        (500, "api_error", "", ("retry", "server_error")),
    ],
)
def test_errors(status, kind, message, expected):
    problem = anthropic.parse(
        status, json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    )
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.reason) == expected


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content", "text", "stop_reason", "usage", "error"]), inner, max_size=4
        )
    ),
)


@given(st.sampled_from([200, 200, 400, 529]), JSON | st.binary(max_size=50))
def test_nothing_breaks_the_parser(status, data):
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    assert isinstance(anthropic.parse(status, raw), Parsed | Problem)


def test_the_system_prompt_is_apart_and_cached():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    request = anthropic.request(TEACHER, messages, Sampling(temperature=None, top_p=None, max_tokens=9), 5)
    assert request == {
        "model": "m",
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    }


def test_the_endpoint():
    endpoint = anthropic.connect(TEACHER, "canary-key")
    assert endpoint.urls == ("https://api.anthropic.com/v1/messages",)
    assert any("canary-key" in value for value in endpoint.headers.values())
    assert any(name.lower() == "anthropic-version" for name in endpoint.headers)
    assert "canary" not in repr(endpoint)
    other = anthropic.connect(Teacher(provider="anthropic", model="m", base_url="http://h/v1"), None)
    assert other.urls == ("http://h/v1/messages",)
    assert not any("none" in value for value in other.headers.values())
