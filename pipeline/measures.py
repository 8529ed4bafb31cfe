"""Counts of the words of many texts, as machine code: what lets the filter stage leave most of its rules unasked.

Words are those of `text.lower().split()` with typographic apostrophes made plain, so that a rule that counts them in
Python (answers.Answer.words) comes to the same numbers. Compiling takes some seconds on the first use on a machine.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import uint32, uint64
from numpy.typing import NDArray

from pipeline.near_compiled import jit

LONGEST = 1 << 20
"""Bytes of the longest text that is counted."""

_SPACE, _UNKNOWN = np.uint32(0), np.uint32(0xFFFFFFFF)
_NUL = np.uint32(0x110000)
_LETTER = np.uint32(1 << 31)
# What a character does to a sentence.
_ENDS, _CLOSES, _BREAKS, _TICK = np.uint8(1), np.uint8(2), np.uint8(3), np.uint8(4)
_FACTOR, _MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(29)


class Counts(NamedTuple):
    """(n,) of n texts. All are 0 where `known` is false: a text that is too long, or in which a character has no
    lower-case letter of its own."""

    known: NDArray[np.bool_]
    words: NDArray[np.int64]
    distinct: NDArray[np.int64]
    """Different words."""
    triples: NDArray[np.int64]
    """Different runs of three words."""
    listed: NDArray[np.int64]
    """Different words among those of the list."""
    run: NDArray[np.int64]
    """How often the same word stands in a row, at the most."""
    longest: NDArray[np.int64]
    """Characters of the longest word."""
    thrice: NDArray[np.int64]
    """Sentences of four words or more that are there for the third time or more often, but for case, punctuation and
    what stands before their first letter. They are cut as answers.sentences cuts them in a line."""
    again: NDArray[np.int64]
    """Lines that are there for the second time or more often, compared likewise; all without letters are alike."""
    backticks: NDArray[np.int64]


def count(texts: pa.Array, listed: Iterable[str]) -> Counts:
    """Counts of n texts (an Arrow string array without nulls, its UTF-8 valid). listed: words in lower case, at most
    some hundred."""
    data, starts = _buffers(texts)
    longest = min(LONGEST, int(np.diff(starts).max())) if len(texts) else 0
    values = np.zeros((len(texts), 10), np.int64)
    _count(data, starts, _lower_case(), _punctuation(), _list(tuple(listed)), longest, values)
    return Counts(values[:, 0] == 1, *values[:, 1:].T)


@functools.cache
def _lower_case() -> NDArray[np.uint32]:
    """Code point -> what it is in lower case, with _LETTER if that is a letter; 0 for white space, _UNKNOWN where what
    becomes of it is no single character or hangs on its neighbours."""
    table = np.arange(0x110000, dtype=np.uint32)
    for character in range(0x20000):  # no capital letters beyond
        lower = chr(character).lower()
        table[character] = _SPACE if lower.isspace() else ord(lower) if len(lower) == 1 else _UNKNOWN
        if len(lower) == 1 and lower.isalpha():
            table[character] |= _LETTER
    table[0x20000:0x40000] |= _LETTER
    table[0x03A3] = _UNKNOWN  # the final sigma is another letter
    table[0], table[0x2019] = _NUL, ord("'")
    return table


@functools.cache
def _punctuation() -> NDArray[np.uint8]:
    """Code point below 0x10000 -> what it does to a sentence."""
    table = np.zeros(0x10000, np.uint8)
    for characters, does in (
        (".!?\u3002\uff01\uff1f", _ENDS),
        ("\"')]\u201d", _CLOSES),
        ("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", _BREAKS),
        ("`", _TICK),
    ):
        table[[ord(character) for character in characters]] = does
    return table


@functools.cache
def _list(words: tuple[str, ...]) -> NDArray[np.uint64]:
    """The hashes of some words, sorted."""
    data, starts = _buffers(pa.array(words, pa.string()))
    hashes, other = np.empty((2, int(starts[-1]) + 1), np.uint64)
    found = []
    for begin, end in itertools.pairwise(starts):
        _words(data, begin, end, _lower_case(), _punctuation(), hashes, other, other)
        found.append(hashes[0])
    return np.sort(np.array(found, np.uint64))


def _buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of a string array without nulls, and where each text begins in them."""
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.zeros(1, np.uint8), np.zeros(len(texts) + 1, np.int64)
    starts = np.frombuffer(offsets, np.int32, count=len(texts) + 1, offset=texts.offset * 4)
    return np.frombuffer(data, np.uint8), starts.astype(np.int64)


@jit
def _words(data: Any, begin: int, end: int, table: Any, marks: Any, hashes: Any, sentences: Any, lines: Any) -> Any:
    """Write the hash of each word of a text into `hashes`, of each sentence of four words or more with a letter into
    `sentences` and of each line that is not blank into `lines`. Returns (words, sentences, lines, characters of the
    longest word, backticks), or -1 words if a character is _UNKNOWN."""
    words, cut, broken, longest, ticks = 0, 0, 0, 0, 0
    letters, first, begun = 0, 0, 0  # characters of the word; the first word of the sentence and of the line
    value, sentence, line = uint64(0), uint64(0), uint64(0)
    ended = False
    at = begin
    while at <= end:
        if at == end:
            character = uint32(0x0A)  # as if a line ended there
            at += 1
        elif data[at] < 0x80:
            character = uint32(data[at])
            at += 1
        elif data[at] < 0xE0:
            character = (uint32(data[at]) & uint32(0x1F)) << uint32(6) | (uint32(data[at + 1]) & uint32(0x3F))
            at += 2
        elif data[at] < 0xF0:
            character = (
                (uint32(data[at]) & uint32(0x0F)) << uint32(12)
                | (uint32(data[at + 1]) & uint32(0x3F)) << uint32(6)
                | (uint32(data[at + 2]) & uint32(0x3F))
            )
            at += 3
        else:
            character = (
                (uint32(data[at]) & uint32(0x07)) << uint32(18)
                | (uint32(data[at + 1]) & uint32(0x3F)) << uint32(12)
                | (uint32(data[at + 2]) & uint32(0x3F)) << uint32(6)
                | (uint32(data[at + 3]) & uint32(0x3F))
            )
            at += 4
        lower = table[character]
        if lower == _UNKNOWN:
            return -1, 0, 0, 0, 0
        does = marks[character] if character < 0x10000 else np.uint8(0)
        if lower != _SPACE:
            value = value * _FACTOR + uint64(lower)
            letters += 1
            ticks += does == _TICK
            ended = does == _ENDS or (ended and does == _CLOSES)
            if does != _ENDS and does != _CLOSES:
                if sentence or lower & _LETTER:
                    sentence = sentence * _FACTOR + uint64(lower)
                if line or lower & _LETTER:
                    line = line * _FACTOR + uint64(lower)
            continue
        if letters:
            hashes[words] = (value ^ (value >> _SHIFT)) * _MIX
            words += 1
            longest = max(longest, letters)
            value, letters = uint64(0), 0
        if ended or does == _BREAKS:
            if sentence and words - first >= 4:
                sentences[cut] = (sentence ^ (sentence >> _SHIFT)) * _MIX
                cut += 1
            sentence, first, ended = uint64(0), words, False
        if does == _BREAKS:
            if words > begun:
                lines[broken] = (line ^ (line >> _SHIFT)) * _MIX
                broken += 1
            line, begun = uint64(0), words
    return words, cut, broken, longest, ticks


@jit
def _seen(value: Any, mask: Any, stamp: int, slots: Any, stamps: Any, times: Any) -> int:
    """Put a hash into the open table of a stamp; how often it was put there, this time included."""
    slot = np.int64((value ^ (value >> uint64(32))) & mask)
    while stamps[slot] == stamp:
        if slots[slot] == value:
            times[slot] += 1
            return times[slot]
        slot = np.int64(uint64(slot + 1) & mask)
    slots[slot], stamps[slot], times[slot] = value, stamp, 1
    return 1


@jit
def _count(data: Any, starts: Any, table: Any, marks: Any, listed: Any, most: int, values: Any) -> None:
    hashes = np.empty(most // 2 + 2, np.uint64)  # two bytes a word at the least
    sentences, lines = np.empty(len(hashes), np.uint64), np.empty(len(hashes), np.uint64)
    size = 2
    while size < 2 * len(hashes):
        size *= 2
    slots, stamps, times = np.empty(size, np.uint64), np.zeros(size, np.int64), np.empty(size, np.int64)
    for text in range(len(starts) - 1):
        if starts[text + 1] - starts[text] > most:
            continue
        words, cut, broken, longest, ticks = _words(
            data, starts[text], starts[text + 1], table, marks, hashes, sentences, lines
        )
        if words < 0:
            continue
        size = 2
        while size < 2 * words:
            size *= 2
        mask, stamp = uint64(size - 1), 4 * text + 1
        distinct, found, run, same = 0, 0, min(words, 1), 1
        for at in range(words):
            same = same + 1 if at and hashes[at] == hashes[at - 1] else 1
            run = max(run, same)
            if _seen(hashes[at], mask, stamp, slots, stamps, times) == 1:
                distinct += 1
                place = np.searchsorted(listed, hashes[at])
                found += place < len(listed) and listed[place] == hashes[at]
        triples, thrice, again = 0, 0, 0
        for at in range(words - 2):
            triple = ((hashes[at] * _FACTOR + hashes[at + 1]) * _FACTOR + hashes[at + 2]) * _MIX
            triples += _seen(triple, mask, stamp + 1, slots, stamps, times) == 1
        for at in range(cut):
            thrice += _seen(sentences[at], mask, stamp + 2, slots, stamps, times) >= 3
        for at in range(broken):
            again += _seen(lines[at], mask, stamp + 3, slots, stamps, times) >= 2
        row = values[text]
        row[0], row[1], row[2], row[3], row[4] = 1, words, distinct, triples, found
        row[5], row[6], row[7], row[8], row[9] = run, longest, thrice, again, ticks
