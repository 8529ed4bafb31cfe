import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import artifacts, near
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Recipe
from pipeline.records import DUPLICATES, KEPT, Row
from pipeline.stages import dedupe

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def recipe(**section: Any) -> Recipe:
    teacher = {"provider": "local", "model": "none"}
    return Recipe.model_validate({"domain": "d", "collect": {"teachers": [teacher]}, "dedupe": section})


def row(number: int, prompt: str, text: str | None, agreement: float | None = 1.0) -> Row:
    values: Row = dict.fromkeys(KEPT.names)
    turns = [{"role": "user", "content": prompt}]
    return values | {
        "id": f"{number:06}", "prompt_id": prompt[:20], "sample": 0, "messages": turns, "text": text,
        "finish_reason": "stop", "teacher": "t", "provider": "local", "agreement": agreement,
    }  # fmt: skip


def run(folder: Path, rows: list[Row], **section: Any) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    artifacts.write_table(folder / "input.parquet", KEPT, rows)
    counts = dedupe.run(recipe(**section), {"kept": folder / "input.parquet"}, folder)
    kept, dropped = (pd.read_parquet(folder / f"{name}.parquet") for name in ("kept", "duplicates"))
    assert counts["rows_in"] == len(rows) == len(kept) + len(dropped)
    assert sorted([*kept.id, *dropped.id]) == [r["id"] for r in rows]
    assert set(dropped.duplicate_of) <= set(kept.id) or "against" in section
    return counts, kept, dropped


def test_exact_copies_keep_the_most_agreed_on_then_the_first(tmp_path: Path) -> None:
    rows = [row(0, "Who?", "Spock", 0.5), row(1, "who?", " spock ", 0.75), row(2, "Who?", "Spock", 0.75)]
    counts, kept, dropped = run(tmp_path, [*rows, row(3, "Who?", "Kirk", None)])
    assert kept.id.tolist() == ["000001", "000003"]
    assert dropped.duplicate_of.tolist() == ["000001"] * 2
    assert dropped.reason.tolist() == ["exact"] * 2 and dropped.similarity.tolist() == [1.0] * 2
    assert counts == {"rows_in": 4, "outcomes": {"kept": 2, "duplicate": 2}, "reasons": {"exact": 2, "near": 0}}
    assert pq.read_schema(tmp_path / "duplicates.parquet") == DUPLICATES
    assert pq.read_schema(tmp_path / "kept.parquet") == KEPT


def test_near_copies_name_the_row_they_repeat_and_how_similar_it_is(tmp_path: Path) -> None:
    words = LONG.split()
    rows = [row(0, "Count", LONG), row(1, "Count", " ".join([*words, "eighteen"])), row(2, "Count", "a b c d e f g")]
    _, kept, dropped = run(tmp_path, rows, on="completion")
    assert kept.id.tolist() == ["000000", "000002"]
    assert dropped.reason.tolist() == ["near"]
    assert dropped.similarity.tolist() == [13 / 14]


def test_short_answers_compare_exactly(tmp_path: Path) -> None:
    question = f"{LONG}: which comes last?"
    rows = [row(0, question, "Spock"), row(1, question, "Kirk"), row(2, f"{LONG}: which comes first?", "Kirk")]
    assert (
        len(run(tmp_path, rows, near={"threshold": 0.5})[1]) == 2
    )  # 1 and 2: the questions nearly agree, so do the answers
    rows = [row(0, "Who is captain?", "Kirk"), row(1, "Who is in command?", "Kirk")]
    assert len(run(tmp_path, rows)[1]) == 2
    assert len(run(tmp_path, rows, on="completion")[1]) == 1
    rows = [row(0, "Who is captain?", "Kirk"), row(1, "Who is captain?", "James Kirk")]
    assert len(run(tmp_path, rows)[1]) == 2
    assert len(run(tmp_path, rows, on="prompt")[1]) == 1


def test_answers_of_one_letter_are_not_the_same(tmp_path: Path) -> None:
    rows = [row(n, f"Question {n}", answer) for n, answer in enumerate(["A", "B", "7", "\u00e9", "", "a"])]
    _, kept, dropped = run(tmp_path, rows, on="completion")
    assert kept.text.tolist() == ["A", "B", "7", "\u00e9", ""] and dropped.reason.tolist() == ["exact"]
    # Multiple choice about one long passage.
    rows = [row(n, f"{LONG} {LONG.upper()} Is it {n}?", answer) for n, answer in enumerate("ABAB")]
    assert run(tmp_path, rows, near={"threshold": 0.5})[1].text.tolist() == ["A", "B"]


def test_two_questions_about_one_long_passage_are_not_the_same(tmp_path: Path) -> None:
    passage = " ".join(f"w{n}" for n in range(300))
    rows = [
        row(0, f"{passage} What is first?", "It is the word that everything in the passage begins with."),
        row(1, f"{passage} What is last?", "One has to read to the very end before finding this one out."),
    ]
    assert len(run(tmp_path, rows)[1]) == 2


def test_parts_do_not_run_into_each_other(tmp_path: Path) -> None:
    assert len(run(tmp_path, [row(0, "a b", "c"), row(1, "a", "b c")])[1]) == 2


def test_an_exact_copy_of_a_row_that_is_dropped_names_the_row_that_is_kept(tmp_path: Path) -> None:
    changed = LONG.replace("seventeen", "17")
    rows = [row(0, "Count", LONG, 1.0), row(1, "Count", changed, 0.9), row(2, "Count", changed, 0.8)]
    counts, kept, dropped = run(tmp_path, rows, on="completion")
    assert kept.id.tolist() == ["000000"]
    assert dropped.duplicate_of.tolist() == ["000000"] * 2
    assert dropped.similarity.tolist() == [12 / 14] * 2
    assert counts["reasons"] == {"exact": 0, "near": 2}


def test_what_is_switched_off_is_not_looked_for(tmp_path: Path) -> None:
    rows = [row(0, "Count", LONG), row(1, "Count", LONG), row(2, "Count", f"{LONG} 18")]
    assert len(run(tmp_path, rows, on="completion", near=None)[1]) == 2
    assert len(run(tmp_path, rows, on="completion", exact=False)[1]) == 1
    assert len(run(tmp_path, rows, on="completion", exact=False, near=None)[1]) == 3


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


@st.composite
def families(draw: st.DrawFn) -> list[tuple[str, float]]:
    """Texts and what they were made from, changed a little, in any order of agreement."""
    word = st.sampled_from([f"w{n}" for n in range(12)])
    found: list[list[str]] = []
    for _ in range(draw(st.integers(1, 12))):
        if found and draw(st.booleans()):
            words = list(draw(st.sampled_from(found)))
            for _ in range(draw(st.integers(0, 2))):
                if words:
                    words[draw(st.integers(0, len(words) - 1))] = draw(word)
        else:
            words = draw(st.lists(word, max_size=40))
        found.append(words)
    return [(" ".join(words), draw(st.sampled_from([0.5, 1.0]))) for words in found]


# Not at random: the chance that two texts exactly at the threshold meet in no bucket is 0.2 %, by design.
@settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(families())
def test_against_brute_force(tmp_path: Path, texts: list[tuple[str, float]]) -> None:
    rows = [row(n, "p", text, agreement) for n, (text, agreement) in enumerate(texts)]
    _, kept, dropped = run(tmp_path, rows, on="completion")
    sets = {r["id"]: shingles(r["text"]) for r in rows}
    best = {r["id"]: (-r["agreement"], r["id"]) for r in rows}

    def similarity(a: str, b: str) -> float:
        return len(sets[a] & sets[b]) / len(sets[a] | sets[b])

    for name, of, said in zip(dropped.id, dropped.duplicate_of, dropped.similarity, strict=True):
        assert said == pytest.approx(similarity(name, of)) and said >= 0.8
        assert best[of] < best[name]
    for a in kept.id:
        assert all(similarity(a, b) < 0.8 for b in kept.id if b != a)


def crowd(seed: int) -> list[Row]:
    """Up to 40 rows, so much alike that many repeat several others, by prompt, answer or both: a few texts of 0 to 30
    words, with up to three words changed, left out or added."""
    random = Random(seed)
    bases = [[random.choice("abcdefghijklmnop") for _ in range(random.randint(0, 30))] for _ in range(3)]

    def text() -> str:
        words = list(random.choice(bases))
        for _ in range(random.randint(0, 3)):
            place = random.randint(0, len(words))
            words[place : place + random.randint(0, 1)] = random.choice([["x"], ["Y"], []])
        return " ".join(words)

    return [row(n, text(), text(), random.choice([0.5, 1.0])) for n in range(random.randint(1, 40))]


tables = st.integers(0, 1 << 32).map(crowd)


def verdicts(folder: Path, rows: list[Row], **section: Any) -> dict[str, tuple[str, float, str]]:
    """Each dropped row's (duplicate_of, similarity, reason); every row is in one of the two tables, in its place and as
    it was."""
    artifacts.write_table(folder / "input.parquet", KEPT, rows)
    dedupe.run(recipe(**section), {"kept": folder / "input.parquet"}, folder)
    kept, dropped = (artifacts.read_table(folder / f"{name}.parquet").to_pylist() for name in ("kept", "duplicates"))
    found = {r["id"]: (r.pop("duplicate_of"), r.pop("similarity"), r.pop("reason")) for r in dropped}
    whole = artifacts.read_table(folder / "input.parquet").to_pylist()
    assert kept == [r for r in whole if r["id"] not in found]
    assert dropped == [r for r in whole if r["id"] in found]
    return found


def brute_force(old: list[Row], rows: list[Row], on: str, threshold: float) -> dict[str, tuple[str, float, str]]:
    """What `verdicts` should find, from comparing all pairs. `old`: the data set that exists already."""
    order = [*old, *sorted(rows, key=lambda r: (-r["agreement"], r["id"]))]
    parts = {r["id"]: [*(turn["content"] for turn in r["messages"]), r["text"]] for r in order}
    parts = {name: {"prompt": said[:-1], "completion": said[-1:], "pair": said}[on] for name, said in parts.items()}
    texts = {name: " | ".join(said) for name, said in parts.items()}  # what parts them is a word of its own
    words = {name: tuple(text.lower().split()) for name, text in texts.items()}
    sets = {name: shingles(text) for name, text in texts.items()}
    answers = {r["id"]: shingles(r["text"]) for r in order}
    fixed, kept, found = {r["id"] for r in old}, [], {}
    firsts: dict[tuple[str, ...], str] = {}

    def jaccard(a: set[Any], b: set[Any]) -> float:
        return len(a & b) / len(a | b)

    for name in words:
        first = firsts.setdefault(words[name], name)
        if first != name:
            found[name] = found.get(first, (first, 1.0, "exact"))
            continue
        scored = [
            (jaccard(sets[name], sets[other]), -place, other)
            for place, other in enumerate(kept)
            if on != "pair" or jaccard(answers[name], answers[other]) >= threshold / 2
        ]
        best = max(scored, default=(0.0, 0, ""))
        if best[0] >= threshold and name not in fixed:
            found[name] = (best[2], best[0], "near")
        else:
            kept.append(name)
    return {name: verdict for name, verdict in found.items() if name not in fixed}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.sampled_from(sorted(dedupe.COMPARED)), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.data())
def test_the_verdicts_are_those_of_brute_force(
    tmp_path: Path, rows: list[Row], on: str, threshold: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(rows) - 1), label="rows that exist already")
    old, own = [r | {"id": f"old{r['id']}"} for r in rows[:count]], rows[count:]
    expected = brute_force(old, own, on, threshold)
    artifacts.write_table(tmp_path / "old.parquet", KEPT, old)
    section = {"on": on, "near": {"threshold": threshold}} | ({"against": tmp_path / "old.parquet"} if old else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "scheme", lambda _: near.Scheme(near.PERMUTATIONS, 1))  # all that share much meet
        patch.setattr(near, "LARGE", data.draw(st.sampled_from([1, 5, 500]), label="rows of a large bucket"))
        if len(expected) == len(own):
            with pytest.raises(UserError, match="all repeat rows of"):
                verdicts(tmp_path, own, **section)
        else:
            assert verdicts(tmp_path, own, **section) == expected


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.sampled_from(sorted(dedupe.COMPARED)), st.data())
def test_neither_shares_nor_batches_nor_the_order_of_rows_matter(
    tmp_path: Path, rows: list[Row], on: str, data: st.DataObject
) -> None:
    section = {"on": on, "near": {"threshold": data.draw(st.sampled_from([0.3, 0.5, 0.8]))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "LARGE", data.draw(st.sampled_from([2, 500]), label="rows of a large bucket"))
        expected = verdicts(tmp_path, rows, **section)
        patch.setattr(dedupe, "SHINGLES_AT_ONCE", data.draw(st.sampled_from([1, 20, 100]), label="shingles at once"))
        patch.setattr(artifacts, "ROW_GROUP", data.draw(st.integers(1, 5), label="rows a batch"))
        patch.setattr(near, "COMPILE_BYTES", data.draw(st.sampled_from([0, 1 << 30]), label="compiled from"))
        assert verdicts(tmp_path, data.draw(st.permutations(rows)), **section) == expected


@pytest.fixture
def family(tmp_path: Path) -> list[Row]:
    """A few thousand rows with copies, edited copies and short texts."""
    rows = []
    for n in range(3000):
        words = [f"v{(n * 7919 + at * 104729) % 4001}" for at in range(n % 50)]
        rows.append(row(2 * n, f"Question {n % 40}?", " ".join(words), n % 3 / 2))
        words[n % 7 : n % 7 + 1] = ["changed"] if n % 2 else words[n % 7 : n % 7 + 1]
        rows.append(row(2 * n + 1, f"Question {n % 40}?", " ".join(words), n % 2 / 2))
    return rows


@pytest.mark.parametrize("on", ["pair", "completion"])
def test_compiled_code_and_small_shares_give_the_same_bytes(
    tmp_path: Path, family: list[Row], on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, family, on=on)
    first = [(tmp_path / name).read_bytes() for name in ("kept.parquet", "duplicates.parquet")]
    monkeypatch.setattr(near, "COMPILE_BYTES", 0)
    monkeypatch.setattr(dedupe, "SHINGLES_AT_ONCE", 1000)
    run(tmp_path, family, on=on)
    assert first == [(tmp_path / name).read_bytes() for name in ("kept.parquet", "duplicates.parquet")]


def test_against_a_data_set_that_exists_already(tmp_path: Path) -> None:
    old = [
        {"prompt": "Count", "completion": LONG, "id": "old"},
        {"prompt": "Count", "completion": f"{LONG} eighteen"},  # repeats the first, and is there nevertheless
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Kirk"}]},
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Uhura"}]},
    ]
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(map(json.dumps, old)))
    rows = [
        row(0, "Count", LONG), row(1, "Who?", "kirk"), row(2, "Who?", "Spock"), row(3, "Who?", "Uhura"),
        row(4, "Count", f"{LONG} eighteen nineteen twenty 21 22"),
    ]  # fmt: skip
    _, kept, dropped = run(tmp_path, rows, against=path)
    assert kept.id.tolist() == ["000002"]
    assert dropped.duplicate_of.tolist() == ["old", "old.jsonl:3", "old.jsonl:4", "old.jsonl:2"]
    assert dropped.reason.tolist() == ["exact", "exact", "exact", "near"]
    # A table of another run, and a trainer's Parquet.
    artifacts.write_table(tmp_path / "run.parquet", KEPT, rows)
    with pytest.raises(UserError, match=r"none of the 5 rows is left \(exact 5\): all repeat rows of .*run.parquet"):
        run(tmp_path, rows, against=tmp_path / "run.parquet")
    pa_rows = [{"prompt": "Who?", "completion": "Spock"}]
    pq.write_table(pa.Table.from_pylist(pa_rows), tmp_path / "plain.parquet")
    assert run(tmp_path, rows, against=tmp_path / "plain.parquet")[2].id.tolist().count("000002") == 1
    assert dedupe.sources(recipe(against=path)) == {"against": path}

    path.write_text('{"prompt": "Who?"}\n')
    with pytest.raises(RecipeError, match=r"old.jsonl:1: completion: expected an answer: a text"):
        run(tmp_path, rows, against=path)


def test_against_a_data_set_without_rows_or_with_turns_that_are_not_read(tmp_path: Path) -> None:
    rows = [row(0, "Who?", "Spock")]
    artifacts.write_table(tmp_path / "ours.parquet", KEPT, [])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "plain.parquet")
    for name, text in {"empty.jsonl": "", "blank.jsonl": "\n\n", "head.csv": "prompt,completion\n"}.items():
        (tmp_path / name).write_text(text)
    for name in ("ours.parquet", "plain.parquet", "empty.jsonl", "blank.jsonl", "head.csv"):
        with pytest.raises(
            UserError, match=rf"dedupe.against: .*{name} has no rows. Remove it from the recipe, or name"
        ):
            run(tmp_path, rows, against=tmp_path / name)
    asked, called = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": None}
    told = {"role": "tool", "content": "Spock"}
    for turns, said in (
        (
            [asked, called],
            "old.jsonl:2: messages.1: expected .* leave it out: calls of tools and pictures are not read",
        ),
        ([asked, told], r"old.jsonl:2: messages.1.role: 'tool' is not one of .* leave the turn out: what tools say"),
        ([asked], "old.jsonl:2: messages: expected an answer: .*Give the row one, or leave it out"),
    ):
        good = {"prompt": "When?", "completion": "Never"}
        (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, [good, {"messages": turns}])))
        with pytest.raises(RecipeError, match=said):
            run(tmp_path, rows, against=tmp_path / "old.jsonl")


@pytest.mark.parametrize("on", ["pair", "prompt", "completion"])
def test_against_chat_data_with_columns_of_our_names(tmp_path: Path, on: str) -> None:
    """Elsewhere `messages` has the answer too, and `text` may be the whole conversation, or messages a text."""
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Spock"}]
    tables: list[Row] = [
        {"id": "a", "messages": turns},
        {"id": "a", "messages": turns, "text": "<s>Who? Spock</s>"},
        {"id": 7, "messages": "Who?", "text": "Spock"},
    ]
    for number, there in enumerate(tables):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist([there]), path)
        _, kept, dropped = run(tmp_path, [row(1, "Who?", "Spock"), row(2, "When?", "Never")], on=on, against=path)
        assert kept.id.tolist() == ["000002"] and dropped.duplicate_of.tolist() == [str(there["id"])]


def test_one_huge_row_is_a_row_like_others(tmp_path: Path) -> None:
    rows = [row(0, "p", "x" * 10_000_000), row(1, "p", "x" * 10_000_000), row(2, "p", "text")]
    assert len(run(tmp_path, rows)[1]) == 2


def raw(values: list[bytes]) -> pa.Array:
    """A string array of any bytes, as a careless writer may have made it."""
    offsets = np.append(0, np.cumsum([len(value) for value in values])).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(n, "p", f"text {n}") for n in range(3)], schema=KEPT)
    broken = raw([b"a", b"\xff\xfe b", b"c"])
    roles, contents = pa.array(["user"] * 3), raw([b"a", b"b", b"\xed\xa0\x80"])
    turns = pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    path = tmp_path / "broken.parquet"
    for name, column, said in (
        ("text", broken, r"row 2 is damaged \(text: Invalid UTF8"),
        ("messages", pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), turns), r"row 3 .*\(messages: Inv"),
        ("teacher", broken, r"row 2 is damaged \(teacher: Invalid UTF8"),  # not compared, but written again
        ("id", broken, r"row 2 is damaged \(id: Invalid UTF8"),
    ):
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)
        with pytest.raises(UserError, match=f"broken.parquet: {said}.*--from filter"):
            dedupe.run(recipe(), {"kept": path}, tmp_path)
    # A data set to compare with, as a table of ours and as a trainer's; and half a surrogate pair in JSONL.
    rows = [row(0, "p", "other")]
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", broken), path)
    with pytest.raises(UserError, match=r"row 2 is damaged .* Name another file in dedupe.against"):
        run(tmp_path, rows, against=path)
    pq.write_table(pa.table({"prompt": ["p"] * 3, "completion": broken}), path)
    with pytest.raises(RecipeError, match=r"broken.parquet.*cannot be read as a data set"):
        run(tmp_path, rows, against=path)
    (tmp_path / "old.jsonl").write_text('{"id": "\\udc80", "prompt": "p", "completion": "half \\ud800"}\n')
    _, _, dropped = run(tmp_path, [*rows, row(1, "p", "half ?")], against=tmp_path / "old.jsonl")
    assert dropped.duplicate_of.tolist() == ["?"]


def test_bad_tables_get_a_clear_message(tmp_path: Path) -> None:
    good, without = row(0, "p", "a"), {"role": "user", "content": None}
    for bad, name in (
        ({"text": None}, "text"),
        ({"messages": None}, "messages"),
        ({"messages": [good["messages"][0], without]}, "messages"),
        ({"id": None}, "id"),
    ):
        with pytest.raises(UserError, match=rf"input.parquet: row 2 has no {name} \(null\). Make .* --from filter"):
            run(tmp_path, [good, row(1, "p", "a") | bad])
    artifacts.write_table(tmp_path / "old.parquet", KEPT, [good, good, good | {"text": None}])
    with pytest.raises(
        UserError, match=r"old.parquet: row 3 has no text \(null\). Name another file in dedupe.against"
    ):
        run(tmp_path, [good], against=tmp_path / "old.parquet")
    # Cut off in the middle, and overwritten there.
    whole = (tmp_path / "old.parquet").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:300] + bytes(len(whole) // 3) + whole[300 + len(whole) // 3 :]):
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"dedupe.against: .*damaged.parquet cannot be read as Parquet \("):
            run(tmp_path, [good], against=tmp_path / "damaged.parquet")
    with pytest.raises(UserError, match="has no rows"):
        run(tmp_path, [])
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "thin.parquet")
    with pytest.raises(UserError, match="has no column 'prompt_id'"):
        dedupe.run(recipe(), {"kept": tmp_path / "thin.parquet"}, tmp_path)


def test_the_best_is_by_score_then_reward_then_agreement_as_far_as_they_are_known(tmp_path: Path) -> None:
    known = [(None, 9.0, 1.0), (3.0, None, 1.0), (3.0, 1.0, 0.2), (3.0, 1.0, 0.5), (2.0, 9.0, 1.0)]
    rows = [
        row(n, "Who?", "Spock", agreement) | {"score": score, "reward": reward}
        for n, (score, reward, agreement) in enumerate(known)
    ]
    assert run(tmp_path, rows)[1].id.tolist() == ["000003"]
    assert run(tmp_path, rows[:3])[1].id.tolist() == ["000002"]
    ids = pa.chunked_array([["b", "a", "c"]])
    assert dedupe.best_first(ids).tolist() == [1, 0, 2]
    assert dedupe.best_first(ids, np.array([1.0, -np.inf, 1.0])).tolist() == [0, 2, 1]


@pytest.mark.parametrize("cores", [{0}, {0, 1}, {0, 1, 2, 3, 4}])
def test_the_number_of_cores_does_not_matter(tmp_path: Path, cores: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(n, "Count", f"{LONG} {n % 70} {'and more ' * (n % 9)}") for n in range(300)]
    monkeypatch.setattr(near, "COMPILE_BYTES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
    run(tmp_path, rows, on="completion")
    found = [artifacts.file_digest(tmp_path / f"{name}.parquet") for name in ("kept", "duplicates")]
    monkeypatch.undo()
    run(tmp_path, rows, on="completion")
    assert found == [artifacts.file_digest(tmp_path / f"{name}.parquet") for name in ("kept", "duplicates")]


@pytest.fixture(scope="module")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model2vec model in which some words mean the same."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, pre_tokenizers

    meanings = {"big": 0, "large": 0, "ship": 1, "vessel": 1, "small": 2, "the": 3, "fast": 4}
    vocabulary = {"[UNK]": 0} | {word: n + 1 for n, word in enumerate(meanings)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.zeros((len(vocabulary), 6), np.float32)
    vectors[0, 5] = 1
    for word, direction in meanings.items():
        vectors[vocabulary[word], direction] = 1
    folder = tmp_path_factory.mktemp("static")
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return folder


def test_rows_that_say_the_same_in_other_words(tmp_path: Path, static_model: Path) -> None:
    answers = [("the big ship", 0.5), ("the large vessel", 1.0), ("the small ship", 1.0), ("the Large vessel", 0.4),
               ("the large vessel", 0.7), ("fast", 1.0)]  # fmt: skip
    rows = [row(n, f"Question {n}", text, agreement) for n, (text, agreement) in enumerate(answers)]
    section = {"on": "completion", "semantic": {"model": str(static_model)}}
    counts, kept, dropped = run(tmp_path, rows, **section)
    assert kept.id.tolist() == ["000001", "000002", "000005"]
    assert dropped.id.tolist() == ["000000", "000003", "000004"]
    assert dropped.reason.tolist() == ["semantic", "exact", "exact"]
    assert dropped.duplicate_of.tolist() == ["000001"] * 3
    assert dropped.similarity.tolist() == [1.0] * 3
    assert counts["reasons"] == {"exact": 2, "near": 0, "semantic": 1}
    # The exact copy of a row that repeats a third one repeats that one too.
    rows[0] = row(0, "Question 0", "the big ship", 0.9)
    twin = row(6, "Question 6", "the BIG ship", 0.1)
    dropped = run(tmp_path, [*rows, twin], **section)[2].set_index("id")
    assert tuple(dropped.loc["000006", ["reason", "duplicate_of"]]) == ("semantic", "000001")
    # Texts of which the model knows no word are like nothing; a lower threshold.
    section["semantic"] = section["semantic"] | {"on": "prompt"}
    assert run(tmp_path, rows, **section)[0]["reasons"]["semantic"] == 0
    section["semantic"] = {"model": str(static_model), "threshold": 0.6}
    assert run(tmp_path, rows, **section)[1].id.tolist() == ["000001", "000005"]
    against = tmp_path / "old.jsonl"
    against.write_text(json.dumps({"id": "old", "prompt": "x", "completion": "the vessel large"}))
    dropped = run(tmp_path, rows, against=against, **section)[2]
    assert dropped[dropped.id == "000001"].duplicate_of.tolist() == ["old"]
    assert dedupe.sources(recipe(**section)) == {"semantic": static_model}


def test_a_near_copy_of_a_row_that_is_dropped_for_its_meaning_is_compared_itself(
    tmp_path: Path, static_model: Path
) -> None:
    first = "the big ship " + "zz " * 30  # of the zz the model knows nothing
    copy, other = f"{first} the big", f"{first} fast fast fast fast fast fast fast"
    rows = [row(0, "?", f"vessel large the {'zz ' * 30}", 1.0)]
    rows += [row(n + 1, "?", text, 0.9 - n / 10) for n, text in enumerate([first, copy, other, f"{other} fast"])]
    section: dict[str, Any] = {"on": "completion", "near": {"threshold": 0.2}}
    assert run(tmp_path, rows, **section)[1].id.tolist() == ["000000", "000001"]
    _, kept, dropped = run(tmp_path, rows, semantic={"model": str(static_model)}, **section)
    # 1 says what 0 says; of its near copies 2 does so too, 3 does not and is kept, and 4 repeats 3.
    assert kept.id.tolist() == ["000000", "000003"]
    assert dropped.duplicate_of.tolist() == ["000000", "000000", "000003"]
    assert dropped.reason.tolist() == ["semantic"] * 3
    assert dropped.similarity.tolist() == [1.0, 0.96225, 0.99957]  # each its own


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_semantic_choice_is_the_greedy_choice_whatever_the_block(data: st.DataObject) -> None:
    from pipeline import semantic

    count, fixed = data.draw(st.integers(1, 24)), data.draw(st.integers(0, 3))
    directions = data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=count, max_size=count))
    vectors = np.array(directions, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    kept: list[int] = []
    expected = []
    for n in range(count):
        scored = [(round(float(vectors[n] @ vectors[other]), 4), -other) for other in kept]
        best, place = max(scored, default=(-1.0, 0))
        if n >= fixed and best >= 0.7:
            expected.append((-place, pytest.approx(best, abs=2e-4)))
        else:
            kept.append(n)
            expected.append((-1, 1.0))
    block = semantic.BLOCK
    try:
        semantic.BLOCK = data.draw(st.sampled_from([1, 3, 1024]))
        leader, cosine = semantic.choose(vectors, fixed, 0.7)
    finally:
        semantic.BLOCK = block
    assert list(zip(leader.tolist(), cosine.tolist(), strict=True)) == expected


def test_a_model_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    rows = [row(0, "p", "a"), row(1, "p", "b")]
    with pytest.raises(UserError, match=r"dedupe.semantic.model: nobody/nothing cannot be opened"):
        run(tmp_path, rows, semantic={"model": "nobody/nothing"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty cannot be opened"):
        run(tmp_path, rows, semantic={"model": str(tmp_path / "empty")})
    (tmp_path / "empty/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"pip install sentence-transformers|cannot be opened"):
        run(tmp_path, rows, semantic={"model": str(tmp_path / "empty")})
    (tmp_path / "empty/config.json").write_text('{"model_type": "model2vec"}')
    with pytest.raises(UserError, match=r"empty cannot be opened"):
        run(tmp_path, rows, semantic={"model": str(tmp_path / "empty")})


def test_similar_rows_follow_chains_and_equal_texts(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(60)]
    chain = [" ".join(words[at : at + 30]) for at in range(0, 9, 3)]  # neighbours share 23 of 29 shingles
    texts = [*chain, "other", chain[1].upper(), "Other", "third"]
    path = tmp_path / "kept.parquet"
    artifacts.write_table(path, KEPT, [row(number, text, "x") for number, text in enumerate(texts)])

    def groups(*rows: int) -> list[int]:
        return dedupe.similar_rows(path, ("messages",), np.array(rows), 0.7, tmp_path).tolist()

    assert groups(*range(7)) == [0, 0, 0, 3, 0, 3, 6]
    assert groups(5, 2, 0, 4, 3)[:4] == [5, 0, 0, 0] and groups(5, 3)[0] == groups(5, 3)[1]
    assert groups(2, 0) == [2, 0]  # without the one between them
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.parquet"]
