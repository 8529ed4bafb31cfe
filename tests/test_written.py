"""Prompts that a teacher writes, with a scripted teacher behind a real server on loopback."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import artifacts, flow
from pipeline.artifacts import file_digest
from pipeline.domain import new_domain
from pipeline.errors import UserError
from pipeline.metrics import rouge_l
from pipeline.novelty import Worded, grams_of, is_held_out, make_guard, nearly_new, nothing_seen, rouge_new
from pipeline.questions import Question
from pipeline.recipe import Recipe
from pipeline.records import make_id
from pipeline.stages import collect, generate
from pipeline.written import failed_evolution, instructions, needs_passage, unquoted, unusable
from scripted import scripted as serving

PASSAGE = re.compile(r"<passage-(\w+)>\n(.*)\n</passage-\1>", re.S)
HARDER = re.compile(r"Here is a prompt.*?\n\n(.*?)\n\n", re.S)


def scripted(text: str) -> str:
    """What the teacher says to a request: good, useless and repeated answers, all depending on the request alone."""
    mark = hashlib.sha256(text.encode()).hexdigest()
    if found := PASSAGE.search(text):
        if "Answer from this passage alone" in text:
            return f"It is as follows. {found[2]}"
        about = found[2].split()
        items = [f"What is said of {' '.join(about[i : i + 4])} in case {mark[i : i + 3]}?" for i in range(0, 12, 4)]
        return "\n".join(f"{i}. {item}" for i, item in enumerate([*items, "What does the passage say first?"], 1))
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

    def say(text: str) -> str:
        came.append(text)
        return scripted(text)

    with serving(say) as server:
        yield server.url, came


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    new_domain("rivers", tmp_path)
    return tmp_path


def recipe_of(url: str, **section: object) -> Recipe:
    return Recipe.model_validate(
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


def make(url: str, out: Path, **section: object) -> tuple[list[dict], dict]:
    recipe = recipe_of(url, **section)
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


HANDBOOK = {
    "leave.md": "# Leave\n\nAsk the head of your ward for leave of more than ten days at least six weeks ahead.\n",
    "keys.txt": "Lost keys are reported to the porter on the same day; the department pays the lock. {{ 7 * 7 }}\n",
    "deep/fees.html": "<p>Parking on the north side costs two coins an hour, and nothing after seven at night.</p>",
}


def handbook(folder: Path) -> Path:
    for name, text in HANDBOOK.items():
        (folder / "handbook" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "handbook" / name).write_text(text)
    return folder / "handbook"


@pytest.mark.parametrize("include", [False, True])
def test_questions_about_documents_keep_their_passage(
    include: bool, here: Path, teacher: tuple[str, list[str]]
) -> None:
    url, came = teacher
    section = {"files": [handbook(here)], "include": include}
    rows, counts = make(
        url, here / "data/runs/one/.generate.partial", count=8, methods={"documents": 1}, documents=section
    )
    assert len(rows) == 8 and {row["method"] for row in rows} == {row["template"] for row in rows} == {"documents"}
    assert {row["facets"]["topic"] for row in rows} == {"leave.md", "keys.txt", "fees.html"}
    assert any("{{ 7 * 7 }}" in row["context"] for row in rows), "a document is data and no template"
    for row in rows:
        (turn,) = row["messages"]
        assert row["id"] == make_id("prompt", "rivers", row["messages"])
        assert (row["context"] in turn["content"]) == include
        about = re.search(r"What is said of (.*) in case", turn["content"])
        assert about[1] in " ".join(row["context"].split()) if about else include
    assert bool(counts["reasons"].get("needs_passage")) != include
    # A change of one word in a document makes the stage stale.
    recipe = recipe_of(url, count=8, methods={"documents": 1}, documents=section)
    digests = [artifacts.digest(path) for path in generate.sources(recipe).values()]
    (here / "handbook/keys.txt").write_text(HANDBOOK["keys.txt"].replace("porter", "guard"))
    assert digests != [artifacts.digest(path) for path in generate.sources(recipe).values()]

    # Whoever answers sees the passage once, whether the student will or not; the completions have it for the filter.
    del came[:]
    out = here / "data/runs/one/.collect.partial"
    out.mkdir()
    prompts = here / "data/runs/one/.generate.partial/prompts.parquet"
    collect.run(recipe, collect.sources(recipe) | {"prompts": prompts}, out)
    answered = pq.read_table(out / "completions.parquet").to_pylist()
    assert len(answered) == 24 and {row["context"] for row in answered} == {row["context"] for row in rows}
    assert {row["prompt_id"]: row["messages"] for row in answered} == {row["id"]: row["messages"] for row in rows}
    assert came and all(sum(row["context"] in asked for row in rows) for asked in came)
    assert all(asked.count("<passage-") == 1 for asked in came)


def test_documents_that_are_not_there(here: Path) -> None:
    with pytest.raises(ValidationError, match="the method documents and its files go together"):
        recipe_of("http://127.0.0.1:1/v1", methods={"documents": 1})
    with pytest.raises(UserError, match="no file or folder nowhere"):
        generate.sources(recipe_of("http://127.0.0.1:1/v1", methods={"documents": 1}, documents={"files": ["nowhere"]}))


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("What does the passage say about leave?", True),
        ("According to the text, who pays for the lock?", True),
        ("Which two fees are mentioned above?", True),
        ("What is the main point of this document?", True),
        ("How do I print a document from my phone?", False),
        ("Which section of the ward is locked at night?", False),
        ("How is the text of a letter kept within the page?", False),
        ("What did the author of Hamlet do before 1590?", False),
    ],
)
def test_questions_that_need_their_passage(text: str, needs: bool) -> None:
    assert needs_passage(text) == needs


def test_rouge_l_is_stricter_than_jaccard(here: Path, teacher: tuple[str, list[str]]) -> None:
    asked = {"count": 20, "methods": {"self_instruct": 1}}
    loose, _ = make(teacher[0], here / "data/runs/one/x", **asked)
    strict, counts = make(teacher[0], here / "data/runs/one/y", **asked, self_instruct={"novelty": "rouge_l"})
    assert len(loose) > len(strict) > 0 and counts["reasons"]["near_duplicate"]
    texts = [row["messages"][0]["content"] for row in strict]
    assert all(rouge_l(a, b) < 0.7 for a, b in itertools.combinations(texts, 2))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["red", "green", "blue", "the", "sky", "is"]), min_size=1, max_size=9), max_size=12
    )
)
def test_novelty_by_rouge_l_is_what_comparing_all_pairs_finds(drawn: list[list[str]]) -> None:
    worded, kept = Worded([], {}), list[str]()
    for text in map(" ".join, drawn):
        new = all(rouge_l(text, other) < 0.7 for other in kept)
        assert rouge_new(worded, text, 0.7) == new
        if new:
            kept.append(text)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("请问法国的首都是哪座城市", "请问一下法国的首都是哪座城市"),  # Which city is the capital of France?
        ("เมืองหลวงของประเทศฝรั่งเศสคืออะไร", "เมืองหลวงของประเทศฝรั่งเศสคืออะไรคะ"),
    ],
)
def test_novelty_in_scripts_without_spaces(text: str, other: str) -> None:
    """A sentence was a single word, the same as another as a whole or not at all."""
    worded, seen = Worded([], {}), nothing_seen()
    assert rouge_new(worded, text, 0.7) and not rouge_new(worded, other, 0.7)
    assert rouge_new(worded, "水在多少度结冰", 0.7)  # At which temperature does water freeze?
    assert nearly_new(seen, grams_of(text)) and not nearly_new(seen, grams_of(f"{text}{other[-1]}"))
    asked = Question("q", "", "", ({"role": "user", "content": text},), (), None, "")
    guard = make_guard([asked])
    assert is_held_out(guard, grams_of(f"{other[:3]}, {text}")) and not is_held_out(guard, grams_of("水在多少度结冰"))


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


def test_the_second_domain_goes_through_every_method_to_the_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: tuple[str, list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = ["questions", "facets", "self_instruct", "evolve", "persona", "documents", "conversation"]
    recipe = Recipe.model_validate(
        {
            "domain": "help_desk",
            "generate": {
                "count": 42,
                "methods": dict.fromkeys(methods, 1),
                "documents": {"files": [handbook(tmp_path)]},
            },
            "collect": {
                "teachers": [{"provider": "openai", "model": "scripted", "base_url": teacher[0]}],
                "samples": 2,
                "system": "teacher_system.jinja",
            },
        }
    )
    run = tmp_path / "data/runs/desk"
    flow.run_stages(recipe, run, flow.STAGES[:5])
    prompts = pq.read_table(run / "generate/prompts.parquet").to_pylist()
    assert Counter(row["method"] for row in prompts) == dict.fromkeys(methods, 6)
    assert not re.search("star trek|enterprise|kirk", json.dumps(prompts), re.I)
    ends = flow.account(run)
    assert ends["asked"] == 84 and ends["kept"] > 0
    assert ends["asked"] == sum(n for end, n in ends.items() if end != "asked")
    about = {row["context"] for row in pq.read_table(run / "dedupe/kept.parquet").to_pylist()}
    assert about <= {row["context"] for row in prompts} and len(about) > 1
