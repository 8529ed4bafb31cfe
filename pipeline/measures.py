"""Counts of the words of many texts, as machine code: what lets the filter stage leave most of its rules unasked.

Words are those of `text.lower().split()` with typographic apostrophes made plain, so that a rule that counts them in
Python (rules.Answer.words) comes to the same numbers. Compiling takes some seconds on the first use on a machine.
"""

import functools
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
_APOSTROPHE, _NEWLINE = np.uint32(0x27), np.uint32(0x0A)
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
    newlines: NDArray[np.int64]


def count(texts: pa.Array, listed: Iterable[str]) -> Counts:
    """Counts of n texts (an Arrow string array without nulls, its UTF-8 valid). listed: words in lower case, at most
    some hundred."""
    data, starts = _buffers(texts)
    longest = min(LONGEST, int(np.diff(starts).max())) if len(texts) else 0
    values = np.zeros((len(texts), 8), np.int64)
    _count(data, starts, _lower_case(), _list(tuple(listed)), longest, values)
    return Counts(values[:, 0] == 1, *values[:, 1:].T)


@functools.cache
def _lower_case() -> NDArray[np.uint32]:
    """Code point -> its lower-case letter, 0 for white space, _UNKNOWN where what becomes of it is no single character
    or hangs on its neighbours."""
    table = np.arange(0x110000, dtype=np.uint32)
    for character in range(0x20000):  # no capital letters beyond
        lower = chr(character).lower()
        table[character] = _SPACE if lower.isspace() else ord(lower) if len(lower) == 1 else _UNKNOWN
    table[0x03A3] = _UNKNOWN  # the final sigma is another letter
    table[0], table[0x2019] = _NUL, _APOSTROPHE
    return table


@functools.cache
def _list(words: tuple[str, ...]) -> NDArray[np.uint64]:
    """The hashes of some words, sorted."""
    data, starts = _buffers(pa.array(words, pa.string()))
    hashes = np.empty(int(starts[-1]) + 1, np.uint64)
    found = [hashes[0] for at in range(len(words)) if _words(data, starts[at], starts[at + 1], _lower_case(), hashes)]
    return np.sort(np.array(found, np.uint64))


def _buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of a string array without nulls, and where each text begins in them."""
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.zeros(1, np.uint8), np.zeros(len(texts) + 1, np.int64)
    starts = np.frombuffer(offsets, np.int32, count=len(texts) + 1, offset=texts.offset * 4)
    return np.frombuffer(data, np.uint8), starts.astype(np.int64)


@jit
def _words(data: Any, begin: int, end: int, table: Any, hashes: Any) -> Any:
    """Write the hash of each word of a text into `hashes`; return (words, characters of the longest, newlines), or
    (-1, 0, 0) if a character is _UNKNOWN."""
    words, longest, newlines, letters = 0, 0, 0, 0
    value = uint64(0)
    at = begin
    while at < end:
        character = uint32(data[at])
        if character < uint32(0x80):
            at += 1
        elif character < uint32(0xE0):
            character = (character & uint32(0x1F)) << uint32(6) | (uint32(data[at + 1]) & uint32(0x3F))
            at += 2
        elif character < uint32(0xF0):
            character = (
                (character & uint32(0x0F)) << uint32(12)
                | (uint32(data[at + 1]) & uint32(0x3F)) << uint32(6)
                | (uint32(data[at + 2]) & uint32(0x3F))
            )
            at += 3
        else:
            character = (
                (character & uint32(0x07)) << uint32(18)
                | (uint32(data[at + 1]) & uint32(0x3F)) << uint32(12)
                | (uint32(data[at + 2]) & uint32(0x3F)) << uint32(6)
                | (uint32(data[at + 3]) & uint32(0x3F))
            )
            at += 4
        lower = table[character]
        if lower == _UNKNOWN:
            return -1, 0, 0
        if lower != _SPACE:
            value = value * _FACTOR + uint64(lower)
            letters += 1
            continue
        newlines += character == _NEWLINE
        if letters:
            hashes[words] = (value ^ (value >> _SHIFT)) * _MIX
            words += 1
            longest = max(longest, letters)
            value, letters = uint64(0), 0
    if letters:
        hashes[words] = (value ^ (value >> _SHIFT)) * _MIX
        words += 1
        longest = max(longest, letters)
    return words, longest, newlines


@jit
def _new(value: Any, mask: Any, stamp: int, slots: Any, stamps: Any) -> bool:
    """Put a hash into the open table of a stamp; whether it was not there yet."""
    slot = np.int64((value ^ (value >> uint64(32))) & mask)
    while stamps[slot] == stamp:
        if slots[slot] == value:
            return False
        slot = np.int64(uint64(slot + 1) & mask)
    slots[slot], stamps[slot] = value, stamp
    return True


@jit
def _count(data: Any, starts: Any, table: Any, listed: Any, most: int, values: Any) -> None:
    hashes = np.empty(most // 2 + 2, np.uint64)  # two bytes a word at the least
    size = 2
    while size < 2 * len(hashes):
        size *= 2
    slots, stamps = np.empty(size, np.uint64), np.zeros(size, np.int64)
    for text in range(len(starts) - 1):
        if starts[text + 1] - starts[text] > most:
            continue
        words, longest, newlines = _words(data, starts[text], starts[text + 1], table, hashes)
        if words < 0:
            continue
        size = 2
        while size < 2 * words:
            size *= 2
        mask = uint64(size - 1)
        distinct, found, run, again = 0, 0, min(words, 1), 1
        for at in range(words):
            again = again + 1 if at and hashes[at] == hashes[at - 1] else 1
            run = max(run, again)
            if _new(hashes[at], mask, 2 * text + 1, slots, stamps):
                distinct += 1
                place = np.searchsorted(listed, hashes[at])
                found += place < len(listed) and listed[place] == hashes[at]
        triples = 0
        for at in range(words - 2):
            triple = ((hashes[at] * _FACTOR + hashes[at + 1]) * _FACTOR + hashes[at + 2]) * _MIX
            triples += _new(triple, mask, 2 * text + 2, slots, stamps)
        row = values[text]
        row[0], row[1], row[2], row[3] = 1, words, distinct, triples
        row[4], row[5], row[6], row[7] = found, run, longest, newlines
