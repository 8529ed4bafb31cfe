"""Whether a prompt is new: not nearly the same as one that was taken before, and no held-out question.

Texts are compared by their word 5-grams.
"""

import itertools
import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.metrics import UNSPACED, rouge_of_words, words_of
from pipeline.questions import Question

GRAM = 5
"""Words in a row by which prompts are compared with each other and with held-out questions."""

OVERLAP = 0.8
"""Share of a held-out question's grams from which a prompt counts as the same question."""

NEARLY = 0.8
"""Jaccard similarity of word 5-grams from which two prompts are nearly the same, as in the stage dedupe."""

BITS = 256
"""Bits of the bitmap that stands for a prompt's words in a quick comparison."""

Gram = tuple[str, ...]

_WORD = re.compile(r"\w+")
_WORD_OR_CHARACTER = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def words(text: str) -> tuple[str, ...]:
    """A text's words as they are compared: lower case, without punctuation. Of scripts that put no spaces between words
    every character is one, as in the stage dedupe."""
    if text.isascii():
        found = _WORD.findall(text.lower())
    else:
        found = _WORD_OR_CHARACTER.findall(unicodedata.normalize("NFKC", text).casefold())
    return tuple(map(sys.intern, found))  # interned, for they are compared and kept a thousand times


def grams_of(text: str) -> list[Gram]:
    """The distinct word GRAM-grams of a text in their order; a text of fewer words is one gram, all of it."""
    found = words(text)
    return list(dict.fromkeys(zip(*(found[i:] for i in range(min(GRAM, len(found)))), strict=False)))


class Guard(NamedTuple):
    """The held-out questions, ready to be compared with."""

    having: dict[Gram, list[int]]  # gram -> the questions that have it
    sizes: list[int]  # grams of each question


def make_guard(held_out: Iterable[Question]) -> Guard:
    """The guard for some held-out questions. A gram inside a question's subject is left out: it says what is asked
    about, not how, and other questions about the same subject may have it."""
    guard = Guard({}, [])
    for question in held_out:
        grams = grams_of(question.prompt)
        subject = set(grams_of(question.subject))
        own = [gram for gram in grams if gram not in subject] or grams
        for gram in own:
            guard.having.setdefault(gram, []).append(len(guard.sizes))
        guard.sizes.append(len(own))
    return guard


def is_held_out(guard: Guard, grams: Iterable[Gram]) -> bool:
    """Whether a prompt with these grams has at least OVERLAP of the grams of a held-out question."""
    hits: Counter[int] = Counter()
    for gram in grams:
        if gram in guard.having:
            hits.update(guard.having[gram])
    return any(n >= OVERLAP * guard.sizes[question] for question, n in hits.items())


class Seen(NamedTuple):
    """The prompts taken so far, indexed for finding nearly the same ones."""

    numbers: defaultdict[Gram, int]  # gram -> its number, in the order in which they were first seen
    sets: list[list[int]]  # the grams of each text, the highest number first
    bitmaps: list[int]  # of each text, bit n % BITS for its every gram n
    having: defaultdict[int, list[int]]  # gram -> the texts that have it at the beginning of their set


def nothing_seen() -> Seen:
    """No prompts yet."""
    return Seen(defaultdict(itertools.count().__next__), [], [], defaultdict(list))


def nearly_new(seen: Seen, grams: Iterable[Gram]) -> bool:
    """Whether a text with these grams is new: False if their Jaccard similarity to those of a text that was is at least
    NEARLY. Remembers a new one in `seen`.

    Exact, by the prefix filter of Bayardo, Ma and Srikant (2007): in any fixed order of all grams, two sets as similar
    as that share one of their first n - ceil(NEARLY n) + 1, so only texts that do are compared. What was first seen
    late is rare, and few texts share it; so that is the order. The bitmaps spare most of these comparisons too: two
    sets differ in at least as many grams as their bitmaps in bits (Sandes, Teodoro and Melo, 2020).
    """
    numbers = sorted([seen.numbers[gram] for gram in grams], reverse=True)
    own, size, bitmap = frozenset(numbers), len(numbers), 0
    for number in numbers:
        bitmap |= 1 << number % BITS
    prefix = numbers[: size - math.ceil(NEARLY * size) + 1]
    near: set[int] = set()
    for number in prefix:
        near.update(seen.having[number])
    # A set of m grams that is as similar has m <= size / NEARLY, and differs in (1 - NEARLY) / (1 + NEARLY) of both.
    differ = int((1 - NEARLY) / NEARLY * size + 1e-9)
    for other in near:
        if (bitmap ^ seen.bitmaps[other]).bit_count() <= differ:
            theirs = seen.sets[other]
            both = len(own.intersection(theirs))
            if both >= NEARLY * (size + len(theirs) - both):
                return False
    for number in prefix:
        seen.having[number].append(len(seen.sets))
    seen.sets.append(numbers)
    seen.bitmaps.append(bitmap)
    return True


class Worded(NamedTuple):
    """Texts indexed by their words, for finding those with nearly the same words in nearly the same order."""

    words: list[list[str]]  # of each text
    having: dict[
        tuple[str, int], list[int]
    ]  # a word and how often it came before in its text -> the texts that have it


def rouge_new(worded: Worded, text: str, threshold: float) -> bool:
    """Whether the ROUGE-L of a text (F1 of the longest common subsequence of words; Lin, 2004) with each text of
    `worded` is less than `threshold`, the novelty rule of Self-Instruct. Remembers a new one in `worded`.

    Exact: a common subsequence is no longer than the words that two texts share, so only those that share enough are
    compared.
    """
    count: Counter[str] = Counter()
    own, words = [], [sys.intern(word) for word in words_of(text)]
    for word in words:
        own.append((word, count[word]))
        count[word] += 1
    shared: Counter[int] = Counter()
    for one in own:
        shared.update(worded.having.get(one, ()))
    for other, both in shared.items():
        theirs = worded.words[other]
        if 2 * both >= threshold * (len(own) + len(theirs)) and rouge_of_words(words, theirs) >= threshold:
            return False
    for one in own:
        worded.having.setdefault(one, []).append(len(worded.words))
    worded.words.append(words)
    return True
