"""Reading data/DOMAIN/facts/*.yaml."""

from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UserError
from pipeline.facts import Fact, fact_id, questions, read_facts

GOOD = """\
- relation: stardate
  topic: episodes
  ask: ["On what stardate does {{ subject }} begin?", "When is {{ subject }}?"]
  held_out: ["What is the stardate of {{ subject }}?"]
  facts:
    The Man Trap: 1513.1
    "Yes: no": [on, "off"]
- relation: rank
  topic: people
  ask:
    - What rank has {{ subject }}?
  held_out:
    - Which rank is {{ subject }}'s?
  facts: {Spock: commander}
"""


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_reads_every_scalar_as_text(tmp_path: Path) -> None:
    facts = read_facts(write(tmp_path, GOOD))
    assert [(fact.subject, fact.answers) for fact in facts] == [
        ("The Man Trap", ("1513.1",)),
        ("Yes: no", ("on", "off")),
        ("Spock", ("commander",)),
    ]
    assert facts[0] == Fact(
        fact_id("stardate", "The Man Trap"),
        "stardate",
        "episodes",
        "The Man Trap",
        ("1513.1",),
        ("On what stardate does {{ subject }} begin?", "When is {{ subject }}?"),
        ("What is the stardate of {{ subject }}?",),
    )
    assert len(facts[0].id) == 20 and len({fact.id for fact in facts}) == 3


def test_questions_put_the_subject_in_as_it_is(tmp_path: Path) -> None:
    text = GOOD.replace("The Man Trap", '"{{ 7 * 7 }} {% x %}"')
    pairs = list(questions(read_facts(write(tmp_path, text)), "ask"))
    assert pairs[0][1] == "On what stardate does {{ 7 * 7 }} {% x %} begin?"
    assert len(pairs) == 5
    assert [text for _, text in questions(read_facts(tmp_path), "held_out")][-1] == "Which rank is Spock's?"


def test_only_the_named_relations(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert {fact.relation for fact in read_facts(tmp_path, ["rank"])} == {"rank"}
    with pytest.raises(RecipeError, match="no relation 'ranks'.*Did you mean 'rank'"):
        read_facts(tmp_path, ["ranks"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  topic: episodes\n", "", r"a\.yaml:1: topic: missing"),
        ("  topic: episodes", "  topik: episodes", r"a\.yaml:2: topik: unknown key\. Did you mean 'topic'"),
        ("When is {{ subject }}?", "When is it?", r"a\.yaml:3: ask: 'When is it\?' must contain \{\{ subject \}\}"),
        ("When is {{ subject }}?", "When is {{subject}}?", r"must contain \{\{ subject \}\} once, spelled exactly so"),
        ("When is {{ subject }}?", "{{ subject }} {{ subject }}", "once"),
        ("When is {{ subject }}?", "When is {{ subject }} {% raw %}", "no other template syntax"),
        ("What is the stardate of {{ subject }}?", "When is {{ subject }}?", r"a\.yaml:4: held_out: .* among `ask`"),
        ("1513.1", '""', r"a\.yaml:6: facts\.The Man Trap: empty"),
        ("1513.1", "", r"facts\.The Man Trap: empty"),
        ("1513.1", "[]", r"facts\.The Man Trap: the list is empty"),
        ("1513.1", "{a: b}", r"facts\.The Man Trap: expected a text, found a mapping"),
        ("[on, off]", "[on, on]", "listed twice"),
        (
            '"Yes: no": [on, "off"]',
            "The Man Trap: x",
            r"a\.yaml:7: facts\.The Man Trap: duplicate key, already on line 6",
        ),
        ("relation: rank", "relation: stardate", r"a\.yaml:8: relation: 'stardate' is defined already at .*a\.yaml:1"),
        ("1513.1", "&x 1513.1", r"a\.yaml:6: anchors and aliases"),
        ("{Spock: commander}", "{}", r"a\.yaml:14: facts: empty"),
        ("{Spock: commander}", "{Spock: [commander}", r"a\.yaml:\d+: malformed YAML"),
        ("The Man Trap", "The\x07Man Trap", r"a\.yaml:\d+: malformed YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace('[on, "off"]', "[on, off]") if old == "[on, off]" else GOOD
    assert old in text
    with pytest.raises(RecipeError, match=message) as caught:
        read_facts(write(tmp_path, text.replace(old, new, 1)))
    assert isinstance(caught.value, UserError) and str(tmp_path / "a.yaml") in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "relation: x", "--- a\n--- b\n"])
def test_a_file_that_is_no_list_of_relations(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"a\.yaml:\d+: "):
        read_facts(write(tmp_path, text))


def test_a_folder_without_facts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no \*\.yaml file"):
        read_facts(tmp_path)
    with pytest.raises(RecipeError, match=r"no \*\.yaml file"):
        read_facts(tmp_path / "nowhere")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"- relation: \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_facts(tmp_path)


def test_the_shipped_facts_are_sound() -> None:
    facts = read_facts(Path(__file__).parent.parent / "data" / "star_trek" / "facts")
    assert len(facts) >= 1500
    assert all(len(fact.ask) >= 8 and len(fact.held_out) == 3 for fact in facts)
    assert len({fact.id for fact in facts}) == len(facts)
