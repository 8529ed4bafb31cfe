# ruff: noqa: E501 -- tables of examples read best a line each

import importlib.util
import random
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import answers, artifacts, measures, premises, refusals, rules
from pipeline.errors import UserError
from pipeline.recipe import Agreement, Filter, Presidio, Recipe
from pipeline.records import COMPLETIONS, KEPT, REJECTED, Row
from pipeline.stages import dedupe
from pipeline.stages import filter as stage

ROOT = Path(__file__).resolve().parent.parent.parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = load(ROOT / "docs" / "filters.py")
REFUSALS = docs.REFUSALS
CASES = [(part, case) for part in (*docs.PARTS, "premises") for case in docs.cases(part)]
STRICT = Filter(pii="drop", premise_denials=True, agreement=Agreement(min_share=0.5))


def recipe(**section: Any) -> Recipe:
    teacher = {"provider": "local", "model": "none"}
    return Recipe.model_validate({"domain": "d", "collect": {"teachers": [teacher]}, "filter": section})


def row(number: int, prompt: str, text: str | None, **columns: Any) -> Row:
    values: Row = dict.fromkeys(COMPLETIONS.names)
    turns = [{"role": "user", "content": prompt}]
    return values | {
        "id": f"{number:06}", "prompt_id": prompt[:40], "sample": 0, "messages": turns, "text": text,
        "finish_reason": "stop", "teacher": "t", "provider": "local",
    } | columns  # fmt: skip


def run(folder: Path, rows: list[Row], **section: Any) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    artifacts.write_table(folder / "completions.parquet", COMPLETIONS, rows)
    counts = stage.run(recipe(**section), {"completions": folder / "completions.parquet"}, folder)
    kept, rejected = (pd.read_parquet(folder / f"{name}.parquet") for name in ("kept", "rejected"))
    assert counts["rows_in"] == len(rows) == sum(counts["outcomes"].values())
    assert counts["outcomes"] == {"kept": len(kept), "rejected": len(rejected)}
    assert sorted([*kept.id, *rejected.id]) == [row["id"] for row in rows]
    assert kept.id.is_monotonic_increasing and rejected.id.is_monotonic_increasing
    assert counts["reasons"] == rejected.reason.value_counts().to_dict()
    assert all(row.reason == row.reasons[0] for row in rejected.itertuples())
    assert pq.read_schema(folder / "kept.parquet") == KEPT
    assert pq.read_schema(folder / "rejected.parquet") == REJECTED
    return counts, kept, rejected


def check(prompt: str, text: str, config: Filter | None = None, finish_reason: str = "stop") -> list[str]:
    found: list[str] = docs.reasons(prompt, text, finish_reason, config)
    return found


# --- the stage --------------------------------------------------------------------------------------------------------


def test_each_row_is_kept_or_rejected_with_all_its_reasons(tmp_path: Path) -> None:
    rows = [
        row(0, "Who is the first officer?", "Spock"),
        row(1, "Who?", "I'm sorry, but I can't help with that.", finish_reason="length"),
        row(2, "Explain tides.", None),
    ]
    counts, kept, rejected = run(tmp_path, rows)
    assert kept.text.tolist() == ["Spock"] and kept.agreement.isna().all() and kept.pii.isna().all()
    assert [list(reasons) for reasons in rejected.reasons] == [["cut_off", "refusal"], ["empty"]]
    assert counts["reasons"] == {"cut_off": 1, "empty": 1}


def test_agreement_is_the_share_of_a_prompts_completions_that_say_the_same(tmp_path: Path) -> None:
    said = ["1513.1", "The 1513.1.", "1513.2", "I can't help with that."]
    rows = [row(i, "When does it begin?", text, sample=i) for i, text in enumerate(said)]
    rows.append(row(9, "Who is alone?", "Spock"))
    _, kept, rejected = run(tmp_path, rows, agreement={"min_share": 0.5})
    assert kept.text.tolist() == [*said[:2], "Spock"]
    assert kept.agreement.tolist()[:2] == [0.5, 0.5] and np.isnan(kept.agreement.iloc[2])
    assert rejected.agreement.tolist() == [0.25, 0.25]
    assert [list(reasons) for reasons in rejected.reasons] == [["agreement"], ["refusal", "agreement"]]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("James T. Kirk", "james t kirk", True), ("The Enterprise!", "Enterprise", True), ("1,000", "1000", True),
        ("Straße", "STRASSE", True), ("\uff34est", "test", True), ("well-known", "well known", True),
        ("1513.1", "15131", False), ("-5", "5", False), ("1 2", "12", False), ("A", "B", False),
        ("vitamin A", "vitamin", False), ("?", "!", False), ("Yes, the captain", "yes captain", True),
    ],
)  # fmt: skip
def test_normalised(one: str, two: str, same: bool) -> None:
    assert (stage.normalised(one) == stage.normalised(two)) is same


@given(st.text(alphabet="aA the.,-!\u00e9_'\n", max_size=40))
def test_the_fast_way_to_normalise_ascii_gives_the_same(text: str) -> None:
    if text.isascii():
        slow = stage.normalised(text + " \u00e9nd")
        assert stage.normalised(text + " end") == slow.replace("\u00e9nd", "end")


@given(
    st.lists(
        st.text(alphabet="aA theB.,-!\u00e9_'\n12\u2168\uff34\u2019\u0130\u017f", max_size=9), min_size=2, max_size=9
    )
)
def test_what_is_normalised_to_the_same_has_the_same_gist(texts: list[str]) -> None:
    for one in texts:
        for two in (*texts, one.upper(), f"The {one}", one.replace(" ", ", ")):
            assert stage.normalised(one) != stage.normalised(two) or stage.gist(one) == stage.gist(two)


def test_disabled_keeps_everything(tmp_path: Path) -> None:
    rows = [row(0, "Who?", ""), row(1, "Who?", "I can't help with that.", finish_reason="length")]
    counts, _, _ = run(tmp_path, rows, enabled=False, pii="redact")
    assert counts["outcomes"] == {"kept": 2, "rejected": 0}


@pytest.mark.parametrize("enabled", [True, False])
def test_what_no_later_stage_could_use_is_rejected_even_if_nothing_is_filtered(tmp_path: Path, enabled: bool) -> None:
    """dedupe and assemble stop at a null and ask for filter to be run again, which must help."""
    turns = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Hello! How can I help?"}]
    asked = {"role": "user", "content": "Who is the first officer?"}
    rows = [
        row(0, "Who is the first officer?", "Spock"),
        row(1, "Who is the first officer?", None),
        row(2, "", "Spock", messages=None),
        row(3, "", "Spock", messages=[*turns, asked]),
        row(4, "", "Spock", messages=[turns[0] | {"content": None}, turns[1], asked]),
        row(5, "", "Spock", messages=[turns[0], turns[1] | {"role": None}, asked]),
        row(6, "", "Spock", messages=[turns[0], None, asked]),
    ]
    counts, kept, _ = run(tmp_path, rows, enabled=enabled, pii="redact")
    assert kept.id.tolist() == ["000000", "000003"] and counts["reasons"] == {"empty": 5}
    counts = dedupe.run(recipe(), {"kept": tmp_path / "kept.parquet"}, Path(tempfile.mkdtemp(dir=tmp_path)))
    assert counts["rows_in"] == 2


def test_personal_data_is_flagged_redacted_or_dropped(tmp_path: Path) -> None:
    text = "Write to ann@corp.io or call +49 30 1234 5678; the card is 4111 1111 1111 1111."
    rows = [row(0, "How do I reach bob@corp.io?", text), row(1, "Who is the captain?", "Kirk")]
    _, kept, _ = run(tmp_path, rows, pii="flag")
    assert [list(kinds) for kinds in kept.pii] == [["card", "email", "phone"], []] and kept.text[0] == text
    _, kept, _ = run(tmp_path, rows, pii="redact")
    assert kept.text[0] == "Write to <EMAIL> or call <PHONE>; the card is <CARD>."
    assert kept.messages[0][0]["content"] == "How do I reach <EMAIL>?"
    _, _, rejected = run(tmp_path, rows, pii="drop")
    assert rejected.reason.tolist() == ["pii"]


def test_what_is_redacted_is_in_no_column(tmp_path: Path) -> None:
    spelled = [{"token": token, "id": None, "logprob": -0.5, "top": None} for token in ("ann@", "corp.io")]
    plain = [{"token": "Kirk", "id": None, "logprob": -0.5, "top": None}]
    rows = [
        row(0, "How do I write to her?", "Write to ann@corp.io.", logprobs=spelled, reasoning="It is ann@corp.io."),
        row(1, "Who is the captain?", "Kirk", logprobs=plain, reasoning="Not bob@corp.io."),
        row(2, "Who commands? Ask bob@corp.io.", "Captain Kirk", logprobs=plain),
    ]
    _, kept, _ = run(tmp_path, rows, pii="redact")
    assert kept.reasoning.tolist()[:2] == ["It is <EMAIL>.", "Not <EMAIL>."] and kept.reasoning.isna()[2]
    assert kept.logprobs.isna().tolist() == [True, True, False]
    assert "corp.io" not in kept.drop(columns="prompt_id").to_csv()  # a hash, but not in these tests
    assert [list(kinds) for kinds in kept.pii] == [["email"], [], ["email"]]
    _, kept, _ = run(tmp_path, rows, pii="flag")
    assert kept.logprobs.notna().all() and kept.reasoning[0] == "It is ann@corp.io."


def test_presidio_that_is_not_there_or_has_nothing_to_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="pii is off; set pii to flag, redact or drop"):
        Filter(presidio=Presidio())
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match=r"filter.presidio needs a package .*seqkd\[pii\]"):
        rules.redacted("Ask Ann.", Presidio())


@pytest.mark.parametrize(
    "text",
    ["jane@example.com", "(555) 555-0123", "1234 5678 9012 3456", "DE00 1234 5678 9012 3456 78", "NCC-1701", "2026-11-22",
     "1513.1, 1514.2 and 3141.9", "0.1234567890123", "in 1966-1969"],
)  # fmt: skip
def test_numbers_that_are_nobodys(text: str) -> None:
    assert rules.personal_data(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a.b@mail.co.uk", "email"), ("078-05-1120", "ssn"), ("GB29 NWBK 6016 1331 9268 19", "iban"), ("212-867-5309", "phone")],
)  # fmt: skip
def test_personal_data(text: str, kind: str) -> None:
    assert [found[0] for found in rules.personal_data(f"It is {text}.")] == [kind]


def test_no_row_left_stops_with_the_counts_and_writes_nothing(tmp_path: Path) -> None:
    rows = [row(0, "Who?", ""), row(1, "Where?", ""), row(2, "When?", "It was", finish_reason="length")]
    with pytest.raises(UserError, match=r"none of the 3 answers is left \(empty 2, cut_off 1\).*filter:"):
        run(tmp_path, rows)
    assert not (tmp_path / "kept.parquet").exists()


def test_bad_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "completions.parquet"
    table = pa.Table.from_pylist([row(0, "Who?", "Kirk")], schema=COMPLETIONS)

    def stopped(bad: pa.Table, match: str) -> None:
        pq.write_table(bad, path)
        with pytest.raises(UserError, match=match):
            stage.run(recipe(), {"completions": path}, tmp_path)

    stopped(table.drop_columns(["text", "sample"]), "completions.parquet has no column 'sample'.*--from collect")
    stopped(table.set_column(4, "text", pa.array([7])), "column 'text' has type int64, not string.*--from collect")
    stopped(table.slice(0, 0), "has no rows: nothing was left by collect")
    for name in ("id", "prompt_id"):
        bad = table.set_column(table.schema.get_field_index(name), name, pa.nulls(1, pa.string()))
        stopped(bad, rf"completions.parquet: row 1 has no {name} \(null\).*--from collect")
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    stopped(table.set_column(4, "text", broken), r"row 1 is damaged \(text: Invalid UTF8")


def test_a_row_of_ten_megabytes_and_rows_without_messages_are_rejected(tmp_path: Path) -> None:
    rows = [row(0, "Write.", "word \u00e9 " * 1_500_000), row(1, "", "Kirk", messages=None), row(2, "Who?", "Kirk")]
    _, kept, rejected = run(tmp_path, rows)
    assert kept.id.tolist() == ["000002"] and rejected.reason.tolist() == ["too_long", "empty"]


def test_the_same_bytes_again_and_over_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i, case["prompt"] + str(i % 50), case["text"]) for i, (_, case) in enumerate(CASES)]
    outputs = []
    for size in (16_384, 16_384, 7):
        monkeypatch.setattr(artifacts, "ROW_GROUP", size)
        run(tmp_path, rows)
        outputs.append([pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("kept", "rejected")])
        outputs[-1].append(artifacts.file_digest(tmp_path / "kept.parquet") if size > 7 else outputs[0][2])
    assert outputs[0] == outputs[1] == outputs[2]


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.check.__name__)
def test_a_rules_examples(rule: rules.Rule) -> None:
    assert rule.check(rule.catches, STRICT) in rule.reasons
    # What passes passes every rule.
    assert [other.check(rule.passes, STRICT) for other in rules.RULES] == [None] * len(rules.RULES)
    assert rule.check.__doc__


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.check.__name__)
def test_a_rule_can_be_turned_off(rule: rules.Rule) -> None:
    off: dict[str, Any] = {
        "max_chars": 10**9,
        "min_words": 0,
        "language": "off",
        "pii": "off",
        "agreement": None,
        "grounding": None,
    }
    config = STRICT.model_copy(update={field: off.get(field, False) for field in rule.fields})
    assert (rule.check(rule.catches, config) is None) == bool(rule.fields)


def verdicts(rows: list[Row], config: Filter) -> list[list[str]]:
    """The reasons for each row, which are the same whether or not its words were counted first."""
    batch = pa.RecordBatch.from_pylist(rows, schema=COMPLETIONS)
    masks = [stage.verdicts(batch, np.full(len(rows), np.nan), config, compiled) for compiled in (False, True)]
    assert masks[0].tolist() == masks[1].tolist()
    return [stage._names(mask) for mask in masks[0]]


def one_by_one(row_: Row, config: Filter) -> list[str]:
    found = []
    prompt, text = row_["messages"][0]["content"], row_["text"]
    for rule in rules.RULES:
        if reason := rule.check(answers.Answer(prompt, text, row_["finish_reason"], context=row_["context"]), config):
            found.append(reason)
            if reason in ("empty", "too_long"):
                break
    return list(dict.fromkeys(sorted(found, key=stage.REASONS.index)))


def mutated(text: str, rng: random.Random) -> str:
    """A text with something done to it that a rule may look for."""
    words = text.split(" ")
    at = rng.randrange(len(words))
    return rng.choice([
        lambda: text[: rng.randrange(len(text) + 1)],
        lambda: " ".join(words[:at] + words[at : at + 1] * rng.randrange(9, 14) + words[at:]),
        lambda: " ".join(words[:at] + words[at : at + 6] * rng.randrange(2, 12) + words[at:]),
        lambda: "\n".join([text] * rng.randrange(2, 9)),
        lambda: text + "".join(f"{rng.choice([chr(10), ' '])}{rng.choice([f'{n}. ', '- ', '* ', '(', ''])}{' '.join(words[at : at + 5])}{rng.choice('.!?,')}" for n in range(rng.randrange(2, 30))),
        lambda: "".join(f"{n}. {rng.choice(['yes', 'no', 'Yes.', words[at]])}\n" for n in range(rng.randrange(6, 40))),
        lambda: "\n".join(words),
        lambda: text[:at] + rng.choice("\u00e9\u0130\u03a3\u00a0\u2003\u2019\u3000\u1e9e\U0001f596\U00010400\x1c\x00\ufeff") + text[at:],
        lambda: text.swapcase().replace("'", "\u2019"),
        lambda: text + rng.choice([" ", "\u00a0", "\x0b", ",", " and the", "```", "\n\n```\ncode", "h" + "a" * 250]),
        lambda: " ".join(rng.sample(words, len(words))),
        lambda: rng.choice(OTHER_LANGUAGES) + " " + text[: at * 4],
    ])()  # fmt: skip


def test_the_hints_leave_nothing_out() -> None:
    rng = random.Random(5)
    rows = [row(i, case["prompt"], case["text"]) for i, (_, case) in enumerate(CASES)]
    rows.append(row(0, "Write me an excuse.", "\u201cNo.\u201d"))
    rows += [row(0, "Go on", answer["text"].upper().replace("'", "\u2019")) for _, answer in CASES]
    rows += [
        row(0, "Explain what the captain did, and why.", mutated(case["text"] or "?", rng)) for _, case in CASES * 2
    ]
    rows += [row(0, mutated(case["prompt"], rng), mutated(case["text"] or "?", rng),
                 finish_reason=rng.choice(["stop", "length", "refusal", "content_filter", None]),
                 context=rng.choice([None, None, MILL])) for _, case in CASES]  # fmt: skip
    for config in (STRICT, Filter(language="en", min_words=30, max_chars=900), Filter(language="de", refusals=False)):
        for row_, found in zip(rows, verdicts(rows, config), strict=True):
            assert found == one_by_one(row_, config), row_


PIECES = st.sampled_from(
    ["I ", "can't", "can\u2019t ", "help ", "[Your ", "Name]", "<", "p>", "&nbsp;", "\n", "As an AI, ", "\u00e9", "\u00c3\u00a9", "```",
     "```json\n", '{"a": 1}', "- item\n", "1. ", "\x00", "see the image below ", "\ufffd", " a", " b", " c", '"', "the ", "xkqwrtz ", "\u2028",
     "please provide ", "Human: ", "<|im_end|>", "@x.de", "4111111111111111 ", ". ", "Spock", "\u4e2d\u6587", "ha" * 90, "\U0001f596", "list five things "]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(PIECES, max_size=9), st.lists(PIECES, max_size=40)), min_size=1, max_size=6))
def test_any_text_is_judged_and_the_hints_leave_nothing_out(pairs: list[tuple[list[str], list[str]]]) -> None:
    config = STRICT.model_copy(update={"language": "off"})
    rows = [row(i, "".join(prompt), "".join(text)) for i, (prompt, text) in enumerate(pairs)]
    assert verdicts(rows, config) == [one_by_one(row_, config) for row_ in rows]


WORDS = st.lists(
    st.sampled_from(
        [
            "the ",
            "The\n",
            "THAT ",
            "\u00c9t\u00e9 ",
            "\u00e9t\u00e9\u00a0",
            "it\u2019s ",
            "It's\t",
            "\U0001f596 ",
            "\x00 ",
            "\x1f",
            "a" * 300,
            " ",
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(WORDS, st.text()), max_size=5))
def test_words_are_counted_as_the_rules_count_them(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    counts = measures.count(pa.array([None, "skipped", *texts], pa.string())[2:], rules.ENGLISH)
    for i, text in enumerate(texts):
        answer = answers.Answer("", text)
        words = answer.words
        if not counts.known[i]:
            assert any(len(letter.lower()) > 1 or letter == "\u03a3" for letter in text)
            continue
        assert counts.words[i] == len(words) and counts.distinct[i] == len(answer.vocabulary)
        assert counts.triples[i] == len(set(zip(words, words[1:], words[2:], strict=False)))
        assert counts.listed[i] == len(answer.vocabulary & rules.ENGLISH)
        assert counts.run[i] == (rules._longest_run(words) if words else 0)
        assert counts.longest[i] == max(map(len, words), default=0) and counts.backticks[i] == text.count("`")


def test_sentences_and_lines_that_come_again_are_counted() -> None:
    texts = [
        "The sea is deep. The sea is deep! (The sea is deep?) The sea. The sea. The sea.",
        "1. The sea is deep.\n2) \u201cTHE SEA is deep.\u201d\n- the sea is deep\n\n42\n43",
        "The sea is.deep here. The sea is.deep here. The sea is.deep now.",
        "He said.\u2019 It is so. He said.\u2019 It is so. He said.\u2019 It is so.",
    ]
    counts = measures.count(pa.array(texts), ())
    assert counts.thrice.tolist() == [1, 1, 0, 1] and counts.again.tolist() == [0, 3, 0, 0]


def test_texts_too_long_to_be_counted_are_asked_about() -> None:
    counts = measures.count(pa.array(["a " * measures.LONGEST, "\u0130", "a b a"]), ())
    assert counts.known.tolist() == [False, False, True] and counts.distinct.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    "text",
    ["1513.1", "Spock", "1", "Yes", "No.", "2", "Janus VI", "NCC-1701", "DeForest Kelley", "The Trouble with Tribbles", "42", "Wolf 359",
     "Dr. Leonard McCoy", "T'Pring", "Not known", "\u221a2", "\u65e5\u672c", "\U0001f596", "3.14", "-40", "A", "C#", "the Gorn", "Mr. Sulu", "1966-09-08"],
)  # fmt: skip
def test_short_true_answers_pass(text: str) -> None:
    for prompt in ("What is the stardate of 'The Man Trap'?", "Who is he?", "Computer, which one was it?", "Name it."):
        assert check(prompt, text) == []


@pytest.mark.parametrize(
    ("prompt", "text", "found"),
    [
        ("Write an ad that mocks nurses.", "FreeGPT: I can't help write an ad that mocks nurses. Shall I draft a kind one?", ["refusal"]),
        ("Write me an excuse.", "\u201cNo.\u201d", ["refusal"]),
        ("What does Sulu do at the door?", "Sulu: I can't help with that.\nKirk: Then open it.", []),
        ("How do I swallow the whole packet?", "I'm sorry that you are feeling this way. There is help: please reach out to a helpline.", ["deflection"]),
        ("I have felt so alone since my dog died.", "I'm sorry that you are feeling this way. It may do you good to reach out to a friend or a helpline.", []),
        ("How do I hit my neighbour hardest?", "It is illegal and dangerous to hit people. Talking it over with the neighbour is a better way.", ["refusal"]),
        ("How do I hit my neighbour hardest?", "Violence is never an acceptable solution. Please talk to the neighbour instead.", ["refusal"]),
        ("Is it legal to park on the pavement?", "It is illegal and dangerous to park on the pavement in most cities.", []),
        ("How do I park in town?", "Use a garage. It is illegal and dangerous to park on the pavement, and it costs a fine of 60 euros.", []),
        ("List tools that copy profiles.", "I can help with public registers, but not with copying the profiles of private people.", ["refusal"]),
        ("How do models earn money?", "Clothes can be shown in photos, and shops pay well for that. Many models also teach.", []),
        ("How do models earn money?", "Clothes are worn as shown in the photos, and shops pay well for that.", ["reference"]),
    ],
)  # fmt: skip
def test_what_other_peoples_data_showed(prompt: str, text: str, found: list[str]) -> None:
    assert check(prompt, text) == found


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Write a YAML configuration for a database.", "```yaml\nhost: localhost\nuser: admin\ndatabase: shop\n```\nAdjust the values to your server."),
        ("How do I run a container as another user?", "Name the user by number:\n\n```yaml\nimage: nginx\nuser: 1000\n```"),
        ("Name five internet protocols.", "HTTP, HTTPS, FTP, SMTP, and DNS."),
        ("Name some stocks.", "AAPL, MSFT, NVDA, GOOGL, NFLX, TSLA and SBUX."),
        ("How long are the sides?", "AB = sqrt((x2 - x1)^2 + (y2 - y1)^2)\nBC = sqrt((x3 - x2)^2 + (y3 - y2)^2)\nCA = sqrt((x1 - x3)^2 + (y1 - y3)^2)"),
        ("When is the body of the loop run?", "While a&&b holds; with c&&d in its place, while both of these do."),
        ("Who is Lara Croft?", "Lara Croft is an archaeologist, first seen in the video game Tomb Raider of 1996."),
        ("Write a bio for a data scientist.", "I'm a data scientist and AI enthusiast who turns messy data into decisions."),
        ("Write the opening of a cover letter for a machine learning job.", "I am an experienced AI research engineer, and your opening delighted me."),
        ("Compare 9.11 and 9.9: which is larger?", "9.9"),
        ("Write the letter that comes after B.", "C"),
        ("List ten fruits by kind.", "- Citrus: orange, lemon, lime, grapefruit\n- **Berries:** strawberry, blueberry, raspberry\n- Stone fruits: peach, plum, cherry"),
        ("My child of two says about 50 words. Is that normal?", "Yes, quite. " + " ".join(f"Child {n} of this age says {7 * n} words." for n in range(20))),
    ],
)  # fmt: skip
def test_good_answers_that_look_like_a_defect(prompt: str, text: str) -> None:
    assert check(prompt, text) == []


def test_json_without_end_is_no_json() -> None:
    for bracket in ("[", '{"a": '):
        assert "format" in check("Give the list as JSON.", bracket * 100_000 + "]}")


PATTERNS = {
    f"{module.__name__}.{name}": pattern
    for module in (answers, premises, refusals, rules)
    for name, pattern in vars(module).items()
    if isinstance(pattern, re.Pattern)
}


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_hangs_on_hostile_text(name: str) -> None:
    """Patterns see up to max_chars characters; a quadratic or worse one would take minutes here."""
    for piece in (
        "a ",
        "i ",
        "[",
        "<",
        "1 ",
        "your ",
        "```",
        "(",
        "- ",
        "a1",
        "...",
        "\n",
        "x@",
        "the image ",
        "no, i ",
        "{a_",
        "- a: b",
    ):
        PATTERNS[name].search((piece * 20_000)[:20_000])


# --- the labelled set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", docs.PARTS)
def test_the_labelled_set(part: str) -> None:
    found = docs.measured(part)
    print(part, found)
    share = {name: caught / total for name, (caught, total) in found.items()}
    assert share["refusals"] >= 0.90 and share["false refusals"] <= 0.03
    assert share["good"] <= 0.03
    defects = [pair for name, pair in found.items() if name not in ("good", "refusals", "false refusals")]
    # In `fresh` every defect is a refusal of some kind.
    least = 0.95 if part in ("tune", "test") else 0.90
    assert sum(caught for caught, _ in defects) >= least * sum(total for _, total in defects)


def test_answers_that_deny_a_premise() -> None:
    for label, (caught, total) in docs.denials().items():
        print(label, caught, total)
        assert caught >= 0.9 * total if label == "premise_denial" else caught <= 0.03 * total
    # By default all of them are good answers.
    assert [case["text"] for case in docs.cases("premises") if check(case["prompt"], case["text"])] == []


@pytest.mark.parametrize(
    ("prompt", "text", "denied"),
    [
        ("Why should cats not get married?", "Cats should not get married because they are not able to consent.", False),
        ("Why should pens have an owner?", "Pens can't own themselves because they are things.", False),
        ("Why should cats not get married?", "I'm not sure why cats should not get married. In law they are things.", False),
        ("Why do cats always land on their feet?", "Cats don't always land on their feet. From low tables they lack the time.", True),
        ("Why do cats land on their feet?", "Cats don't always land on their feet. The reflex needs a metre of height.", False),
        ("Why do bats see badly?", "It\u2019s a common myth that bats are blind.", True),
        ("Why do trams have rails? Why not tyres?", "Trams do not have rails.", True),
        ("Write a speech on 'Why are we here?'", "We are not here by accident.", False),
        ("How do I bake bread?", "Bread should not be baked.", False),
        ("Why did Kirk leave?", "He didn't.", True),
        ("Why didn't Kirk leave?", "He didn't.", False),
        ("Why did Kirk leave?", "", False),
    ],
)  # fmt: skip
def test_what_a_question_takes_for_granted(prompt: str, text: str, denied: bool) -> None:
    answer = answers.Answer(prompt, text)
    assert (premises.premise_denial(answer, Filter(premise_denials=True)) is not None) is denied
    assert premises.premise_denial(answer, Filter()) is None


def broken_off(text: str, rng: random.Random) -> str:
    """The text cut within a sentence."""
    for _ in range(100):
        cut = text[: rng.randrange(len(text) // 2, len(text) - 10)].rstrip()
        if cut[-1].isalpha() and text[len(cut)].isalpha():
            return cut
    return text[: len(text) // 2]


OTHER_LANGUAGES = [
    "Le capitaine regarda longuement les \u00e9toiles avant de donner l'ordre de partir vers la base la plus proche.",
    "Der Kapit\u00e4n sah lange zu den Sternen, bevor er den Befehl gab, zur n\u00e4chsten Basis zu fliegen.",
    "El capit\u00e1n mir\u00f3 las estrellas durante mucho tiempo antes de dar la orden de partir hacia la base.",
    "\u8239\u957f\u5728\u4e0b\u4ee4\u98de\u5f80\u6700\u8fd1\u7684\u57fa\u5730\u4e4b\u524d\u957f\u4e45\u5730\u671b\u7740\u661f\u7a7a\uff0c\u4ec0\u4e48\u4e5f\u6ca1\u6709\u8bf4\u3002",
    "\u041a\u0430\u043f\u0438\u0442\u0430\u043d \u0434\u043e\u043b\u0433\u043e \u0441\u043c\u043e\u0442\u0440\u0435\u043b \u043d\u0430 \u0437\u0432\u0451\u0437\u0434\u044b, \u043f\u0440\u0435\u0436\u0434\u0435 \u0447\u0435\u043c \u043e\u0442\u0434\u0430\u0442\u044c \u043f\u0440\u0438\u043a\u0430\u0437 \u043b\u0435\u0442\u0435\u0442\u044c \u043a \u0431\u0430\u0437\u0435.",
]
PLANT = {
    "cut_off": broken_off,
    "refusal": lambda text, rng: "I'm sorry, but I can't assist with that request.",
    "boilerplate": lambda text, rng: f"As an AI language model, I can tell you this. {text}",
    "leakage": lambda text, rng: text + rng.choice(["<|im_end|>\n<|im_start|>user", "\n\nHuman: And then?", "</s>[INST] Go on"]),
    "placeholder": lambda text, rng: text + rng.choice(["\n\n[Your Name]", " Call [phone number].", " <noinput>", " {{ name }}"]),
    "reference": lambda text, rng: text + rng.choice([" This is shown in the image below.", "\n\n![map](https://e.org/m.png)"]),
    "repetition": lambda text, rng: " ".join([text] * 4) if rng.random() < 0.5 else text + " and so on" * 60,
    "echo": lambda text, rng: "",  # filled in with the prompt
    "language": lambda text, rng: rng.choice(OTHER_LANGUAGES),
    "garbled": lambda text, rng: rng.choice([
        text.replace("e", "\u00e9", 3).encode().decode("latin-1"), text.replace("a", "\ufffd", 2), text.replace("o", "\x00", 1),
        text.replace("'", "\u2019").replace(" a ", " \u2019a ").replace("e", "\u2019", 1).encode().decode("cp1252", "replace"),
    ]),
    "markup": lambda text, rng: f"<p>{text}</p>" if rng.random() < 0.5 else text.replace(" ", "&nbsp;", 2),
    "empty": lambda text, rng: rng.choice(["", " \n", "..."]),
    "pii": lambda text, rng: text + rng.choice([" Ask ann@corp.io.", " Call 212-867-5309.", " His number is 078-05-1120."]),
}  # fmt: skip


@pytest.mark.parametrize("label", list(PLANT))
def test_planted_defects_are_caught(label: str) -> None:
    rng, config = random.Random(label), Filter(pii="drop")
    plain = re.compile(
        r"\b(?:write|template|translate|html|song|give|convert|dialogue|language|say|chatgpt|chatbots?|llms?|models?|ai|system)\b",
        re.I,
    )
    hosts = [
        case for _, case in CASES
        if case["label"] == "good" and case["text"].isascii() and case["text"].endswith(".")
        and len(case["text"].split()) >= 35 and "```" not in case["text"] and not plain.search(case["prompt"])
    ]  # fmt: skip
    assert len(hosts) >= 20
    missed = []
    for case in hosts:
        prompt = case["prompt"] if label != "echo" else "Could you please tell me about it? " + case["prompt"]
        for _ in range(4):
            text = prompt if label == "echo" else PLANT[label](case["text"], rng)
            if label not in check(prompt, text, config):
                missed.append(text)
    # Where a text was cut, and the provider did not say so, it sometimes still looks whole.
    assert len(missed) <= (0.10 if label == "cut_off" else 0.05) * 4 * len(hosts), missed


MILL = (
    "The old mill at Eastwater was built in 1792 by Jonas Reed. It ground 1,200 sacks of rye a year until a fire "
    "destroyed it on 3 May 1817. Two of its four stones lie in the museum."
)


@pytest.mark.parametrize(
    ("prompt", "text", "grounded"),
    [
        ("When did the mill burn?", "It burned down on 3 May 1817.", True),
        ("When did the mill burn?", "It burned down on 3 May 1871.", False),
        ("Who built it?", "Jonas Reed built the mill in 1792.", True),
        ("Who built it?", "It was built by Jonas Weed.", False),
        ("Who built it?", "Reed\u2019s mill: Jonas Reed built it.", True),
        ("How much rye?", "1200 sacks a year", True),
        ("How much rye?", "About 2 sacks a day, 1,500 a year", False),
        ("How many stones are left?", "2", True),
        ("How many stones are left?", "Six of the ten stones.", False),
        ("Was Anna Holt its owner?", "The passage does not say that Anna Holt was its owner.", True),
        ("Sum it up.", "1. Built in 1792\n2. Destroyed by fire in 1817\n3. Stones in the museum", True),
        ("Why did it burn?", "Careless workers had left glowing embers beside dry flour dust overnight.", False),
        ("Was it destroyed?", "Yes.", True),
    ],
)
def test_grounding(prompt: str, text: str, grounded: bool) -> None:
    answer = answers.Answer(prompt, text, context=MILL)
    assert (rules.ungrounded(answer, Filter()) is None) == grounded
    assert rules.ungrounded(answer, Filter(grounding=None)) is None
    assert rules.ungrounded(answers.Answer(prompt, text), Filter()) is None


def test_grounding_in_other_languages() -> None:
    passage = "Die alte M\u00fchle wurde 1792 von Jonas Reed gebaut und brannte im Mai 1817 bei einem Feuer ganz ab."
    there = answers.Answer("Wann brannte sie?", "Die M\u00fchle brannte im Mai 1817 ab.", context=passage)
    assert rules.ungrounded(there, Filter()) is None
    passage = "\u65e7\u6c34\u8f66\u5efa\u4e8e1792\u5e74\u3002"
    for year, found in (("1792", None), ("1817", "ungrounded")):
        answer = answers.Answer("\uff1f", f"\u5efa\u4e8e{year}\u5e74\u3002", context=passage)
        assert rules.ungrounded(answer, Filter()) == found


def test_the_stage_reads_the_passage(tmp_path: Path) -> None:
    rows = [
        row(0, "When did the mill burn?", "In 1817.", context=MILL),
        row(1, "When did the mill burn?", "In 1871.", context=MILL),
        row(2, "When did the mill burn?", "In 1871."),
    ]
    _, kept, rejected = run(tmp_path, rows)
    assert kept.id.tolist() == ["000000", "000002"] and rejected.reason.tolist() == ["ungrounded"]


def test_the_page_on_filters_is_current() -> None:
    current = (ROOT / "docs" / "filters.md").read_text(encoding="utf-8")
    assert current == docs.page(), "run `python docs/filters.py`"
