import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import near, overlap, paths
from pipeline.overlap import Hit, Item
from pipeline.recipe import load_recipe
from pipeline.stages import assemble, generate

LONG = "In the episode with the talking hat, which officer drops the lamp into the river before noon?"
SHORT = "Who painted the shuttle?"


def find(items: list[Item | str], *texts: str, share: float = 0.75) -> list[Hit]:
    items = [item if isinstance(item, Item) else Item(str(n), item) for n, item in enumerate(items)]
    return overlap.find(overlap.index(items, share), pa.array(texts))


@pytest.mark.parametrize(
    "text, exact",
    [
        (LONG, True),
        (LONG.upper().replace(",", " --"), True),
        (f"Answer me.{near.PART}{LONG}{near.PART}Spock", True),
        (f"A question for the quiz night we hold on Fridays: {LONG} Give a name and nothing else.", False),
        (LONG.replace("officer", "person"), False),
        (LONG.replace("officer", "person").replace("river", "sea").replace("lamp", "key"), False),
        (LONG.replace("before noon", ""), False),
        (f"Yes. {near.PART} You may well ask: {LONG.lower()}", False),
    ],
)
def test_a_long_question_whole_embedded_and_edited(text: str, exact: bool) -> None:
    assert find([LONG], "something else entirely", text) == [Hit(1, 0, exact)]


@pytest.mark.parametrize(
    "text",
    [
        "Which officer drops the lamp into the sink?",
        "In the episode with the talking hat, what is the name of the planet that the ship flies to?",
        "noon before river the into lamp the drops officer which hat talking the with episode the In",
        "",
    ],
)
def test_what_shares_some_words_with_it_is_another_question(text: str) -> None:
    assert find([LONG], text) == []


def test_other_numbers_are_still_a_copy_of_a_long_question() -> None:
    item = "A freighter carries 120 crates and unloads 45 of them at Station 7; how many crates are left on board?"
    assert find([item], item.replace("120", "3,450").replace("45", "9")) == [Hit(0, 0, False)]


def test_runs_of_numbers_prove_nothing() -> None:
    numbers = "1 2 3 4 5 6 7 8 9 10 11 12"
    item = f"Which number comes next in the sequence {numbers} if the pattern is kept up?"
    assert find([item], f"Please count: {numbers}", "7 14 21 28 35 42 49 56 63 70 77 84") == []
    assert find([f"Next: {numbers}"], f"Next: {numbers}", "Next: 2 4 6 8 10 12 14 16 18 20 22 24") == [Hit(0, 0, True)]


def test_stock_phrases_prove_nothing() -> None:
    items = [f"Which of the following is the best description of the word {word}?" for word in "abcdefgh"]
    assert find(items, "Which of the following is the best description of the word z?") == []
    assert find(items, items[3].replace("best", "right")) == [Hit(0, 3, False)]


def test_a_long_subject_in_common_proves_nothing() -> None:
    title = "For the World Is Hollow and I Have Touched the Sky"
    item = Item("q", f'What is the stardate of "{title}"?', title)
    assert find([item], f'On which date does "{title}" begin?', f'Who directed the episode "{title}"?') == []
    assert find([item], f'Say, what is the stardate of "{title}"?', item.text.replace("the", "a", 1)) == [
        Hit(0, 0, False), Hit(1, 0, False),
    ]  # fmt: skip


@pytest.mark.parametrize("text", [SHORT, "who painted the shuttle", f"Computer, {SHORT}", f"Hello!\n{SHORT}\nThanks"])
def test_a_short_question_as_a_clause(text: str) -> None:
    assert [hit.item for hit in find([SHORT], text)] == [0]


@pytest.mark.parametrize(
    "text", ["Who painted the shuttle's door?", "Tell me who painted the shuttle bay", "Who painted"]
)
def test_a_short_question_within_a_clause_is_another_one(text: str) -> None:
    assert find([SHORT], text) == []


@pytest.mark.parametrize(
    "item, text",
    [
        (SHORT, "Who painted a shuttle?"),
        (SHORT, "Who painted shuttle?"),
        (SHORT, "Computer, who had painted the shuttle?"),
        ("What is the capital of France?", "What was the capital of France?"),
        ("What is the capital of France?", "Please: what's the capital of France? Be brief."),
        ("Did Kirk see 3 moons?", "Does Kirk see 3 moons"),
    ],
)
def test_a_short_question_with_one_function_word_exchanged(item: str, text: str) -> None:
    assert find([item], text) == [Hit(0, 0, False)]


@pytest.mark.parametrize(
    "item, text",
    [
        (SHORT, "Who painted the bridge?"),
        (SHORT, "Who boarded the shuttle?"),
        (SHORT, "When painted the shuttle?"),
        (SHORT, "Was a shuttle painted?"),
        (SHORT, "Who has painted a shuttle?"),  # two words exchanged
        ("Who played Kirk?", "Who played Spock?"),
        ("What is 2 + 3?", "What is 2 + 4?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("What is the capital of France?", "What is the currency of France?"),
        ("What is the capital of France?", "When was the capital of France founded?"),
        ("How long is the bridge?", "How long is London bridge?"),
        ("Who sold it to Mudd?", "Who sold it for Mudd?"),
        ("Is the captain on board?", "Is the captain not on board?"),
        ("What is it for?", "What is it?"),
    ],
)
def test_another_word_of_the_content_makes_another_question(item: str, text: str) -> None:
    assert find([item], text) == []
    frame = [item, *(item.replace("France", land) for land in ("Italy", "Peru", "Chad", "Oman", "Fiji"))]
    assert find(frame, text) == [], "what many items share does not become a word that can be exchanged"


def test_a_question_of_little_more_than_a_stock_phrase() -> None:
    start = "At what time of the day does the"
    items = [f"{start} {words}?" for words in ("old warp core", "night shift", "red alert", "last shuttle", "crew")]
    assert find(items, f"{start} new warp core?", f"{start} old core?", f"{start} warp?", f"{start} shift?") == [
        Hit(0, 0, False), Hit(1, 0, False),
    ]  # fmt: skip


def test_a_very_short_question_only_as_a_whole_message() -> None:
    assert find(["Who is Q?"], f"who is q{near.PART}Nobody", "Hello! Who is Q? Tell me.") == [Hit(0, 0, True)]
    assert find(["What is 2 + 3?"], "What is 2 + 4?", "What is 2 + 3?") == [Hit(1, 0, True)]


def test_scripts_without_spaces_and_combining_marks() -> None:
    item = "宇宙船の船長は誰ですか"
    assert find([item], item, "今日の料理は魚でしたね") == [Hit(0, 0, True)]
    hindi = "जहाज का कप्तान कौन है"
    assert find([hindi], hindi + "?") == [Hit(0, 0, True)]


def test_nothing_held_out_and_empty_items() -> None:
    assert find([], "anything") == []
    assert find(["", "?!"], "anything", "", "?!") == []


def test_the_same_item_again_and_again_changes_nothing_and_costs_nothing() -> None:
    once = [Item("a", "Which captain lost the silver compass near Dover lighthouse yesterday?"), Item("b", "yes")]
    texts = pa.array(["Which captain lost one silver compass by Dover lighthouse yesterday?", "Is it?\x1eYes", "no"])
    index = overlap.index(once * 50, 0.75)
    assert [hit.item for hit in overlap.find(index, texts)] == [0, 1]
    assert all(len(found) == 1 for places in (index.runs, index.pairs, index.clauses) for found in places.items)


def test_of_several_the_whole_one_then_the_longest_is_named() -> None:
    longer = f"{LONG} And who picks it up again?"
    assert find([LONG, longer], f"So: {longer}") == [Hit(0, 1, False)]
    assert find([longer, LONG], LONG) == [Hit(0, 1, True)]


def test_recall_and_false_alarms() -> None:
    """A small edition of benchmarks/decontaminate.py."""
    draw = random.Random(3)
    words = [f"word{n}" for n in range(3000)]
    items = [" ".join(draw.choices(words, k=draw.randint(10, 60))) for _ in range(200)]
    found = overlap.index([Item(str(n), item) for n, item in enumerate(items)], 0.75)

    def edited(item: str, share: float) -> str:
        changed = item.split()
        for at in draw.sample(range(len(changed)), round(share * len(changed))):
            changed[at] = draw.choice(words)
        return " ".join(changed)

    for share, least in ((0.0, 200), (0.1, 195), (0.2, 170)):
        hits = overlap.find(found, pa.array([f"{draw.choice(words)} {edited(item, share)} end" for item in items]))
        assert sum(hit.row == hit.item for hit in hits) >= least
    unrelated = [" ".join(draw.choices(words, k=80)) for _ in range(2000)]
    assert overlap.find(found, pa.array(unrelated)) == []
    assert all(re.fullmatch(r"word\d+( word\d+)*", item) for item in items)


WORDS = st.sampled_from(["what", "is", "the", "7", "lamp", "on", "ship", "red", "not", "45", "a", "船", "é"])
QUESTION = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
PROSE = st.lists(st.one_of(WORDS, st.sampled_from([".", ",", "\n", "'", near.PART])), max_size=20).map(" ".join)


@settings(deadline=None)
@given(st.lists(QUESTION, min_size=1, max_size=4), st.data(), PROSE, PROSE)
def test_an_item_word_for_word_as_a_clause_is_found(
    items: list[str], data: st.DataObject, before: str, after: str
) -> None:
    item = data.draw(st.sampled_from(items))
    clause = f"{before}. {item}! {after}" if len(item.split()) >= overlap.CLAUSE_FROM else item
    message = f"{before}{near.PART}{item}?{near.PART}{after}"
    hits = find(items, clause, message)
    assert [hit.row for hit in hits] == [0, 1]
    assert hits[1].exact


@settings(deadline=None)
@given(st.lists(QUESTION, max_size=4), st.lists(PROSE, max_size=6), st.randoms(use_true_random=False))
def test_a_hit_depends_on_its_text_only_and_not_on_who_looks(items: list[str], texts: list[str], draw) -> None:
    index = overlap.index([Item(str(n), item) for n, item in enumerate(items)], 0.75)
    hits = overlap.find(index, pa.array(texts, pa.string()))
    assert overlap.find(index, pa.array(texts, pa.string()), compiled=True) == hits
    alone = [hit._replace(row=n) for n, text in enumerate(texts) for hit in overlap.find(index, pa.array([text]))]
    assert alone == hits
    order = draw.sample(range(len(texts)), len(texts))
    mixed = overlap.find(index, pa.array([texts[n] for n in order], pa.string()))
    assert sorted(hit._replace(row=order[hit.row]) for hit in mixed) == hits


def test_the_worked_example_loses_no_training_prompts(tmp_path: Path) -> None:
    """The held-out wordings ask for facts that train wordings ask for too, and are not those."""
    recipe = load_recipe(paths.find_recipe("quickstart"))
    generate.run(recipe, generate.sources(recipe), tmp_path)
    prompts = [
        messages[-1]["content"] for messages in pq.read_table(tmp_path / "prompts.parquet")["messages"].to_pylist()
    ]
    items = assemble.forbidden(recipe)
    assert len(items) > 1000 and len(prompts) == 4000
    hits = overlap.find(overlap.index(items, recipe.assemble.overlap), pa.array(prompts))
    assert len(hits) <= len(prompts) / 1000
