"""Which texts repeat a held-out question, whole or edited.

Words are runs of letters, digits and marks, lower-cased; punctuation separates them. For long items every number counts
as the same word, so that a copy with other numbers is still a copy.

An item of at least EXACT_BELOW words is repeated by a text that has, in one place and in order, the share `overlap` of
its words (the longest common subsequence with a window of the text about as long as the item). Places are found by
runs of ANCHOR words that both have. Where an item has parts, PART_SHARE of `overlap` is asked of each by itself: of the
subject, if it is known, and of the words around it, for what a question is about is not yet the question ("For the
World Is Hollow and I Have Touched the Sky" is in any question about that episode); otherwise of what is left of it
without stock phrases, runs of words that more than STOCK_ITEMS items share ("Which of the following is the best").
Stock phrases and runs that are mostly numbers do not make a place to look at.

A shorter item, or one that is mostly numbers, is repeated by a text that has it word for word, numbers included, as a
whole clause; one of fewer than CLAUSE_FROM words only by a whole message.

Word n-gram overlap is the usual test (Brown et al., 2020, appendix C, use 8 to 13 words); an 8-gram misses a copy of a
short question in which one word was changed, hence the short anchors and the second look.
"""

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import near

EXACT_BELOW = 8
CLAUSE_FROM = 4
ANCHOR = 4
STOCK_ITEMS = 3
"""An anchor that more items than this share is a stock phrase."""


PART_SHARE = 0.75
"""What is asked of each part of an item, as a share of `overlap`."""


class Item(NamedTuple):
    """One thing that must not be trained on."""

    id: str
    text: str
    subject: str = ""  # words of the text that tell what it is about, if that is known


class Hit(NamedTuple):
    """A text repeats an item."""

    row: int  # number of the text
    item: int  # number of the item
    exact: bool  # one of the text's parts is the item, word for word


class _Long(NamedTuple):
    words: list[int]
    parts: list[tuple[dict[int, int], int, float]]  # (word -> bits of its places, words, how many must be found)


class Index(NamedTuple):
    """Items, prepared for `find`."""

    words: list[list[int]]  # of each item, numbers as they are
    long: dict[int, _Long]  # item number -> its words
    anchors: near.Bits  # sorted hashes of runs of ANCHOR words
    anchor_items: list[list[int]]  # the items that have each of them
    short: dict[int, dict[int, list[int]]]  # words -> hash of so many words -> items that begin with them


class _Tables(NamedTuple):
    """Tables of near.py: which characters make words."""

    plain: NDArray[np.uint32]  # letters, digits and marks
    merged: NDArray[np.uint32]  # the same, all numbers alike
    clauses: NDArray[np.uint32]  # the same as plain, with punctuation and line breaks as words, all of them EDGE


EDGE = "\n"


@functools.cache
def _tables() -> _Tables:
    words = near.word_table()
    plain, merged, clauses = words.copy(), words.copy(), words.copy()
    for character in range(0x20000):
        if unicodedata.category(chr(character))[0] not in "LNM":
            plain[character] = merged[character] = 0
            spaced = words[character] == 0 and chr(character) != EDGE
            clauses[character] = 0 if spaced or chr(character) in "'\u2019-_" else near.ALONE | np.uint32(ord(EDGE))
        elif chr(character).isdecimal():
            merged[character] |= near.DIGIT
    for table in (plain, merged, clauses):
        table[ord(near.PART)] = near.ALONE | np.uint32(ord(near.PART))
    return _Tables(plain, merged, clauses)


def index(items: Sequence[Item], overlap: float) -> Index:
    """Prepare items; `overlap`: the share of an item's words that make a copy."""
    plain, merged, _ = _tables()
    texts = pa.array([item.text for item in items], pa.string())
    words = _split(near.word_hashes(texts, merged))
    subjects = _split(near.word_hashes(pa.array([item.subject for item in items], pa.string()), merged))
    hashes = _split(near.runs(texts, merged, ANCHOR))
    exact = _split(near.word_hashes(texts, plain))
    number = int(near.word_hashes(pa.array(["0"]), merged)[0][0])
    runs: dict[int, list[int]] = {}  # item -> its anchors in order, 0 for one that is mostly numbers
    short: dict[int, dict[int, list[int]]] = {}
    for n, item in enumerate(words):
        if len(item) >= EXACT_BELOW and 2 * item.count(number) <= len(item):
            numbers = [item[at : at + ANCHOR].count(number) for at in range(len(hashes[n]))]
            runs[n] = [0 if 2 * many > ANCHOR else h for h, many in zip(hashes[n], numbers, strict=True)]
        elif size := min(len(exact[n]), EXACT_BELOW - 1):
            first = int(near.runs(texts[n : n + 1], plain, size)[0][0])
            short.setdefault(size, {}).setdefault(first, []).append(n)
    shared = Counter(anchor for found in runs.values() for anchor in set(found))
    long: dict[int, _Long] = {}
    by_anchor: dict[int, list[int]] = {}
    for n, found in runs.items():
        stock = [shared[anchor] > STOCK_ITEMS for anchor in found]
        long[n] = _Long(words[n], _parts(words[n], subjects[n], stock, overlap))
        usable = [anchor for anchor, common in zip(found, stock, strict=True) if not common] or found
        for anchor in set(usable) - {0}:
            by_anchor.setdefault(anchor, []).append(n)
    ordered = sorted(by_anchor)
    anchors = np.array(ordered, np.uint64)
    return Index(exact, long, anchors, [by_anchor[anchor] for anchor in ordered], short)


def find(index: Index, texts: pa.Array, compiled: bool = False) -> list[Hit]:
    """The texts (parts joined with near.PART) that repeat an item, at most one hit a text: a whole one first, then the
    item with the most words, then the first."""
    plain, merged, clauses = _tables()
    candidates: dict[int, set[int]] = {}
    if len(index.anchors):
        sets = near.shingle_sets(texts, merged, ANCHOR, compiled)
        for row, anchor in _lookup(sets, index.anchors):
            candidates.setdefault(row, set()).update(index.anchor_items[anchor])
    shorts: dict[int, set[int]] = {}
    for size, firsts in index.short.items():
        keys = np.array(sorted(firsts), np.uint64)
        for row, key in _lookup(near.shingle_sets(texts, plain, size, compiled), keys):
            shorts.setdefault(row, set()).update(firsts[int(keys[key])])
    edge, part = near.word_hashes(pa.array([EDGE + near.PART]), clauses)[0].tolist()
    hits = []
    rows = sorted(candidates.keys() | shorts.keys())
    chosen = texts.take(pa.array(rows, pa.int64()))
    words, tokens = _split(near.word_hashes(chosen, merged)), _split(near.word_hashes(chosen, clauses))
    for place, row in enumerate(rows):
        found = [n for n in candidates.get(row, ()) if _copied(index.long[n], words[place])]
        found += [n for n in shorts.get(row, ()) if _quoted(index.words[n], tokens[place], edge, part)]
        if found:
            parts = [[token for token in turn if token != edge] for turn in _turns(tokens[place], part)]
            ranked = [(index.words[n] not in parts, -len(index.words[n]), n) for n in found]
            edited, _, n = min(ranked)
            hits.append(Hit(row, n, not edited))
    return hits


def _parts(
    words: list[int], subject: list[int], stock: list[bool], overlap: float
) -> list[tuple[dict[int, int], int, float]]:
    """All words with the share asked of them, then the parts with theirs, if the item has them."""
    inside = [False] * len(words)
    if subject:
        for at in range(len(words) - len(subject) + 1):
            if words[at : at + len(subject)] == subject:
                inside[at : at + len(subject)] = [True] * len(subject)
    else:
        for at, common in enumerate(stock):
            if common:
                inside[at : at + ANCHOR] = [True] * ANCHOR
    parts = [(words, overlap)]
    # Of a known subject and of the words around it; of stock phrases nothing is asked.
    for kind in (True, False) if subject else (False,):
        chosen = [word for word, within in zip(words, inside, strict=True) if within is kind]
        if 0 < len(chosen) < len(words):
            parts.append((chosen, PART_SHARE * overlap))
    result = []
    for chosen, share in parts:
        bits: dict[int, int] = {}
        for at, word in enumerate(chosen):
            bits[word] = bits.get(word, 0) | 1 << at
        result.append((bits, len(chosen), share * len(chosen)))
    return result


def _copied(item: _Long, words: list[int]) -> bool:
    """Whether some window of the text has enough of the item's words in order."""
    size = len(item.words)
    slack = 2 + size // 4
    places: dict[int, list[int]] = {}
    for at, word in enumerate(item.words):
        places.setdefault(word, []).append(at)
    tried: set[int] = set()
    # A run of ANCHOR words that both have says where the copy would begin.
    for at in range(len(words) - ANCHOR + 1):
        for place in places.get(words[at], ()):
            if words[at : at + ANCHOR] != item.words[place : place + ANCHOR]:
                continue
            begin = at - place
            if any(abs(begin - other) <= slack // 2 for other in tried):
                continue
            tried.add(begin)
            window = words[max(0, begin - slack) : begin + size + slack]
            if all(_common(window, bits, count) >= needed for bits, count, needed in item.parts):
                return True
    return False


def _common(window: Iterable[int], bits: dict[int, int], count: int) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö, 2004)."""
    full = (1 << count) - 1
    state = full
    for word in window:
        if matches := bits.get(word):
            moved = state & matches
            state = (state + moved | state - moved) & full
    return count - state.bit_count()


def _quoted(item: list[int], tokens: list[int], edge: int, part: int) -> bool:
    """Whether a part of the text has the item word for word as a whole clause, or, if it is very short, is the item."""
    for turn in _turns(tokens, part):
        words = [token for token in turn if token != edge]
        if words == item:
            return True
        if len(item) < CLAUSE_FROM:
            continue
        # open_before[k]: an edge, or nothing, is before the k-th word
        open_before, after_edge = [], True
        for token in turn:
            if token != edge:
                open_before.append(after_edge)
            after_edge = token == edge
        open_before.append(True)
        for at in range(len(words) - len(item) + 1):
            if open_before[at] and open_before[at + len(item)] and words[at : at + len(item)] == item:
                return True
    return False


def _turns(tokens: list[int], part: int) -> Iterator[list[int]]:
    """The text's parts: its messages and its answer."""
    begin = 0
    for at, token in enumerate([*tokens, part]):
        if token == part:
            yield tokens[begin:at]
            begin = at + 1


def _split(csr: tuple[near.Bits, near.Rows]) -> list[list[int]]:
    values, starts = csr[0].tolist(), csr[1].tolist()
    return [values[begin:end] for begin, end in itertools.pairwise(starts)]


def _lookup(sets: near.Sets, keys: near.Bits) -> list[tuple[int, int]]:
    """(row, place in keys) of every value of the sets that is a key."""
    place = np.minimum(np.searchsorted(keys, sets.values), len(keys) - 1)
    found = np.flatnonzero(keys[place] == sets.values)
    rows = np.searchsorted(sets.starts, found, side="right") - 1
    return list(zip(rows.tolist(), place[found].tolist(), strict=True))
