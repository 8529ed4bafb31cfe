"""The method magpie on a real, tiny model, and on a server that speaks vLLM's text completions."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from pipeline import paths
from pipeline.calls.reply import Parsed, Problem
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stages import generate
from pipeline.teachers import vllm_text
from pipeline.teachers.local import encode, user_opening
from teacher_server import running


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))


def recipe_of(teacher: dict[str, Any], count: int = 8, system: str | None = "teacher_system.jinja") -> Recipe:
    return Recipe.model_validate(
        {
            "domain": "star_trek",
            "generate": {"count": count, "methods": {"magpie": 1}},
            "collect": {
                "teachers": [teacher],
                "system": system,
                "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 50},
            },
        }
    )


def make(recipe: Recipe, out: Path) -> tuple[list[dict], dict]:
    out.mkdir(parents=True)
    counts = generate.run(recipe, generate.sources(recipe), out)
    return pq.read_table(out / "prompts.parquet").to_pylist(), counts


def stored() -> int:
    """Answers in the response store."""
    found = next(paths.cache_root().rglob("*.sqlite*"))
    with sqlite3.connect(found) as db:
        return db.execute("SELECT count(*) FROM bodies").fetchone()[0]


def test_the_opening_is_what_comes_before_the_users_text(eager: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(eager)
    for system in (None, "Be short."):
        opening = user_opening(str(eager), system)
        chat = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": "Who?"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert text.startswith(opening + "Who?") and ("Be short." in opening) == bool(system)
        # As tokens it begins as the whole conversation does: no second beginning, control tokens as such.
        (ids,) = encode(tokenizer, [[{"role": "opening 3", "content": opening}]], add_generation_prompt=True)
        (whole,) = encode(tokenizer, [chat], add_generation_prompt=False)
        assert ids and whole[: len(ids)] == ids


def test_a_local_model_writes_prompts_and_none_twice(eager: Path, tmp_path: Path) -> None:
    # Named, for the seeds are drawn from the name, and the folder's is another in every run of the tests.
    recipe = recipe_of({"provider": "local", "model": str(eager), "name": "tiny", "batch_size": 4}, system=None)
    assert eager in generate.sources(recipe).values()
    rows, counts = make(recipe, tmp_path / "run/one")
    assert len(rows) == 8 or "magpie has no more than" in counts["note"]
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows) > 2
    before = stored()
    assert make(recipe, tmp_path / "run/two")[0] == rows and stored() == before


def test_a_vllm_server_is_asked_to_go_on_with_the_opening(eager: Path, tmp_path: Path) -> None:
    with running() as server:
        recipe = recipe_of({"provider": "vllm", "model": str(eager), "base_url": server.url})
        rows, counts = make(recipe, tmp_path / "run/one")
        assert len(rows) == 8 and "note" not in counts
        asked = server.stats()["requests"]
        assert asked == 8 and server.stats()["repeats"] == 0
        system = (paths.prompts_folder("star_trek") / "teacher_system.jinja").read_text().strip()
        opening = user_opening(str(eager), system)
        assert all(row["messages"][0]["content"].startswith(f"After {len(opening)} ") for row in rows)
        # Four more: those there are come from the store.
        more, _ = make(recipe_of(recipe.collect.teachers[0].model_dump(exclude_none=True), 12), tmp_path / "run/two")
        assert {row["id"] for row in rows} < {row["id"] for row in more}
        assert server.stats()["requests"] == asked + 4


def test_it_needs_a_teacher_that_goes_on_with_a_text(tmp_path: Path) -> None:
    recipe = recipe_of({"provider": "openai", "model": "x"})
    with pytest.raises(UserError, match="magpie: needs a teacher of `provider: local` or `vllm`"):
        generate.run(recipe, generate.sources(recipe), tmp_path)
    recipe = recipe_of({"provider": "vllm", "model": "./no/such/folder", "base_url": "http://127.0.0.1:1/v1"})
    with pytest.raises(UserError, match="no/such/folder"):
        generate.run(recipe, generate.sources(recipe), tmp_path)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"7", b'{"choices": 3}', b'{"choices": [7]}', b'{"choices": [{"text": 1, "finish_reason": "stop"}]}',
     b'{"choices": [{"text": "x", "finish_reason": ["stop"]}]}', b'{"choices": []}'],
)  # fmt: skip
def test_a_body_that_is_no_text_completion(body: bytes) -> None:
    found = vllm_text.parse(200, body)
    assert isinstance(found, Problem) and found.reason == "bad_body"
    assert isinstance(vllm_text.parse(500, body), Problem)


def test_an_empty_turn_is_an_answer() -> None:
    body = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    found = vllm_text.parse(200, json.dumps(body).encode())
    assert isinstance(found, Parsed) and found.replies[0].text == "" and found.usage and found.usage.input_tokens == 3
