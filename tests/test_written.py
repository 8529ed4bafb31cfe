"""Prompts that a teacher writes, with a scripted teacher behind a real server on loopback."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import file_digest
from pipeline.domain import new_domain
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stages import generate
from pipeline.written import failed_evolution, instructions, unquoted, unusable

HARDER = re.compile(r"Here is a prompt.*?\n\n(.*?)\n\n", re.S)


def scripted(text: str) -> str:
    """What the teacher says to a request: good, useless and repeated answers, all depending on the request alone."""
    mark = hashlib.sha256(text.encode()).hexdigest()
    if "numbered list" in text:
        items = [f'{i}. "Why does river {mark[i : i + 6]} turn {mark[i + 6 : i + 9]} here?"' for i in range(6)]
        return "Sure:\n" + "\n".join([*items, items[0], "8. Why?"]) if mark[0] < "e" else "I would rather not."
    if found := HARDER.search(text):
        parent = found[1]
        if mark[0] in "01":
            return parent.upper()  # the same in other type
        if mark[0] == "2":
            return "The given prompt is fine."
        return f"{parent} Give a reason that begins with {mark[:6]} and ends with {mark[6:12]} too."
    if "what the person says next" in text:
        return f'"And what about {mark[:8]} then?"'
    if "Imagine " in text:
        return f"Question: what should I know about the bank called {mark[:8]}?"
    return f"An answer, {mark[:8]}."


@pytest.fixture(scope="module")
def teacher() -> Iterator[tuple[str, list[str]]]:
    """(base URL, the requests that came)."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            came.append(request["messages"][-1]["content"])
            choice = {"index": 0, "finish_reason": "stop"}
            choice["message"] = {"role": "assistant", "content": scripted(came[-1])}
            body = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [choice],
            }
            body["usage"] = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
            sent = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", came
    server.shutdown()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    new_domain("rivers", tmp_path)
    return tmp_path


def make(url: str, out: Path, **section: object) -> tuple[list[dict], dict]:
    recipe = Recipe.model_validate(
        {
            "domain": "rivers",
            "generate": section,
            "collect": {
                "teachers": [{"provider": "openai", "model": "scripted", "base_url": url}],
                "samples": 3,
                "sampling": {"temperature": 1.0},
            },
        }
    )
    out.mkdir(parents=True)
    counts = generate.run(recipe, generate.sources(recipe), out)
    assert sorted(path.name for path in out.iterdir()) == ["prompts.parquet"]
    return pq.read_table(out / "prompts.parquet").to_pylist(), counts


@pytest.mark.parametrize("method", ["self_instruct", "evolve", "persona", "conversation"])
def test_a_teacher_writes_what_was_asked_for(method: str, here: Path, teacher: tuple[str, list[str]]) -> None:
    url, came = teacher
    rows, counts = make(url, here / "data/runs/one/.generate.partial", count=12, methods={method: 1})
    assert len(rows) == 12 and {row["method"] for row in rows} == {method}
    assert len({json.dumps(row["messages"]) for row in rows}) == 12
    assert all(row["messages"][-1]["role"] == "user" for row in rows)
    if method == "conversation":
        assert {len(row["messages"]) for row in rows} == {3}
    if method == "evolve":
        assert {row["template"].split("/")[0] for row in rows} == {"evolve"}
        assert counts["reasons"].get("evolution_without_gain", 0) + counts["reasons"].get("evolution_copies_request", 0)
    if method == "persona":
        assert Counter(row["facets"]["topic"] for row in rows).keys() == {"rivers", "mountains"}
        assert not any("Question:" in row["messages"][0]["content"] for row in rows)
    if method == "self_instruct":
        assert counts["reasons"]["too_short"] and all("Why does" in row["messages"][0]["content"] for row in rows)
    before = len(came)
    make(url, here / "data/runs/two/.generate.partial", count=12, methods={method: 1})
    assert len(came) == before, "all answers came from the store"
    digests = {file_digest(path) for path in here.glob("data/runs/*/.generate.partial/prompts.parquet")}
    assert len(digests) == 1


def test_methods_mix_and_fewer_than_wanted_says_why(here: Path, teacher: tuple[str, list[str]]) -> None:
    mixed = {"facets": 1, "questions": 1, "persona": 2}
    rows, _ = make(teacher[0], here / "data/runs/one/x", count=16, methods=mixed)
    assert Counter(row["method"] for row in rows) == {"facets": 4, "questions": 4, "persona": 8}
    # Three persons and seven entities: there is no more to ask.
    rows, counts = make(teacher[0], here / "data/runs/one/y", count=100, methods={"persona": 1})
    assert len(rows) == 21 and "persona has no more than 21" in counts["note"]


def test_a_file_of_answers_cannot_write_prompts(here: Path) -> None:
    recipe = Recipe.model_validate(
        {"domain": "rivers", "generate": {"methods": {"evolve": 1}}, "collect": {"file": "answers.jsonl"}}
    )
    with pytest.raises(UserError, match=r"evolve needs collect\.teachers"):
        generate.run(recipe, {}, here)


def test_lists_are_read_as_models_write_them() -> None:
    answer = 'Here you are:\n\n1. One thing?\n 2) "Two things?"\n- Prompt: three things\n* **four** things\nThe end.'
    assert instructions(answer) == ["One thing?", "Two things?", "three things", "**four** things"]
    assert instructions("") == [] and instructions("no list at all") == []


def test_quotation_marks_that_belong_to_the_text_stay() -> None:
    assert unquoted('"Who said "no"?"') == '"Who said "no"?"'
    assert unquoted("#Rewritten Prompt#: Why?") == "Why?"


def test_rules_of_elimination() -> None:
    assert failed_evolution("Who is Spock?", "who is SPOCK") == "evolution_without_gain"
    assert failed_evolution("Who is Spock?", "And who is it?") == "evolution_of_stop_words"
    assert failed_evolution("Who is Spock?", "The Rewritten Prompt asks who Spock is.") == "evolution_copies_request"
    assert failed_evolution("Who is Spock?", "Who is Spock, and who was his mother?") is None
    assert (
        unusable("Why?") == "too_short" and unusable("x " * 151) == "too_long" and unusable("-- -- -- x") == "no_text"
    )
