import itertools
import string
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import near, near_compiled, overlap

# Little variety, so that words, cases, spaces and scripts collide; then anything at all, broken UTF-8 included.
ALPHABET = "abAB \t\n\u00a0\u2003.\x1eéÉ\u03c3\u03c2\u03a3İ日本ไ\U0001f600\U00020000\x00"
texts = st.lists(st.text(ALPHABET, max_size=30) | st.text(max_size=30), max_size=8)
raw = st.lists(st.binary(max_size=12) | st.text(max_size=8).map(str.encode), max_size=8)


def arrow(values: list[bytes]) -> pa.Array:
    """A string array of any bytes, as a careless writer may have made it."""
    offsets = np.append(0, np.cumsum([len(value) for value in values])).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def words_of(text: str) -> list[str]:
    """The definition of a word, written plainly."""
    spaced = ""
    for character in text:
        lower = character.lower()
        folded = {"\u03c2": "\u03c3", "\x00": " "}.get(lower, lower if len(lower) == 1 else character)
        alone = folded == near.PART or any(first <= ord(folded) <= last for first, last in near.UNSPACED)
        spaced += f" {folded.replace(near.PART, '|PART|')} " if alone else folded
    return spaced.split()


def shingles_of(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


@given(texts)
def test_words_and_fingerprints_are_those_of_the_definition(values: list[str]) -> None:
    found = near.sketch(pa.array(values, pa.string()), near.Scheme(2, 3))
    expected = [words_of(value) for value in values]
    assert found.words.tolist() == [len(words) for words in expected]
    prints = [tuple(pair) for pair in found.fingerprints.tolist()]
    for i in range(len(values)):
        for j in range(i):
            assert (prints[i] == prints[j]) == (expected[i] == expected[j])


@given(texts)
def test_shingle_sets_have_the_sizes_and_overlaps_of_the_definition(values: list[str]) -> None:
    values = [f"{value} one two three four {value}" for value in values]
    sets = near.shingle_sets(pa.array(values, pa.string()))
    found = [set(sets.values[a:b].tolist()) for a, b in zip(sets.starts[:-1], sets.starts[1:], strict=True)]
    expected = [shingles_of(value) for value in values]
    for i in range(len(values)):
        assert len(found[i]) == len(expected[i])
        for j in range(i):
            assert len(found[i] & found[j]) == len(expected[i] & expected[j])


@given(texts)
def test_texts_shorter_than_a_shingle_are_similar_to_their_equals_only(values: list[str]) -> None:
    short = [words[:4] for words in map(words_of, values)]
    sets = near.shingle_sets(pa.array([" ".join(words).replace("|PART|", near.PART) for words in short], pa.string()))
    assert np.diff(sets.starts).tolist() == [1] * len(short)
    for i in range(len(short)):
        for j in range(i):
            assert (sets.values[i] == sets.values[j]) == (short[i] == short[j])


@pytest.fixture(scope="module", autouse=True)
def compile_first() -> None:
    """Before hypothesis looks at the clock."""
    for table in (near.word_table(), *overlap._tables()):
        near_compiled.shingle_sets(pa.array(["a"]), table, 3)
        near_compiled.word_hashes(pa.array(["a"]), table)
    near_compiled.sketch(pa.array(["a"]), near.Scheme(2, 3))


@settings(deadline=None)
@given(raw, st.integers(1, 6))
def test_compiled_code_gives_the_same(values: list[bytes], size: int) -> None:
    array = arrow(values)
    cut = near.scheme(0.8)
    for plain, compiled in zip(near.sketch(array, cut), near_compiled.sketch(array, cut), strict=True):
        assert np.array_equal(plain, compiled)
    for table in (near.word_table(), *overlap._tables()):
        for plain, compiled in zip(
            near.shingle_sets(array, table, size), near_compiled.shingle_sets(array, table, size), strict=True
        ):
            assert np.array_equal(plain, compiled)
        for plain, compiled in zip(
            near.word_hashes(array, table), near_compiled.word_hashes(array, table), strict=True
        ):
            assert np.array_equal(plain, compiled)


def test_compiled_code_reads_slices_and_large_strings_and_long_words() -> None:
    values = ["first one", "b" * 100_000, "", "ü " * 5000, *string.printable] * 3
    array = pa.array(values)
    cut = near.scheme(0.8)
    for part in (array[3:200], array.cast(pa.large_string()), array[:0]):
        for plain, compiled in zip(near.sketch(part, cut), near_compiled.sketch(part, cut), strict=True):
            assert np.array_equal(plain, compiled)


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    """Sets, who meets whom, and an order."""
    count = draw(st.integers(1, 9))
    sets = [draw(st.sets(st.integers(0, 7), min_size=1)) for _ in range(count)]
    rows = st.lists(st.integers(0, count - 1), min_size=2, unique=True).map(sorted) if count > 1 else st.nothing()
    buckets = draw(st.lists(rows, max_size=6)) if count > 1 else []
    order = draw(st.permutations(range(count)))
    return sets, buckets, order, draw(st.integers(0, count)), draw(st.sampled_from([0.3, 0.5, 0.8, 1.0]))


def csr(parts: list) -> tuple[np.ndarray, np.ndarray]:
    flat = np.array([value for part in parts for value in sorted(part)], np.int64)
    return flat, np.append(0, np.cumsum([len(part) for part in parts])).astype(np.int64)


def each_with_each(buckets: list) -> near.Buckets:
    members, starts = csr(buckets)
    return near.Buckets(members, starts, np.diff(starts))


@settings(deadline=None, max_examples=200)
@given(problems())
def test_choose_is_the_greedy_choice(problem: tuple) -> None:
    sets, buckets, order, fixed, threshold = problem
    met = each_with_each(buckets)
    values, bounds = csr(sets)
    none = np.empty(0, np.int64)
    arguments = (
        np.array(order), fixed, *met,
        values.astype(np.uint64), bounds, none.astype(np.uint64), none, threshold,
    )  # fmt: skip
    leader, similarity = near.loop(near.choose, False, *arguments)

    kept: list[int] = []
    for rank, row in enumerate(order):
        met = [other for other in kept if any(row in bucket and other in bucket for bucket in buckets)]
        scored = [(len(sets[row] & sets[other]) / len(sets[row] | sets[other]), other) for other in met]
        similar = [(score, -order.index(other)) for score, other in scored if score >= threshold]
        if similar and rank >= fixed:
            best, place = max(similar)
            assert (leader[row], similarity[row]) == (order[-place], pytest.approx(best))
        else:
            assert leader[row] == -1
            kept.append(row)
    for plain, compiled in zip((leader, similarity), near.loop(near.choose, True, *arguments), strict=True):
        assert plain.tolist() == compiled.tolist()


@settings(deadline=None, max_examples=200)
@given(problems())
def test_connect_and_components_follow_chains(problem: tuple) -> None:
    sets, buckets, _, _, threshold = problem
    members, starts, core = each_with_each(buckets)
    values, bounds = csr(sets)
    met = {(a, b) for bucket in buckets for a in bucket for b in bucket}
    similar = {(a, b) for a, b in met if len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= threshold}
    for links, function, more in (
        (met, near.components, ()),
        (similar, near.connect, (core, values.astype(np.uint64), bounds, threshold)),
    ):
        expected = list(range(len(sets)))
        for _ in sets:
            for a, b in links:
                expected[a] = expected[b] = min(expected[a], expected[b])
        for compiled in (False, True):
            (found,) = near.loop(function, compiled, len(sets), members, starts, *more)
            assert found.tolist() == expected


def pairs_of(met: near.Buckets) -> set[tuple[int, int]]:
    """Who meets whom, the smaller row first."""
    pairs = set()
    for (a, b), core in zip(itertools.pairwise(met.starts.tolist()), met.core.tolist(), strict=True):
        bucket = met.members[a:b].tolist()
        assert len(set(bucket)) == len(bucket) >= 2
        assert core >= 1
        pairs |= {tuple(sorted((one, other))) for one in bucket[:core] for other in bucket if one != other}
    return pairs


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


@settings(deadline=None, max_examples=300)
@given(problems())
def test_prefix_buckets_hold_all_similar_pairs_of_a_group(problem: tuple) -> None:
    sets, buckets, _, _, threshold = problem
    values, bounds = csr(sets)
    (group,) = near.loop(near.components, False, len(sets), *csr(buckets))
    rows = np.unique(np.array(sorted({row for bucket in buckets for row in bucket}), np.int64))
    pairs = pairs_of(near.prefix_buckets(rows, group, near.Sets(values.astype(np.uint64), bounds), threshold))
    assert all(group[a] == group[b] for a, b in pairs)
    for a, b in itertools.combinations(rows.tolist(), 2):
        assert (a, b) in pairs or group[a] != group[b] or jaccard(sets[a], sets[b]) < threshold


@settings(deadline=None, max_examples=300)
@given(problems(), st.integers(1, 4), st.data())
def test_narrow_buckets_hold_all_similar_pairs_and_no_more_than_before(
    problem: tuple, large: int, data: st.DataObject
) -> None:
    """Similar by two measures, of which either may serve."""
    sets, buckets, _, _, threshold = problem
    others = [data.draw(st.sets(st.integers(0, 7), min_size=1)) for _ in sets]
    met = each_with_each(buckets)
    (group,) = near.loop(near.components, False, len(sets), met.members, met.starts)
    measures = []
    for of, least in ((sets, threshold), (others, threshold / 2)):
        values, bounds = csr(of)
        measures.append((near.Sets(values.astype(np.uint64), bounds), least))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "LARGE", large)
        narrow = near.narrow(met, group, *measures)
    small = [bucket for bucket in buckets if len(bucket) <= large]
    for number, bucket in enumerate(small):
        assert narrow.members[narrow.starts[number] : narrow.starts[number + 1]].tolist() == bucket
        assert narrow.core[number] == len(bucket)
    pairs = pairs_of(narrow)
    assert all(group[a] == group[b] for a, b in pairs)
    for bucket in buckets:
        for a, b in itertools.combinations(bucket, 2):
            if jaccard(sets[a], sets[b]) >= threshold and jaccard(others[a], others[b]) >= threshold / 2:
                assert (a, b) in pairs
    assert near.pairs(narrow).sum() <= near.pairs(met).sum()


@settings(deadline=None, max_examples=200)
@given(problems())
def test_prefix_buckets_change_neither_choice_nor_chains(problem: tuple) -> None:
    sets, buckets, order, fixed, threshold = problem
    values, bounds = csr(sets)
    of, none = near.Sets(values.astype(np.uint64), bounds), near.Sets(np.empty(0, np.uint64), np.empty(0, np.int64))
    (group,) = near.loop(near.components, False, len(sets), *csr(buckets))
    # They may bring together rows that met in none before; so all that may meet do.
    met = each_with_each([np.flatnonzero(group == one).tolist() for one in set(group.tolist())])
    narrow = near.prefix_buckets(np.arange(len(sets)), group, of, threshold)
    for compiled in (False, True):
        for function, before, after in (
            (near.choose, (np.array(order), fixed), (*of, *none, threshold)),
            (near.connect, (len(sets),), (*of, threshold)),
        ):
            expected = near.loop(function, compiled, *before, *met, *after)
            found = near.loop(function, compiled, *before, *narrow, *after)
            assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def with_passage(count: int, shared: int, own: int) -> near.Sets:
    """Sets of as many values, `shared` of them the same in all."""
    sets = [[*range(shared), *range(10_000 + own * row, 10_000 + own * (row + 1))] for row in range(count)]
    values, bounds = csr(sets)
    return near.Sets(values.astype(np.uint64), bounds)


@pytest.mark.parametrize("shared", [100, 230])  # similarity 0.26 and 0.74: below 0.8
def test_rows_with_a_long_passage_in_common_do_not_meet_in_narrow_buckets(shared: int) -> None:
    count = 2_000
    met = each_with_each([range(count)])
    narrow = near.narrow(met, np.zeros(count, np.int64), (with_passage(count, shared, 270 - shared), 0.8))
    assert not len(narrow.members)
    assert narrow.starts.tolist() == [0]


@pytest.mark.parametrize("answers", [96, 10])
def test_a_passage_in_prompt_and_answer_is_looked_through_by_the_measure_that_tells_more(answers: int) -> None:
    """Rows with 300 words in common in the prompt and 100 in the answer were compared each with each, because those
    answers are similar enough: 20,000 rows took more than 200 CPU seconds."""
    count = 1_000
    met = each_with_each([range(count)])
    by_both = with_passage(count, 396, 54 if answers == 96 else 20)  # similarity 0.79, 0.91
    by_answer = with_passage(count, answers, 30)  # 0.62, 0.14
    narrow = near.narrow(met, np.zeros(count, np.int64), (by_both, 0.8), (by_answer, 0.4))
    assert narrow.starts.tolist() == [0]


def test_how_rows_are_narrowed_does_not_depend_on_other_groups() -> None:
    """One measure serves for a group, the other for another."""
    first, second = with_passage(1_000, 90, 30), with_passage(1_000, 10, 30)  # similar and not, at 0.5
    one = near.Sets(
        np.concatenate([first.values, second.values]), np.append(first.starts, first.starts[-1] + second.starts[1:])
    )
    other = near.Sets(
        np.concatenate([second.values, first.values]), np.append(second.starts, second.starts[-1] + first.starts[1:])
    )
    met, group = each_with_each([range(1_000), range(1_000, 2_000)]), np.repeat([0, 1_000], 1_000)
    assert near.narrow(met, group, (one, 0.5), (other, 0.5)).starts.tolist() == [0]


def test_connecting_rows_that_are_all_alike_does_not_compare_each_with_each() -> None:
    count = 2_000
    sets = near.Sets(np.tile(np.arange(5, dtype=np.uint64), count), np.arange(0, 5 * count + 1, 5))
    asked = 0

    class Counted(list[int]):
        def __getitem__(self, at: Any) -> Any:
            nonlocal asked
            asked += 1
            return super().__getitem__(at)

    values = Counted(sets.values.tolist())
    members, starts, core = [*range(count)] * 2, [0, count, 2 * count], [count, count]
    assert near.connect(count, members, starts, core, values, sets.starts.tolist(), 0.7) == [0] * count
    assert asked < 20 * count


def test_much_text_is_never_left_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, cut = pa.array(["one two three four five six"] * 100), near.scheme(0.8)
    expected = near.sketch(texts, cut), near.shingle_sets(texts), near.word_hashes(texts, near.word_table())
    monkeypatch.setattr(near, "COMPILE_BYTES", 1_000)
    monkeypatch.setattr(near, "_words", None)
    found = near.sketch(texts, cut), near.shingle_sets(texts), near.word_hashes(texts, near.word_table())
    for one, other in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        assert np.array_equal(one, other)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4))
def test_buckets_are_the_groups_of_equal_keys(keys: list[list[int]]) -> None:
    alive = np.array([0, 1, 2, 4, 5])
    members, starts, core = near.buckets(np.array(keys, np.uint32), alive)
    assert core.tolist() == np.diff(starts).tolist()
    found = sorted(members[a:b].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True))
    expected = [[row for row in alive.tolist() if band[row] == key] for band in keys for key in set(band)]
    assert found == sorted(group for group in expected if len(group) > 1)


def test_scheme_catches_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99):
        bands, rows = near.scheme(threshold)
        assert bands * rows <= near.PERMUTATIONS
        assert 1 - (1 - threshold**rows) ** bands >= 0.998
    assert near.scheme(0.8) == (21, 6)
