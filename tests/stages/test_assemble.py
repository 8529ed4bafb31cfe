import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import artifacts, rowfile
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, KEPT, TRAIN, WITHHELD, Row, make_id
from pipeline.stages import assemble

HELD_OUT = "In the story of the talking hat, which officer drops the lamp into the river before noon?"


def row(prompt: str, text: str | None, sample: int = 0, agreement: float | None = 1.0, finish: str = "stop") -> Row:
    values: Row = dict.fromkeys(KEPT.names)
    return values | {
        "id": make_id(prompt, sample), "prompt_id": make_id(prompt), "sample": sample, "text": text,
        "messages": [{"role": "user", "content": prompt}], "finish_reason": finish, "teacher": "t", "provider": "local",
        "agreement": agreement,
    }  # fmt: skip


WORDS = [a + b for a in "bdfgklmnprst" for b in ("ara", "eli", "iko", "oru", "uma")]


def ordinary(count: int, samples: int = 1) -> list[Row]:
    """Rows on prompts that are not like each other."""
    prompts = [
        " ".join(WORDS[(n * 7 + at * (n % 11 + 1)) % len(WORDS)] for at in range(9)) + f" {n}?" for n in range(count)
    ]
    return [row(prompt, f"Answer {n}", sample) for n, prompt in enumerate(prompts) for sample in range(samples)]


class Case:
    """A folder with tables and held-out questions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions = folder / "held_out.jsonl"
        self.questions.write_text(json.dumps({"prompt": HELD_OUT, "id": "q1"}) + "\n")
        self.more: dict[str, Any] = {}  # further sections of the recipe

    def recipe(self, seed: int = 0, baselines: bool = False, limit: int | None = None, **section: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "domain": "none",
                "seed": seed,
                "collect": {"teachers": [{"provider": "local", "model": "none"}]},
                "assemble": section,
                "train": {"baselines": ["random_subset"] if baselines else []},
                "evaluate": {"questions": str(self.questions), "limit": limit},
            }
            | self.more
        )

    def run(self, kept: list[Row], completions: list[Row] | None = None, **options: Any) -> dict[str, Any]:
        for name, schema, rows in (("kept", KEPT, kept), ("completions", COMPLETIONS, completions or kept)):
            table = sorted(({k: r[k] for k in schema.names} for r in rows), key=lambda r: r["id"])
            artifacts.write_table(self.folder / f"{name}.parquet", schema, table)
        inputs = {name: self.folder / f"{name}.parquet" for name in ("kept", "completions")}
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        counts = assemble.run(self.recipe(**options), inputs, out)
        assert counts["rows_in"] == len(kept) == sum(counts["outcomes"].values())
        assert sum(counts["reasons"].values()) == counts["outcomes"]["withheld"]
        ids = [name for table in ("train", "validation", "withheld") for name in self.table(table).id]
        assert sorted(ids) == sorted(r["id"] for r in kept)
        return counts

    def table(self, name: str) -> pd.DataFrame:
        table = pd.read_parquet(self.folder / "out" / f"{name}.parquet")
        assert table.id.is_monotonic_increasing
        return table

    def prompts(self, name: str) -> set[str]:
        return {metadata["prompt_id"] for metadata in self.table(name).metadata}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_rows_in_the_conversational_form(case: Case) -> None:
    case.run(ordinary(3), validation_fraction=0.0)
    table = pq.read_table(case.folder / "out/train.parquet")
    assert table.schema == TRAIN
    found = {r["id"]: r for r in table.to_pylist()}
    for r in ordinary(3):
        assert found[r["id"]] == {
            "id": r["id"],
            "prompt": r["messages"],
            "completion": [{"role": "assistant", "content": r["text"]}],
            "metadata": {"prompt_id": r["prompt_id"], "teacher": "t", "agreement": 1.0},
        }
    assert pq.read_schema(case.folder / "out/withheld.parquet") == WITHHELD
    assert not (case.folder / "out/random_subset.parquet").exists()


def test_held_out_questions_are_withheld_with_the_question_they_repeat(case: Case) -> None:
    exact, embedded = row(HELD_OUT.upper(), "Sulu"), row(f"Listen: {HELD_OUT} Be brief.", "Sulu")
    in_answer = row("Ask me a question", f"Here is one: {HELD_OUT}")
    edited = row(HELD_OUT.replace("officer", "person"), "Sulu")
    counts = case.run([*ordinary(5), exact, embedded, in_answer, edited], validation_fraction=0.0)
    assert counts["reasons"] == {"held_out_exact": 1, "held_out_overlap": 3}
    withheld = case.table("withheld").set_index("id")
    assert withheld.loc[exact["id"], "reason"] == "held_out_exact"
    for other in (embedded, in_answer, edited):
        assert withheld.loc[other["id"], "reason"] == "held_out_overlap"
    assert set(withheld.overlaps) == {"q1"}
    assert case.run([*ordinary(5), edited], overlap=1.0)["reasons"] == {}


def test_further_evaluation_sets(case: Case) -> None:
    sets = [case.folder / "a.jsonl", case.folder / "b.parquet"]
    rows = ordinary(8)
    prompts = [r["messages"][0]["content"] for r in rows]
    sets[0].write_text(
        "\n".join(
            json.dumps(r) for r in [{"question": prompts[0]}, {"text": prompts[1], "id": "n"}, {"prompt": prompts[2]}]
        )
    )
    pq.write_table(pa.table({"question": [prompts[3]], "answer": ["x"]}), sets[1])
    case.run(rows, evaluations=[str(path) for path in sets], validation_fraction=0.0)
    assert sorted(case.table("withheld").overlaps) == ["a.jsonl:1", "a.jsonl:3", "b.parquet:1", "n"]
    assert case.recipe(evaluations=[str(path) for path in sets]).assemble.evaluations == sets
    assert set(assemble.sources(case.recipe(evaluations=["x"]))) == {"questions", "evaluations.0"}
    sets[0].write_text('{"query": "?"}')
    with pytest.raises(RecipeError, match=r"a.jsonl:1: expected `question`"):
        case.run(rows, evaluations=[str(sets[0])])
    sets[0].write_text("")
    with pytest.raises(UserError, match=r"a.jsonl: has no rows"):
        case.run(rows, evaluations=[str(sets[0])])


def test_best_of_keeps_the_most_agreed_on(case: Case) -> None:
    rows = [row("One?", "a", 0, 0.5), row("One?", "b", 1, 1.0), row("One?", "c", 2, None), row("Two?", "d")]
    case.run([*ordinary(4), *rows], best_of=1, validation_fraction=0.0)
    withheld = case.table("withheld")
    assert set(withheld.text) == {"a", "c"} and set(withheld.reason) == {"not_best"}
    assert set(withheld.overlaps) == {rows[1]["id"]}
    case.run([*ordinary(4), *rows], best_of=2, validation_fraction=0.0)
    assert set(case.table("withheld").text) == {"c"}


@pytest.mark.parametrize("by", ["judge", "reward", "logprob"])
def test_best_by(case: Case, by: str) -> None:
    def token(logprob: float) -> Row:
        return {"token": "x", "id": 1, "logprob": logprob, "top": None}

    values: dict[str, list[Any]] = {
        "judge": [3.0, 9.0, None],
        "reward": [-2.0, -0.5, None],
        "logprob": [[token(-1.0), token(-1.0)], [token(-0.5)] * 3, None],  # means: -1, -0.5, none
    }
    column = assemble.QUALITY[by]
    rows = [
        row("Who?", text, n) | {column: value} for n, (text, value) in enumerate(zip("abc", values[by], strict=True))
    ]
    needs: dict[str, Any] = {"collect": {"teachers": [{"provider": "local", "model": "none"}]}}
    needs["collect"] |= {"sampling": {"logprobs": True}} if by == "logprob" else {}
    needs["filter"] = {by: {"teacher": "none"} if by == "judge" else {"model": "m"}} if by != "logprob" else {}
    case.more = needs
    case.run([*ordinary(4), *rows], best_of=1, best_by=by, validation_fraction=0.0)
    assert set(case.table("withheld").text) == {"a", "c"}
    case.run([*ordinary(4), *rows], best_of=2, best_by=by, validation_fraction=0.0)
    assert set(case.table("withheld").text) == {"c"}


def test_best_by_needs_the_scores_that_it_goes_by() -> None:
    given: dict[str, Any] = {"domain": "d", "collect": {"teachers": [{"provider": "local", "model": "none"}]}}
    for by, wanted in (("judge", "filter.judge"), ("reward", "filter.reward"), ("logprob", "sampling.logprobs")):
        with pytest.raises(ValueError, match=f"best_by is {by}, but .*{wanted}"):
            Recipe.model_validate(given | {"assemble": {"best_by": by}})


def test_the_split_is_by_prompt_and_by_similar_prompts(case: Case) -> None:
    rows = ordinary(100, samples=2)
    twins = [row(f"Computer, {r['messages'][0]['content'].upper()}", "x") for r in rows[::2]]
    case.run([*rows, *twins], best_of=2, validation_fraction=0.2)
    validation = case.prompts("validation")
    assert not case.prompts("train") & validation
    assert 10 <= len(validation) <= 80
    for r, twin in zip(rows[::2], twins, strict=True):
        assert (r["prompt_id"] in validation) == (twin["prompt_id"] in validation)


def test_the_split_changes_with_the_seed_and_not_with_other_prompts(case: Case) -> None:
    rows = ordinary(100)
    case.run(rows, validation_fraction=0.2)
    first = case.prompts("validation")
    case.run(rows[:60], validation_fraction=0.2)
    assert case.prompts("validation") == first & {r["prompt_id"] for r in rows[:60]}
    case.run(rows, validation_fraction=0.2, seed=1)
    assert case.prompts("validation") != first


@pytest.mark.parametrize("count, fraction, expected", [(2, 0.01, 1), (30, 0.001, 1), (1, 0.5, 0), (10, 0.0, 0)])
def test_one_validation_prompt_at_least(case: Case, count: int, fraction: float, expected: int) -> None:
    assert case.run(ordinary(count), validation_fraction=fraction)["outcomes"]["validation"] == expected


def test_prompts_that_are_all_alike_are_trained_on(case: Case) -> None:
    rows = [row(f"{HELD_OUT[:40]} one two three four five six seven eight nine {n}", "x") for n in range(20)]
    assert case.run(rows, validation_fraction=0.1)["outcomes"] == {"train": 20, "validation": 0, "withheld": 0}


def test_the_random_subset(case: Case) -> None:
    everything = ordinary(200, samples=2)
    kept = everything[:150]
    bad = [row(HELD_OUT, "Sulu"), row("Cut?", "x", finish="error"), row("Null?", None, finish="stop")]
    twins = [row(f"Computer, {r['messages'][0]['content']}", "x") for r in kept[::2]]
    counts = case.run(kept, [*everything, *twins, *bad], baselines=True, best_of=2, validation_fraction=0.1)
    subset = case.table("random_subset")
    assert len(subset) == counts["outcomes"]["train"]
    assert pq.read_schema(case.folder / "out/random_subset.parquet") == TRAIN
    drawn, validation = case.prompts("random_subset"), case.prompts("validation")
    assert not drawn & {r["prompt_id"] for r in bad}
    assert drawn - {r["prompt_id"] for r in kept}  # of all completions, not of the kept ones
    assert not drawn & validation
    for r, twin in zip(kept[::2], twins, strict=True):
        assert r["prompt_id"] not in validation or twin["prompt_id"] not in drawn
    first = subset.id.tolist()
    case.run(kept, [*everything, *twins, *bad], baselines=True, best_of=2, validation_fraction=0.1, seed=7)
    assert case.table("random_subset").id.tolist() != first


def test_too_few_completions_for_the_random_subset_are_noted(case: Case) -> None:
    counts = case.run(ordinary(10), ordinary(4), baselines=True, validation_fraction=0.0)
    assert len(case.table("random_subset")) == 4
    assert counts["note"] == "only 4 completions for the random subset of 10"


def test_nothing_left_says_why_and_what_to_change(case: Case) -> None:
    with pytest.raises(UserError, match=r"of 1 rows held_out_exact 1, validation 0. The prompts repeat the held-out"):
        case.run([row(HELD_OUT, "Sulu")])


def test_without_held_out_questions_it_says_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.folder)
    recipe = case.recipe()
    bare = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"questions": None})})
    monkeypatch.setattr(case, "recipe", lambda **_: bare)
    assert "no held-out questions" in case.run(ordinary(3))["note"]


def test_the_same_bytes_again(case: Case) -> None:
    case.run(ordinary(50, 3), baselines=True, best_of=2, validation_fraction=0.1)
    first = {path.name: path.read_bytes() for path in (case.folder / "out").iterdir()}
    case.run(list(reversed(ordinary(50, 3))), baselines=True, best_of=2, validation_fraction=0.1)
    assert first == {path.name: path.read_bytes() for path in (case.folder / "out").iterdir()}
    assert len(first) == 5


def test_bad_tables_get_a_clear_message(case: Case) -> None:
    with pytest.raises(UserError, match=r"kept.parquet has no rows: nothing was left by dedupe"):
        case.run([])
    nobody = row("One?", "a") | {"messages": None}
    with pytest.raises(
        UserError, match=r"kept.parquet: row \d has no messages \(null\). Make it again with --from dedupe"
    ):
        case.run([*ordinary(3), nobody])
    inputs = {name: case.folder / f"{name}.parquet" for name in ("kept", "completions")}
    table = pq.read_table(inputs["kept"])
    pq.write_table(table.drop_columns(["agreement"]), inputs["kept"])
    with pytest.raises(UserError, match=r"kept.parquet has no column 'agreement'. Make it again with --from dedupe"):
        assemble.run(case.recipe(), inputs, case.folder)
    column = table.schema.get_field_index("sample")
    pq.write_table(table.set_column(column, "sample", table["sample"].cast("string")), inputs["kept"])
    with pytest.raises(UserError, match=r"the column 'sample' has type string, not int32"):
        assemble.run(case.recipe(), inputs, case.folder)


def test_one_huge_row_is_a_row_like_others(case: Case) -> None:
    counts = case.run([*ordinary(3), row("Huge?", "word " * 2_000_000)], validation_fraction=0.0)
    assert counts["outcomes"]["train"] == 4


def test_bytes_that_are_no_text_are_named(case: Case) -> None:
    case.run(ordinary(3), validation_fraction=0.0)
    broken = pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 1, 3, 4], np.int32)), pa.py_buffer(b"a\xff\xfeb"))
    roles = pa.array(["user"] * 3)
    turns = pa.ListArray.from_arrays([0, 1, 2, 3], pa.StructArray.from_arrays([roles, broken], ["role", "content"]))
    inputs = {name: case.folder / f"{name}.parquet" for name in ("kept", "completions")}
    for name, writer in (("kept", "dedupe"), ("completions", "collect")):
        table = pq.read_table(inputs[name])
        for column in ("id", "prompt_id", "messages", "text", "teacher"):
            place = table.schema.get_field_index(column)
            pq.write_table(table.set_column(place, column, turns if column == "messages" else broken), inputs[name])
            said = rf"{name}.parquet: row 2 is damaged \({column}: Invalid UTF8.*--from {writer}\."
            with pytest.raises(UserError, match=said):
                assemble.run(case.recipe(baselines=True), inputs, case.folder / "out")
        pq.write_table(table, inputs[name])


@pytest.mark.parametrize("column", ["id", "prompt_id", "messages", "text"])
def test_a_null_is_named_with_its_row(case: Case, column: str) -> None:
    rows = sorted(ordinary(3), key=lambda r: r["id"])
    case.run(rows)
    rows[1][column] = None
    artifacts.write_table(case.folder / "kept.parquet", KEPT, rows)
    inputs = {name: case.folder / f"{name}.parquet" for name in ("kept", "completions")}
    with pytest.raises(UserError, match=rf"kept.parquet: row 2 has no {column} \(null\)"):
        assemble.run(case.recipe(), inputs, case.folder / "out")


def test_items_without_words_are_counted_and_named(case: Case) -> None:
    path = case.folder / "signs.jsonl"
    signs = ["???", "\U0001f680", "+ =", "What is 2 + 2?", "\u200b!"]
    path.write_text("\n".join(json.dumps({"question": sign}) for sign in signs))
    counts = case.run([*ordinary(3), row("???", "x")], evaluations=[str(path)], validation_fraction=0.0)
    said = (
        "4 held-out items have no words, so nothing can repeat them (signs.jsonl:1, signs.jsonl:2, signs.jsonl:3 ...)"
    )
    assert counts["note"] == said and counts["reasons"] == {}


LONG_LINE = rowfile.MAX_LINE + 1
EVALUATIONS: dict[str, list[tuple[bytes, str]]] = {
    "jsonl": [
        (b'{"question": "a"}\n[1]', ":2: expected an object"),
        (b'{"question": "a"}\n{"question": ', ":2: is not JSON"),
        (b'{"question": "a"}\n\xff', ":2: is not UTF-8 text"),
        (b"[" * 100_000, ":1: is not JSON: it is nested too deeply"),
        (b'{"question": "a"}\n{"question": "' + b"a" * LONG_LINE + b'"}', ":2: is longer than"),
        (b'{"question": 7}', ":1: question: expected a text"),
        (b'{"quest": "a"}', ":1: expected `question`, `text`, `prompt` or `messages`, found none"),
        (b'{"question": ""}', ":1: question: is empty"),
        (b'{"prompt": [{"role": "user"}]}', r":1: prompt.0: expected"),
        (b'{"prompt": [{"role": "judge", "content": "a"}]}', r":1: prompt.0.role: 'judge' is not one of"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}',
            r":1: messages.1.role: 'tool' is not one of system, user, assistant. .* leave the turn out: what tools say",
        ),
        (b'{"messages": [{"role": "assistant", "content": null}]}', ":1: messages.0: .* leave it out: calls of tools"),
        (b'{"messages": "a", "prompt": "b"}', ":1: prompt: expected `prompt` or `messages`, found both"),
        (b"\n\n", ": has no rows"),
    ],
    "csv": [
        (b"question,answer\na,b\nc,d,e\n", ":3: has more fields than the header"),
        (b'question\n"a\n', ":2: is not CSV"),
        (b"question\n\xff\n", ":2: is not UTF-8 text"),
        (b"question\n" + b"a" * LONG_LINE + b"\n", ":2: is longer than"),
        (b"query,answer\na,b\n", ":2: expected `question`, `text`"),
        (b'question\n""\n', ":2: question: is empty"),
        (b"question,answer\n", ": has no rows"),
        (b"", ": has no rows"),
    ],
    "txt": [(b"a", ": is not a .jsonl, .csv or .parquet file")],
    "parquet": [(b"", ": cannot be read as a data set"), (b"PAR1 no more PAR1", ": cannot be read as a data set")],
}


@pytest.mark.parametrize(
    "content, said, kind", [(*pair, kind) for kind, pairs in EVALUATIONS.items() for pair in pairs]
)
def test_a_bad_evaluation_file_is_named_with_line_and_field(case: Case, content: bytes, said: str, kind: str) -> None:
    path = case.folder / f"set.{kind}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"set.{kind}{said}"):
        case.run(ordinary(3), evaluations=[str(path)])


def test_a_bad_evaluation_table_is_named_with_row_and_field(case: Case) -> None:
    path = case.folder / "set.parquet"
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe"))
    for columns, said in (
        ({"query": ["a"]}, ":1: expected `question`"),
        ({"question": ["a", None]}, ":2: expected `question`"),
        ({"question": [1]}, ":1: question: expected a text"),
        ({"question": [b"a"]}, ":1: question: expected a text"),
        ({"prompt": [[{"role": "user", "content": None}]]}, ":1: prompt.0: expected"),
        ({"question": broken}, ".*: cannot be read as a data set"),
        ({"question": pa.array([], pa.string())}, ": has no rows"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=f"set.parquet{said}"):
            case.run(ordinary(3), evaluations=[str(path)])


def test_half_a_character_in_an_evaluation_set_is_replaced(case: Case) -> None:
    path = case.folder / "set.jsonl"
    path.write_text('{"id": "\\udc80", "question": "What is half of a \\ud800 ?"}\n')
    case.run([*ordinary(3), row("What is half of a ? ?", "x")], evaluations=[str(path)], validation_fraction=0.0)
    assert case.table("withheld").overlaps.tolist() == ["?"]


def test_nothing_left_counts_the_reasons(case: Case) -> None:
    copied = [row(HELD_OUT, "Sulu"), row(f"Listen: {HELD_OUT} Be brief.", "Sulu")]
    with pytest.raises(UserError, match=r"of 2 rows held_out_exact 1, held_out_overlap 1, validation 0"):
        case.run(copied)
    assert not list(case.folder.glob("out/*"))


def test_ten_megabytes_in_one_prompt(case: Case) -> None:
    counts = case.run([*ordinary(20), row("word " * 2_000_000, "x")], baselines=True, validation_fraction=0.2)
    assert counts["reasons"] == {}


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


@st.composite
def families(draw: st.DrawFn) -> list[Row]:
    """Rows on prompts, prompts changed a little, some that repeat the held-out question."""
    found: dict[str, Row] = {}
    for family in range(draw(st.integers(1, 6))):
        words = [f"w{family}x{n}" for n in range(draw(st.integers(3, 16)))]
        for _ in range(draw(st.integers(1, 5))):
            for _ in range(draw(st.integers(0, 1))):
                words[draw(st.integers(0, len(words) - 1))] = f"e{draw(st.integers(0, 3))}"
            text = " ".join([*words, *([HELD_OUT] if draw(st.integers(0, 9)) == 0 else [])])
            made = row(
                draw(st.sampled_from([text, text.upper()])),
                "x",
                draw(st.integers(0, 2)),
                draw(st.sampled_from([0.5, 1.0])),
            )
            found[made["id"]] = made
    return draw(st.permutations(list(found.values())))


# Not at random: the chance that two prompts exactly at the threshold meet in no bucket is 0.2 % at most, by design.
@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(families(), st.sampled_from([0.05, 0.3, 0.6]), st.integers(1, 2), st.integers(0, 3))
def test_the_split_against_brute_force(case: Case, rows: list[Row], fraction: float, best_of: int, seed: int) -> None:
    def run(rows: list[Row]) -> dict[str, Any]:
        """id -> (where it went, why, what it repeats); and the random subset."""
        for name, schema in (("kept", KEPT), ("completions", COMPLETIONS)):
            table = [{k: r[k] for k in schema.names} for r in rows]
            artifacts.write_table(case.folder / f"{name}.parquet", schema, table)
        inputs = {name: case.folder / f"{name}.parquet" for name in ("kept", "completions")}
        out = case.folder / "out"
        out.mkdir(exist_ok=True)
        recipe = case.recipe(seed, baselines=True, validation_fraction=fraction, best_of=best_of)
        try:
            assemble.run(recipe, inputs, out)
        except UserError as error:
            assert "nothing is left to train on" in str(error)
            return {}
        went: dict[str, Any] = {}
        for name in ("train", "validation", "withheld"):
            for r in pq.read_table(out / f"{name}.parquet").to_pylist():
                assert r["id"] not in went
                went[r["id"]] = (name, r.get("reason"), r.get("overlaps"))
        assert went.keys() == {r["id"] for r in rows}
        return went | {"subset": set(pq.read_table(out / "random_subset.parquet", columns=["id"])["id"].to_pylist())}

    went = run(rows)
    assert run(sorted(rows, key=lambda r: r["id"])) == went
    if not went:
        return
    sides: dict[str, dict[str, set[tuple[str, ...]]]] = {"train": {}, "validation": {}, "withheld": {}}
    for r in rows:
        sides[went[r["id"]][0]][r["prompt_id"]] = shingles(r["messages"][0]["content"])
    assert not sides["train"].keys() & sides["validation"].keys()
    for a in sides["train"].values():
        for b in sides["validation"].values():
            assert len(a & b) / len(a | b) < assemble.SPLIT_THRESHOLD
    for r in rows:
        if r["id"] in went["subset"]:
            a = shingles(r["messages"][0]["content"])
            assert all(len(a & b) / len(a | b) < assemble.SPLIT_THRESHOLD for b in sides["validation"].values())
