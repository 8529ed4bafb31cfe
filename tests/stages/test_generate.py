"""generate: what comes out is distinct, balanced, the same every time, and never a held-out question."""

import csv
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paths
from pipeline.artifacts import file_digest
from pipeline.domain import new_domain, read_domain
from pipeline.errors import RecipeError, UserError
from pipeline.facts import read_facts
from pipeline.novelty import grams_of, is_held_out, make_guard, nearly_new, nothing_seen, words
from pipeline.questions import Question
from pipeline.recipe import Recipe
from pipeline.stages import generate
from pipeline.stages.generate import clean, shares

DOMAIN = """\
topics:
  worlds:
    planet: [Vulcan, Romulus, Organia, Talos IV]
    moon: [Delta Vega]
  people:
    character: [Spock, Uhura, Sulu]
tasks: [ask, compare]
personas: [a cadet, a cook]
difficulty: {easy: Use plain words., hard: Go deep.}
lead_ins: ["Computer:"]
weights:
  tasks: {ask: 3}
"""

TEMPLATES = {
    "ask/where": "Where is {{ planet }}, and who wants to know? {{ persona }}. {{ difficulty }}",
    "ask/who": "Who is {{ character }}? {{ difficulty }}",
    "compare/two": "How do {{ character }} and {{ other_character }} differ when it comes to {{ planet }}?",
}

FACTS = """\
- relation: capital
  topic: countries
  ask: ["What is the capital of {{ subject }}?", "Name the capital of {{ subject }}.", "Where is {{ subject }} ruled?"]
  held_out: ["Which city is the capital of the country {{ subject }}?"]
  facts: {France: Paris, Italy: Rome, Peru: Lima, Kenya: Nairobi}
- relation: river
  topic: rivers
  ask: ["Which river flows through {{ subject }}?"]
  held_out: ["On what river does {{ subject }} lie?"]
  facts: {Paris: Seine, Rome: Tiber}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the domain `demo`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prompts/demo/domain.yaml", DOMAIN)
    for name, text in TEMPLATES.items():
        write(tmp_path / f"prompts/demo/facets/{name}.jinja", text)
    write(tmp_path / "data/demo/facts/facts.yaml", FACTS)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def make(out: Path, domain: str = "demo", seed: int = 0, **section: object) -> tuple[list[dict], dict]:
    """Run the stage: (rows, counts)."""
    recipe = Recipe.model_validate(
        {
            "domain": domain,
            "seed": seed,
            "generate": section,
            "collect": {"teachers": [{"provider": "local", "model": "m"}]},
        }
    )
    out.mkdir(exist_ok=True)
    counts = generate.run(recipe, generate.sources(recipe), out)
    rows = pq.read_table(out / "prompts.parquet").to_pylist()
    assert counts["outcomes"] == {"prompts": len(rows)}
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    json.dumps(counts, allow_nan=False)
    return rows, counts


def texts(rows: list[dict]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


# --- questions ---


def test_questions_are_spread_over_facts(here: Path) -> None:
    rows, _ = make(here / "a", count=10, methods={"questions": 1})
    of_each = Counter(row["facets"]["entity"] for row in rows)
    assert of_each == {"France": 2, "Italy": 2, "Peru": 2, "Kenya": 2, "Paris": 1, "Rome": 1}
    few, _ = make(here / "b", count=6, methods={"questions": 1})
    assert {(row["template"], row["facets"]["entity"]) for row in few} == {
        ("capital", c) for c in ("France", "Italy", "Peru", "Kenya")
    } | {("river", c) for c in ("Paris", "Rome")}
    assert {row["facets"]["topic"] for row in few} == {"countries", "rivers"}


def test_more_questions_than_there_are_says_why(here: Path) -> None:
    rows, counts = make(here / "a", count=50, methods={"questions": 1})
    assert len(rows) == 14
    assert counts["note"] == "questions has no more than 14 prompts that are new, of 50 asked for"


def test_only_the_relations_asked_for_and_lead_ins(here: Path) -> None:
    rows, _ = make(here / "a", count=2, methods={"questions": 1}, questions={"relations": ["river"], "lead_ins": 1.0})
    assert sorted(texts(rows)) == [f"Computer: Which river flows through {city}?" for city in ("Paris", "Rome")]
    with pytest.raises(RecipeError, match="no relation 'rivr'.*Did you mean 'river'"):
        make(here / "b", count=2, methods={"questions": 1}, questions={"relations": ["rivr"]})
    domain = here / "prompts/demo/domain.yaml"
    domain.write_text(domain.read_text().replace('lead_ins: ["Computer:"]', ""))
    with pytest.raises(RecipeError, match="domain.yaml: lead_ins: is missing"):
        make(here / "c", count=2, methods={"questions": 1}, questions={"lead_ins": 0.5})


def test_more_prompts_begin_with_the_same_ones(here: Path) -> None:
    for method in ("questions", "facets"):
        few, _ = make(here / "few", count=6, methods={method: 1})
        many, _ = make(here / "many", count=10, methods={method: 1})
        assert {row["id"] for row in few} < {row["id"] for row in many}


# --- facets ---


def test_facets_are_balanced_and_distinct(here: Path) -> None:
    rows, counts = make(here / "a", count=16, methods={"facets": 1})
    assert Counter(row["facets"]["task"] for row in rows) == {"ask": 12, "compare": 4}
    assert len(set(texts(rows))) == 16
    asked = Counter(row["facets"]["difficulty"] for row in rows if row["facets"]["task"] == "ask")
    assert abs(asked["easy"] - asked["hard"]) <= 1
    for row in rows:
        assert row["template"].startswith(row["facets"]["task"] + "/")
        assert row["facets"]["entity"] in texts([row])[0]
        assert row["facets"]["topic"] == ("worlds" if row["template"] == "ask/where" else "people")
        if row["template"] == "compare/two":
            first, second = texts([row])[0].removeprefix("How do ").split(" differ")[0].split(" and ")
            assert first != second
    balanced, _ = make(here / "b", count=16, methods={"facets": 1}, facets={"sampling": "balanced"})
    assert Counter(row["facets"]["task"] for row in balanced) == {"ask": 8, "compare": 8}
    assert counts["coverage"]["facets"]["task"]["ask"] == {"rows": 12, "plan": 12.0}


def test_facets_end_when_every_combination_was_used(here: Path) -> None:
    rows, counts = make(here / "a", count=1000, methods={"facets": 1})
    used = Counter(row["template"] for row in rows)
    # Each combination once, but for those that are nearly the same as another.
    assert used["ask/where"] <= 4 * 2 * 2 and used["ask/who"] == 3 * 2 and used["compare/two"] <= 3 * 2 * 4
    assert len(rows) + counts["reasons"].get("near_duplicate", 0) == 16 + 6 + 24
    assert "facets has no more than" in counts["note"]


def test_methods_are_mixed_by_their_shares(here: Path) -> None:
    rows, _ = make(here / "a", count=12, methods={"questions": 1, "facets": 3})
    assert Counter(row["method"] for row in rows) == {"questions": 3, "facets": 9}
    assert len(make(here / "b", count=1, methods={"questions": 1, "facets": 3})[0]) == 1


@given(st.integers(1, 10_000), st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up(count: int, methods: dict[str, float]) -> None:
    split = shares(count, methods)
    assert sum(split.values()) == count
    for method, share in methods.items():
        assert abs(split[method] - count * share / sum(methods.values())) <= 1


def test_the_same_seed_gives_the_same_bytes(here: Path) -> None:
    both = {"questions": 1, "facets": 1}
    digests = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make(here / name, seed=seed, count=14, methods=both, questions={"lead_ins": 0.5})
        digests.append(file_digest(here / name / "prompts.parquet"))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ask/bad", "Where is\n{{ plannet }}?", r"bad.jinja:2: plannet: .*Did you mean 'planet'\?"),
        ("ask/bad", "Where is {{ planet }?", r"bad.jinja:1: is not a valid template"),
        (
            "asks/bad",
            "Where is {{ planet }}?",
            r"bad.jinja: 'asks' is not among domain.yaml's tasks. Did you mean 'ask'",
        ),
        ("ask/bad", "In the manner of {{ style }}: {{ planet }}", r"bad.jinja:1: style: domain.yaml has nothing"),
        ("ask/bad", "{# about: moon #}{{ planet }}", r"bad.jinja:1: about: 'moon' is not an entity of this template"),
        ("ask/bad", "{{ planet.orbit }}", r"bad.jinja:1: .*no attribute 'orbit'"),
        ("ask/bad", "{# nothing #}", r"bad.jinja: comes out empty"),
    ],
)
def test_a_wrong_template_is_an_error_with_its_line(here: Path, file: str, text: str, message: str) -> None:
    write(here / f"prompts/demo/facets/{file}.jinja", text)
    with pytest.raises(RecipeError, match=message):
        make(here / "a", count=100, methods={"facets": 1})


def test_a_template_may_name_a_topic_or_nothing(here: Path) -> None:
    write(here / "prompts/demo/facets/ask/topic.jinja", "Name something about {{ topic }}, if you {{ task }} me.")
    write(here / "prompts/demo/facets/ask/fixed.jinja", "What would you like to be asked?")
    rows, _ = make(here / "a", count=1000, methods={"facets": 1})
    named = {row["facets"]["topic"]: texts([row])[0] for row in rows if row["template"] == "ask/topic"}
    assert named == {topic: f"Name something about {topic}, if you ask me." for topic in ("worlds", "people")}
    assert [row["facets"]["topic"] for row in rows if row["template"] == "ask/fixed"] == [None]


def test_missing_folders_and_templates(here: Path) -> None:
    with pytest.raises(UserError, match="no folder prompts/nowhere"):
        make(here / "a", domain="nowhere", count=1, methods={"facets": 1})
    write(here / "prompts/empty/domain.yaml", DOMAIN)
    (here / "prompts/empty/facets").mkdir()
    with pytest.raises(RecipeError, match="has no templates"):
        make(here / "b", domain="empty", count=1, methods={"facets": 1})
    write(here / "prompts/empty/facets/loose.jinja", "x")
    with pytest.raises(RecipeError, match="lies in no task"):
        make(here / "c", domain="empty", count=1, methods={"facets": 1})


# --- what is taken ---


def question(text: str, subject: str = "") -> Question:
    return Question("q", "", "", ({"role": "user", "content": text},), (), None, subject)


def test_held_out_questions_are_never_generated(here: Path) -> None:
    held = write(
        here / "held.jsonl",
        json.dumps({"prompt": "WHO is Spock?? Use plain words", "answer": "x"})
        + "\n"
        + json.dumps({"prompt": "Where is Organia, and who wants to know? a cook", "answer": "x"}),
    )
    recipe = Recipe.model_validate(
        {
            "domain": "demo",
            "generate": {"count": 100, "methods": {"facets": 1}},
            "collect": {"teachers": [{"provider": "local", "model": "m"}]},
            "evaluate": {"questions": str(held), "limit": 1},
        }
    )
    (here / "a").mkdir()
    counts = generate.run(recipe, generate.sources(recipe), here / "a")
    made = texts(pq.read_table(here / "a/prompts.parquet").to_pylist())
    assert counts["reasons"]["held_out"] >= 2
    assert not any("Spock? Use plain" in text or "Organia, and who wants to know? a cook" in text for text in made)
    assert any("Spock? Go deep" in text for text in made)


def test_a_long_subject_alone_is_no_held_out_question() -> None:
    title = "For the World Is Hollow and I Have Touched the Sky"
    guard = make_guard([question(f'Who wrote the episode "{title}"?', title)])
    assert is_held_out(guard, grams_of(f"Computer: who wrote the episode {title}"))
    assert not is_held_out(guard, grams_of(f'Name the director of "{title}".'))


def test_a_short_held_out_question() -> None:
    guard = make_guard([question("Who commands?")])
    assert is_held_out(guard, grams_of("who COMMANDS"))
    assert not is_held_out(guard, grams_of("Who commands the Enterprise?"))


def brute_force(sets: list[set]) -> list[bool]:
    new: list[bool] = []
    for i, a in enumerate(sets):
        new.append(not any(n and len(a & b) >= 0.8 * len(a | b) for b, n in zip(sets[:i], new, strict=True)))
    return new


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_near_duplicates_are_those_that_brute_force_finds(seed: int, count: int) -> None:
    draw = random.Random(seed)
    base = [draw.choice("abcdefgh") for _ in range(draw.randint(1, 60))]
    made = []
    for _ in range(count):
        text = base.copy()
        for _ in range(draw.randint(0, 3)):
            text[draw.randrange(len(text))] = draw.choice("abcdefghxyz")
        made.append(" ".join(text[: draw.randint(len(text) // 2, len(text))] or text))
    seen = nothing_seen()
    assert [nearly_new(seen, grams_of(text)) for text in made] == brute_force([set(grams_of(text)) for text in made])


@given(st.text())
def test_words_ignore_case_and_punctuation(text: str) -> None:
    assert words(f"  {text}!?") == words(text)
    assert all(words(word) for word in words(text))


# --- file ---


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_prompts_of_a_file_in_every_form(here: Path) -> None:
    write(
        here / "mine.jsonl",
        "\ufeff"
        + lines(
            {"prompt": "One?", "id": 7},
            {"instruction": "Two.", "input": "of this"},
            {"instruction": "Three.", "input": "", "output": "an answer"},
            {"messages": [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "an answer"}]},
            {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]},
            {"prompt": [{"role": "user", "content": "Five?"}]},
            {"prompt": "One?"},
        )
        + "\n",
    )
    rows, counts = make(here / "a", file="mine.jsonl")
    assert sorted(texts(rows)) == sorted(["One?", "Two.\n\nof this", "Three.", "Four?", "c", "Five?"])
    assert counts["reasons"] == {"exact_duplicate": 1}
    assert {row["method"] for row in rows} == {"file"} and {len(row["messages"]) for row in rows} == {1, 3}
    few, _ = make(here / "b", file="mine.jsonl", count=2)
    assert sorted(texts(few)) == ["One?", "Two.\n\nof this"]


def test_every_kind_of_file_gives_what_jsonl_gives(here: Path) -> None:
    import datasets

    asked = ["One, two?", 'With "quotes"', "Two\nlines", "Grüße, 船長"]
    write(here / "a.jsonl", lines(*({"prompt": text} for text in asked)))
    with (here / "b.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "other"], *([text, "x"] for text in asked)])
    pq.write_table(pa.table({"prompt": asked, "n": [1, 2, 3, 4]}), here / "c.parquet")
    results = []
    datasets.Dataset.from_dict({"prompt": asked}).save_to_disk(here / "d")
    for file in ("a.jsonl", "b.csv", "c.parquet", "d"):
        make(here / "out", file=file)
        results.append(file_digest(here / "out/prompts.parquet"))
    assert len(set(results)) == 1


def test_a_file_may_lie_with_the_data(here: Path) -> None:
    write(here / "data/demo/mine.jsonl", lines({"prompt": "One?"}))
    assert texts(make(here / "a", file="mine.jsonl")[0]) == ["One?"]
    with pytest.raises(UserError, match="generate.file: there is neither none.jsonl nor"):
        make(here / "b", file="none.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a.jsonl: has no prompts"),
        ("a.jsonl", b"\n\n", r"a.jsonl: has no prompts"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": ', r"a.jsonl:2: is not JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: expected an object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a.jsonl:1: is not JSON: it is nested too deeply"),
        ("a.jsonl", b'{"promt": "x"}\n', r"a.jsonl:1: has none of .*Did you mean 'prompt'\?"),
        ("a.jsonl", b'{"prompt": 3}\n', r"a.jsonl:1: prompt: expected a text, found int"),
        ("a.jsonl", b'{"prompt": "  "}\n', r"a.jsonl:1: prompt: is empty"),
        ("a.jsonl", b'{"prompt": null}\n', r"a.jsonl:1: has none of"),
        ("a.jsonl", b'{"instruction": "a", "input": 3}\n', r"a.jsonl:1: input: expected a text"),
        ("a.jsonl", b'{"messages": "a"}\n', r"a.jsonl:1: messages: expected a list"),
        ("a.jsonl", b'{"messages": []}\n', r"a.jsonl:1: messages: has no user turn"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', r"a.jsonl:1: messages.0: expected"),
        ("a.jsonl", b'{"messages": [{"role": "bot", "content": "x"}]}\n', r"a.jsonl:1: messages.0.role: 'bot' is not"),
        ("a.jsonl", b'{"messages": [{"role": [], "content": "x"}]}\n', r"a.jsonl:1: messages.0.role: \[\] is not"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}\n', r"messages: has no user turn"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"a.jsonl:1: is not UTF-8"),
        ("a.csv", b"prompt\n", r"a.csv: has no prompts"),
        ("a.csv", b"text\nx\n", r"a.csv:2: has none of"),
        ("a.csv", b"prompt\na\nb,c\n", r"a.csv:3: has more fields than the header"),
        ("a.csv", b'prompt\n"a\n', r"a.csv:\d: is not CSV"),
        ("a.parquet", b"PAR1 no", r"a.parquet: cannot be read as a data set"),
        ("a.txt", b"x", r"a.txt: is not a .jsonl, .csv or .parquet file"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_line(here: Path, name: str, content: bytes, message: str) -> None:
    (here / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        make(here / "out", file=name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_of_a_hundred_megabytes(here: Path, name: str) -> None:
    with (here / name).open("wb") as file:
        file.write(b'{"prompt": "' if name == "a.jsonl" else b'prompt\n"')
        for _ in range(100):
            file.write(b"x" * 2**20)
    with pytest.raises(RecipeError, match=rf"{name}:\d: is longer than"):
        make(here / "out", file=name)


def test_surrogates_nuls_and_template_syntax_are_harmless_text(here: Path) -> None:
    write(here / "a.jsonl", r'{"prompt": "a\ud800b\u0000c\u001b[31m {{ 7 * 7 }} {% raw %}"}' + "\n")
    rows, _ = make(here / "out", file="a.jsonl")
    assert texts(rows) == ["a\ufffdb\ufffdc\ufffd[31m {{ 7 * 7 }} {% raw %}"]


@given(st.text(st.characters()))
def test_clean_text_can_be_written(text: str) -> None:
    clean(text).encode("utf-8")
    assert "\x00" not in clean(text)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_prompts_or_an_error_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        path = tmp_path_factory.mktemp("any") / f"a.{suffix}"
        path.write_bytes(content)
        try:
            for row in generate.from_file("demo", path):
                assert text_is_whole(row)
        except RecipeError as error:
            assert str(path) in str(error)


def text_is_whole(row: dict) -> bool:
    return all(message["content"].strip() and message["content"].encode() for message in row["messages"])


# --- domain.yaml ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty or not a mapping"),
        ("topic: {}", r":1: topic: there is no such key. Did you mean 'topics'\?"),
        ("topics: [a]", ":1: topics: expected"),
        ("topics:\n  a: {B-c: [x]}", ":2: topics.a.B-c: a kind is a name"),
        ("topics:\n  a: {persona: [x]}", ":2: topics.a.persona: 'persona' means something else"),
        ("topics:\n  a: {planet: x}", ":2: topics.a.planet: expected a list"),
        ("topics:\n  a: {planet: [x, x]}", ":2: topics.a.planet: 'x' is listed twice"),
        ("topics:\n  a: {planet: [x]}\n  b: {planet: [x]}", ":3: topics.b.planet: 'x' is a planet under 'a' already"),
        ("tasks: [ask, '']", ":1: tasks: an entry is empty"),
        ("tasks: [[a]]", ":1: tasks: expected a text"),
        ("tasks: []", ":1: tasks: is empty"),
        ("tasks: [ask]\nweights: {tasks: {aks: 1}}", r":2: weights.tasks.aks: 'aks' is not among tasks.*'ask'"),
        ("tasks: [ask]\nweights: {tasks: {ask: 0}}", ":2: weights.tasks.ask: '0' is not a whole number"),
        ("weights: {task: {ask: 0}}", r":1: weights.task: there is no such group. Did you mean 'tasks'\?"),
        ("tasks: &a [ask]\npersonas: *a", ":1: anchors and aliases"),
        ("tasks: !!python/object/apply:os.system [ls]", ":1: the tag"),
        ("tasks: [a\x01b]", "not valid YAML"),
        ("tasks: ['" + "x" * 3000 + "']", "an entry has 3,000 characters"),
        ("a: [" * 5000, "nested too deeply|not valid YAML"),
    ],
)
def test_a_wrong_domain_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_domain(write(tmp_path / "domain.yaml", text))


def test_template_syntax_in_the_taxonomy_stays_text(here: Path) -> None:
    domain = here / "prompts/demo/domain.yaml"
    domain.write_text(domain.read_text().replace("Talos IV", '"{{ 7 * 7 }} {% for x in y %}"'))
    rows, _ = make(here / "a", count=1000, methods={"facets": 1})
    assert any("Where is {{ 7 * 7 }} {% for x in y %}, and" in text for text in texts(rows))


# --- the shipped domains ---


def test_the_star_trek_taxonomy_fits_the_fact_base() -> None:
    domain = read_domain(paths.PACKAGE.parent / "prompts/star_trek/domain.yaml")
    facts = read_facts(paths.PACKAGE.parent / "data/star_trek/facts")
    known = {fact.subject for fact in facts} | {answer for fact in facts for answer in fact.answers}
    assert set(domain.topics["episodes"]["episode"]) == {f.subject for f in facts if f.relation == "season"}
    checked = ("crew", "people", "planets", "species", "ships", "technology", "institutions", "quotations")
    names = {name for topic in checked for of_kind in domain.topics[topic].values() for name in of_kind}
    assert len(names - known) <= 0.05 * len(names), sorted(names - known)
    assert sum(len(names) for kinds in domain.topics.values() for names in kinds.values()) > 500


@pytest.mark.parametrize(("domain", "templates"), [("star_trek", 40), ("help_desk", 10)])
def test_shipped_domains_generate(domain: str, templates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paths.PACKAGE.parent)
    rows, counts = make(tmp_path / "a", domain=domain, count=600, methods={"facets": 3, "questions": 1})
    assert len(rows) == 600
    assert len({row["template"] for row in rows if row["method"] == "facets"}) >= templates
    tasks = Counter(row["facets"]["task"] for row in rows if row["method"] == "facets")
    for task, covered in counts["coverage"]["facets"]["task"].items():
        assert tasks[task] == covered["rows"] and abs(covered["rows"] - covered["plan"]) <= 0.1 * covered["plan"] + 2
    assert counts["coverage"]["touched"] > 0.3
    assert 0 < counts["coverage"]["nearest"] < 0.8


def test_a_new_domain_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_domain("rivers-2", tmp_path) == tmp_path / "prompts/rivers-2"
    rows, _ = make(tmp_path / "a", domain="rivers-2", count=30, methods={"facets": 2, "questions": 1})
    assert len(rows) == 30 and {row["method"] for row in rows} == {"facets", "questions"}
    with pytest.raises(UserError, match="is there already"):
        new_domain("rivers-2", tmp_path)
    for name in ("../x", "a/b", "", ".x", "runs", "a\x00"):
        with pytest.raises(UserError, match="cannot be the name"):
            new_domain(name, tmp_path)


# --- count is what comes out, or the stage says why not ---


@st.composite
def small_domains(draw: st.DrawFn) -> tuple[dict, dict[str, str], str]:
    """(domain.yaml, templates, facts): sometimes far too small for what is asked of them."""
    names = draw(st.lists(st.sampled_from(["Ada", "Bo", "Cy", "Di", "Ed", "Flo"]), min_size=1, max_size=6, unique=True))
    places = draw(st.lists(st.sampled_from(["Oslo", "Pisa", "Riga"]), min_size=1, max_size=3, unique=True))
    domain = {"topics": {"people": {"person": names}, "towns": {"town": places}}, "tasks": ["ask", "tell"]}
    if draw(st.booleans()):
        domain["weights"] = {"topics": {"towns": draw(st.integers(1, 5))}, "tasks": {"tell": draw(st.integers(1, 5))}}
    bodies = [
        "Who is {{ person }}?",
        "What happened in {{ town }}, and why does {{ person }} never speak of it to anybody at all?",
        "Where does the old road from {{ town }} lead in the end, and who built it so long ago?",
        "Tell me one thing about {{ topic }}.",
        "Compare {{ person }} with {{ other_person }}.",
    ]
    chosen = draw(st.lists(st.sampled_from(bodies), min_size=1, max_size=4, unique=True))
    templates = {f"{draw(st.sampled_from(['ask', 'tell']))}/t{i}": body for i, body in enumerate(chosen)}
    wordings = draw(st.integers(1, 3))
    ask = ["Is {{ subject }} far?", "How far is it to {{ subject }}?", "Name the distance to {{ subject }}."][:wordings]
    relation = {"relation": "far", "topic": "towns", "ask": ask, "held_out": ["So {{ subject }} is far, or is it?"]}
    return domain, templates, yaml.safe_dump([relation | {"facts": dict.fromkeys(places, "yes")}])


@settings(max_examples=60, deadline=None)
@given(
    small_domains(),
    st.fixed_dictionaries({}, optional={"facets": st.floats(0.1, 9), "questions": st.floats(0.1, 9)}).filter(bool),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_count_comes_out_or_the_stage_says_why_not(
    tmp_path_factory: pytest.TempPathFactory,
    small: tuple[dict, dict[str, str], str],
    methods: dict[str, float],
    count: int,
    seed: int,
) -> None:
    domain, templates, facts = small
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("any")
        patch.chdir(folder)
        write(folder / "prompts/small/domain.yaml", yaml.safe_dump(domain))
        for name, body in templates.items():
            write(folder / f"prompts/small/facets/{name}.jinja", body)
        write(folder / "data/small/facts/facts.yaml", facts)
        try:
            rows, counts = make(folder / "a", domain="small", seed=seed, count=count, methods=methods)
        except UserError as error:
            # One person cannot be compared with another one: then there is no template, or not one prompt.
            assert re.search("no template can be filled in|not one prompt came out", str(error))
            return
    assert len(rows) <= count
    split = shares(count, methods)
    of_each = Counter(row["method"] for row in rows)
    ran_dry = [method for method in methods if f"{method} has no more than" in counts.get("note", "")]
    if len(rows) < count:
        assert sorted(ran_dry) == sorted(methods), "every method was asked until it had no more"
    else:
        assert len(ran_dry) < len(methods) or of_each.total() == count
    for method in methods:
        if of_each[method] < split[method]:
            assert method in ran_dry
        if not ran_dry:
            assert of_each[method] == split[method] and "note" not in counts
    if ran_dry and len(rows) == count:
        assert counts["note"].endswith("; the other methods made up for it")
    # No two of them are nearly the same, and none is a held-out question.
    kept = [frozenset(grams_of(row["messages"][0]["content"])) for row in rows]
    for i, one in enumerate(kept):
        assert all(len(one & other) < 0.8 * len(one | other) for other in kept[:i])
    assert not any(text.startswith("So ") for text in texts(rows))
    assert counts["reasons"].keys() <= {"exact_duplicate", "near_duplicate", "held_out"}


def test_what_one_method_lacks_the_others_make_up_for(here: Path) -> None:
    rows, counts = make(here / "a", count=36, methods={"questions": 1, "facets": 1})
    assert Counter(row["method"] for row in rows) == {"questions": 14, "facets": 22}
    assert counts["note"] == (
        "questions has no more than 14 prompts that are new, of 18 asked for; the other methods made up for it"
    )
