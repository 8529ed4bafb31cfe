import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import questions
from pipeline.errors import RecipeError, UserError
from pipeline.facts import read_facts
from pipeline.recipe import Recipe


def recipe(domain: str = "tiny", seed: int = 0, relations: list[str] | None = None, **evaluate: Any) -> Recipe:
    teacher = {"provider": "local", "model": "none"}
    generate = {"questions": {"relations": relations}}
    data = {"domain": domain, "seed": seed, "generate": generate, "evaluate": evaluate}
    return Recipe.model_validate({**data, "collect": {"teachers": [teacher]}})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_of_the_fact_base(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    found = questions.held_out(recipe())
    facts = read_facts(Path("data/tiny/facts"))
    assert len(found) == len(facts) == len({q.id for q in found})
    first = found[0]
    assert first.prompt == "The capital of France is which city?"
    assert first.messages == ({"role": "user", "content": first.prompt},)
    assert (first.topic, first.group, first.answers) == ("countries", "capital", ("Paris",))
    assert (first.fact, first.subject) == (facts[0].id, "France")
    assert questions.sources(recipe()) == {"facts": Path.cwd() / "data/tiny/facts"}
    assert questions.held_out(recipe(relations=["capital"])) == found
    with pytest.raises(RecipeError, match="no relation 'capitol'"):
        questions.held_out(recipe(relations=["capitol"]))


def test_a_domain_without_facts_has_no_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert questions.held_out(recipe("mine")) == []
    (tmp_path / "data/mine").mkdir(parents=True)
    assert questions.held_out(recipe("mine")) == []
    assert questions.sources(recipe("mine")) == {}


def test_of_a_file_given_or_in_the_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/mine").mkdir(parents=True)
    turns = [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Who?"},
    ]  # fmt: skip
    write(
        tmp_path / "data/mine/held_out.jsonl",
        "\ufeff" + json.dumps({"prompt": "Who commands?", "answer": "Kirk", "topic": "people"}),
        {
            "messages": [*turns, {"role": "assistant", "content": "Spock"}],
            "answers": ["Spock", "Mr. Spock"],
            "id": "q2",
        },
        "",
        {"prompt": "How many?", "answer": 42},
        {"prompt": "Why?", "extra": {"is": "ignored"}},
    )
    mine = recipe("mine", questions="held_out.jsonl")
    found = questions.held_out(mine)
    assert [q.prompt for q in found] == ["Who commands?", "Who?", "How many?", "Why?"]
    assert [q.answers for q in found] == [("Kirk",), ("Spock", "Mr. Spock"), ("42",), ()]
    assert found[1].id == "q2" and list(found[1].messages) == turns
    assert (found[0].topic, found[0].group, found[0].fact, found[0].subject) == ("people", "people", None, "")
    path = questions.sources(mine)["questions"]
    assert path.samefile(tmp_path / "data/mine/held_out.jsonl")
    write(tmp_path / "held_out.jsonl", {"prompt": "Mine"})
    assert [q.prompt for q in questions.held_out(mine)] == ["Mine"]
    with pytest.raises(UserError, match=r"no file other.jsonl, neither as given nor in data/mine/"):
        questions.held_out(recipe("mine", questions="other.jsonl"))


def test_of_parquet(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "answers": ["Kirk"], "topic": None}, {"prompt": "What?", "answers": None, "topic": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    found = questions.held_out(recipe("mine", questions=str(tmp_path / "q.parquet")))
    assert [(q.prompt, q.answers, q.topic) for q in found] == [("Who?", ("Kirk",), ""), ("What?", (), "x")]
    write(tmp_path / "bad.parquet", "not Parquet")
    with pytest.raises(RecipeError, match=r"bad.parquet: cannot be read"):
        questions.read_questions(tmp_path / "bad.parquet")


def test_the_same_question_twice_is_two_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"prompt": "Who?"}, {"prompt": "Who?"}, {"prompt": "Who?"})
    found = questions.read_questions(path)
    assert len({q.id for q in found}) == 3
    assert len({q.about for q in found}) == 1  # but no more evidence than one


USER = '"role": "user"'


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "q.jsonl:2: is not JSON"),
        ("[]", "q.jsonl:2: expected an object"),
        ("{}", "q.jsonl:2: prompt: expected `prompt` or `messages`, found neither"),
        ('{"prompt": "a", "messages": []}', "q.jsonl:2: prompt: expected `prompt` or `messages`, found both"),
        ('{"prompt": " "}', "q.jsonl:2: prompt: has no user turn with text"),
        ('{"prompt": 3}', "q.jsonl:2: prompt: expected a text or a list of messages"),
        ('{"messages": [{"role": "user"}]}', "q.jsonl:2: messages.0: expected"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "q.jsonl:2: messages.0.role: 'bot' is not one of"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "q.jsonl:2: messages: has no user turn"),
        ('{"prompt": "a", "answer": "b", "answers": ["c"]}', "q.jsonl:2: answers: give `answer` or `answers`"),
        ('{"prompt": "a", "answers": "b"}', "q.jsonl:2: answers: expected a list of texts"),
        ('{"prompt": "a", "answer": ""}', "q.jsonl:2: answer: expected a text that is not empty"),
        ('{"prompt": "a", "answers": [null]}', "q.jsonl:2: answers: expected a text that is not empty"),
        ('{"prompt": "a", "id": "first"}', "q.jsonl:2: id: 'first' is taken by line 1"),
        ('{"prompt": "a", "topic": []}', "q.jsonl:2: topic: expected a text"),
    ],
)
def test_mistakes_are_named_with_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "q.jsonl", {"prompt": "ok", "id": "first"}, line)
    with pytest.raises(RecipeError) as error:
        questions.read_questions(path)
    assert message in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no questions"):
        questions.read_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(RecipeError, match=r"q.txt: is not a .jsonl"):
        questions.read_questions(write(tmp_path / "q.txt", "prompt"))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "café"}\n'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.jsonl:1: is not UTF-8"):
        questions.read_questions(tmp_path / "latin.jsonl")


def test_a_limited_draw_is_even_and_stays(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{topic}{n}?", "topic": topic}
        for topic, many in (("a", 50), ("b", 5), ("c", 20))
        for n in range(many)
    ]
    path = str(write(tmp_path / "q.jsonl", *rows))
    drawn = questions.held_out(recipe("mine", questions=path, limit=30))
    assert Counter(q.topic for q in drawn) in ({"a": 13, "b": 5, "c": 12}, {"a": 12, "b": 5, "c": 13})
    assert drawn == questions.held_out(recipe("mine", questions=path, limit=30))
    assert drawn != questions.held_out(recipe("mine", 1, questions=path, limit=30))
    # A larger draw has the smaller one in it.
    assert set(q.id for q in drawn) < set(q.id for q in questions.held_out(recipe("mine", questions=path, limit=40)))
    assert len(questions.held_out(recipe("mine", questions=path, limit=1000))) == 75


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "who \\ud800 is", "answer": "x \\udfff"}\n')
    (question,) = questions.read_questions(path)
    assert question.prompt == "who ? is" and question.answers == ("x ?",)
