"""metrics: the measures of texts against values worked out elsewhere, the intervals against theory."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import (
    chrf,
    exact_match,
    interval,
    normalise,
    resample,
    rouge_l,
    rouge_of_words,
    share_interval,
    token_f1,
)

words = st.lists(st.sampled_from(["the", "ship", "Kirk,", "a", "1513.1", "«Spock»", "!"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The U.S.S. Enterprise!", "uss enterprise"),
        ("  An   answer, a  word ", "answer word"),
        ("theatre", "theatre"),  # an article is a whole word
        ("1513.1", "15131"),
        ("James T. Kirk\u2019s «ship»", "james t kirks ship"),
        ("+", "+"),  # nothing else in it: stays
        ("The", "the"),
        ("Zu\u0308rich", "z\u00fcrich"),  # an accent of its own
        ("\uff12\uff10\uff12\uff14\u5e74\u3002", "2024\u5e74"),  # digits of full width
        ("10\u00b2", "10\u00b2"),  # not 102
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


def test_exact_match_takes_any_accepted_answer():
    assert exact_match("the Enterprise.", ["USS Enterprise", "Enterprise"])
    assert not exact_match("Enterprise D", ["Enterprise"])
    assert not exact_match("-", ["+"])
    assert not exact_match("anything", [])


def test_token_f1():
    assert token_f1("James Tiberius Kirk", ["James T. Kirk"]) == pytest.approx(2 / 3)
    assert token_f1("Spock", ["James T. Kirk", "Mr. Spock"]) == pytest.approx(2 / 3)
    assert token_f1("b b b", ["b"]) == pytest.approx(0.5)  # repeating a word earns nothing
    assert token_f1("", ["b"]) == 0 and token_f1("b", []) == 0


def test_scripts_without_spaces_are_compared_by_their_characters():
    """A sentence in Chinese was one word: right as a whole, or not at all."""
    assert token_f1("北京是中国的首都。", ["北京"]) == pytest.approx(2 * 2 / (8 + 2))
    assert token_f1("It is 北京.", ["北京"]) == pytest.approx(2 * 2 / (4 + 2))
    assert rouge_l("北京是中国的首都", "中国的首都是北京") == pytest.approx(5 / 8)  # 中国的首都
    assert rouge_l("กรุงเทพ", "กรุงเทพมหานคร") == pytest.approx(2 * 7 / (7 + 13))
    assert token_f1("東京 Tokyo", ["Tokyo"]) == pytest.approx(2 / 4) and token_f1("서울", ["서울특별시"]) == 0
    assert exact_match("北京。", ["北京"]) and not exact_match("北京市", ["北京"])


@given(words, words)
def test_rouge_l_is_the_longest_common_subsequence(left, right):
    ours, theirs = left.split(), right.split()
    longest = max(
        size for size in range(len(ours) + 1) for some in itertools.combinations(ours, size) if in_order(some, theirs)
    )
    expected = 2 * longest / (len(ours) + len(theirs)) if ours and theirs else float(ours == theirs)
    assert rouge_of_words(ours, theirs) == pytest.approx(expected)


def in_order(some, theirs) -> bool:
    rest = iter(theirs)
    return all(word in rest for word in some)


def test_rouge_l_and_chrf_as_other_programs_have_them():
    """Values of rouge-score 0.1.2 (rougeL, no stemmer) and sacrebleu 2.6.0 (sentence_chrf), on these pairs."""
    pairs = [
        ("police kill gunman", "police killed gunman", 0.666667, 0.711869),
        ("gunman police kill one", "police kill one gunman now", 0.666667, 0.730337),
        ("kirk", "james tiberius kirk", 0.5, 0.18871),
        ("ab", "abc", 0.0, 0.636364),
        ("spock", "mccoy", 0.0, 0.08),
    ]
    for text, reference, rouge, characters in pairs:
        assert rouge_l(text, reference) == pytest.approx(rouge, abs=1e-6)
        assert chrf(text, reference) == pytest.approx(characters, abs=1e-6)


@given(words, words)
def test_metrics_stay_in_range_and_know_equality(left, right):
    for metric in (lambda a, b: token_f1(a, [b]), rouge_l, chrf):
        assert 0 <= metric(left, right) <= 1 + 1e-12
        assert metric(left, left) == pytest.approx(1)
    assert rouge_l(left, right) == rouge_l(right, left) <= token_f1(left, [right]) + 1e-12
    assert normalise(normalise(left)) == normalise(left)


def test_interval_covers_as_often_as_it_says():
    """A share of 0.7 among 100 independent questions lies in its 95% interval about 95 times in 100."""
    draws = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        right = (draws.random(100) < 0.7).astype(float)
        sums = resample(np.stack([right, np.ones(100)], axis=1), [str(i) for i in range(100)], 400, trial)
        low, high = interval(sums[:, 0] / sums[:, 1])
        covered += low <= 0.7 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_a_share_that_is_everywhere_the_same_is_not_certain():
    """Wilson's interval begins at n / (n + z * z) where all of n are right."""
    ones = np.ones(50)
    assert share_interval(1.0, ones, 10) == pytest.approx([0.7224672, 1], abs=1e-6)
    assert share_interval(0.0, 0 * ones, 10) == pytest.approx([0, 0.2775328], abs=1e-6)
    assert share_interval(0.5, ones / 2, 1) == pytest.approx([0.0546, 0.9454], abs=1e-4)
    assert share_interval(0.5, np.linspace(0, 1, 1001), 3) == pytest.approx([0.025, 0.975])
    assert share_interval(0.5, ones * np.nan, 3) is None


def test_questions_about_one_fact_are_drawn_together():
    """Two wordings of a fact that are always right or wrong together are worth one question, not two."""
    right = np.repeat(np.arange(100) % 2, 2).astype(float)
    values = np.stack([right, np.ones(200)], axis=1)
    apart = resample(values, [str(i) for i in range(200)], 500, 0)
    together = resample(values, [str(i // 2) for i in range(200)], 500, 0)
    widths = [np.ptp(interval(sums[:, 0] / sums[:, 1])) for sums in (apart, together)]
    assert widths[1] / widths[0] == pytest.approx(2**0.5, rel=0.15)
    assert (resample(values, ["x"] * 200, 5, 0) == [[100, 200]] * 5).all()
