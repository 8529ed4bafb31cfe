"""The loops of near.py as machine code, for large inputs; the same results, bit for bit.

The functions that read text take the offsets and bytes of an Arrow string array as they lie in memory. They release
the interpreter's lock, so that threads use all cores. Compiled code is kept (NUMBA_CACHE_DIR, else __pycache__ beside
this file, else the user's cache folder); the first use on a machine takes some seconds.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numba import uint32, uint64
from numba.extending import register_jitable
from numpy.typing import NDArray

from pipeline import near
from pipeline.near import (
    ALONE,
    BANDING,
    CHARACTER,
    DIGIT,
    MIX,
    NUMBER,
    PERMUTATIONS,
    SHINGLE,
    SHINGLING,
    WORD,
    Scheme,
    Sets,
    Sketch,
)

C1, C2 = CHARACTER
W1, W2 = WORD
M1, M2 = MIX
# Typed by hand: numba would make a signed or floating number of a mixed expression.
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
TOP = np.uint32(0xFFFFFFFF)


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the code where a folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(nogil=True)(function)


register_jitable(near.shared)  # the two below call it
choose = jit(near.choose)
components = jit(near.components)
connect = jit(near.connect)


def sketch(texts: pa.Array, cut: Scheme) -> Sketch:
    """near.sketch."""
    data, offsets = _buffers(texts)
    count = len(texts)
    prints = np.empty((count, 2), np.uint64)
    words = np.empty(count, np.int64)
    keys = np.empty((cut.bands, count), np.uint32)
    a, b = near.permutations()
    longest = _longest(offsets)

    def work(begin: int, end: int) -> None:
        _sketch(data, offsets, begin, end, near.word_table(), a, b, cut.rows, longest, prints, words, keys)

    _spread(work, count)
    return Sketch(prints, words, keys)


def shingle_sets(texts: pa.Array, table: NDArray[np.uint32], size: int) -> Sets:
    """near.shingle_sets."""
    return Sets(*_collect(_sets, texts, table, size))


def word_hashes(texts: pa.Array, table: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """near.word_hashes."""
    return _collect(_hashes, texts, table)


def _collect(
    read: Callable[..., Any], texts: pa.Array, *arguments: Any
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """What `read` finds in slices of the texts, one after the other: (values, starts)."""
    data, offsets = _buffers(texts)
    count = len(texts)
    longest = _longest(offsets)
    parts: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}

    def work(begin: int, end: int) -> None:
        parts[begin] = read(data, offsets, begin, end, *arguments, longest)

    _spread(work, count)
    values = [parts[begin][0] for begin in sorted(parts)]
    sizes = [parts[begin][1] for begin in sorted(parts)]
    starts = np.zeros(count + 1, np.int64)
    if count:
        np.cumsum(np.concatenate(sizes), out=starts[1:])
    return np.concatenate(values) if count else np.empty(0, np.uint64), starts


def _buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of a string array without nulls, and where each text begins in them."""
    _, offsets, data = texts.buffers()
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    if len(texts) == 0 or data is None:
        return np.zeros(1, np.uint8), np.zeros(len(texts) + 1, np.int64)
    starts = np.frombuffer(offsets, width, count=len(texts) + 1, offset=texts.offset * np.dtype(width).itemsize)
    return np.frombuffer(data, np.uint8), starts.astype(np.int64)


def _longest(offsets: NDArray[np.int64]) -> int:
    """Bytes of the longest text, the size of the scratch space."""
    return int(np.diff(offsets).max()) if len(offsets) > 1 else 0


def _spread(work: Callable[[int, int], None], count: int) -> None:
    """Call work(begin, end) for slices of the texts, on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or count < 64:
        work(0, count)
        return
    bounds = [count * part // cores for part in range(cores + 1)]
    with ThreadPoolExecutor(cores) as pool:
        for done in [pool.submit(work, begin, end) for begin, end in itertools.pairwise(bounds)]:
            done.result()


@jit
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _30)) * M1
    x = (x ^ (x >> _27)) * M2
    return x ^ (x >> _31)


@jit
def _words(data: Any, begin: int, end: int, table: Any, hashes: Any) -> Any:
    """Write the hash of each word of a text into `hashes`; return (words, fingerprint, fingerprint)."""
    count = 0
    first, second = uint64(0), uint64(0)
    h1, h2 = uint64(0), uint64(0)
    inside = False
    number = True
    at = begin
    while at < end:
        byte = uint32(data[at])
        at += 1
        if byte < uint32(0x80):
            character = byte
        else:
            # UTF-8 by the book; a byte that is no part of it becomes the lone surrogate DC80 + byte - 80.
            character = uint32(0xDC00) + byte
            if uint32(0xC2) <= byte <= uint32(0xDF):
                if at < end and data[at] & 0xC0 == 0x80:
                    character = (byte & uint32(0x1F)) << uint32(6) | (uint32(data[at]) & uint32(0x3F))
                    at += 1
            elif uint32(0xE0) <= byte <= uint32(0xEF):
                if at + 1 < end and data[at] & 0xC0 == 0x80 and data[at + 1] & 0xC0 == 0x80:
                    found = (
                        (byte & uint32(0x0F)) << uint32(12)
                        | (uint32(data[at]) & uint32(0x3F)) << uint32(6)
                        | (uint32(data[at + 1]) & uint32(0x3F))
                    )
                    if found >= uint32(0x800) and not uint32(0xD800) <= found <= uint32(0xDFFF):
                        character = found
                        at += 2
            elif (
                uint32(0xF0) <= byte <= uint32(0xF4)
                and at + 2 < end
                and data[at] & 0xC0 == 0x80
                and data[at + 1] & 0xC0 == 0x80
                and data[at + 2] & 0xC0 == 0x80
            ):
                found = (
                    (byte & uint32(0x07)) << uint32(18)
                    | (uint32(data[at]) & uint32(0x3F)) << uint32(12)
                    | (uint32(data[at + 1]) & uint32(0x3F)) << uint32(6)
                    | (uint32(data[at + 2]) & uint32(0x3F))
                )
                if uint32(0x10000) <= found <= uint32(0x10FFFF):
                    character = found
                    at += 3
        code = table[character]
        alone = code & ALONE != 0
        if inside and (code == 0 or alone):
            hashes[count] = NUMBER if number else _mix(h1)
            first = first * W1 + hashes[count]
            second = second * W2 + (NUMBER if number else _mix(h2))
            count += 1
            inside = False
        if code == 0:
            continue
        if not inside:
            h1, h2, number = uint64(0), uint64(0), True
        h1 = h1 * C1 + uint64(code)
        h2 = h2 * C2 + uint64(code)
        number &= code & DIGIT != 0
        inside = not alone
        if alone:
            hashes[count] = NUMBER if number else _mix(h1)
            first = first * W1 + hashes[count]
            second = second * W2 + (NUMBER if number else _mix(h2))
            count += 1
    if inside:
        hashes[count] = NUMBER if number else _mix(h1)
        first = first * W1 + hashes[count]
        second = second * W2 + (NUMBER if number else _mix(h2))
        count += 1
    return count, _mix(first), _mix(second)


@jit
def _shingle(hashes: Any, count: int, size: int, whole: Any) -> int:
    """Replace the words' hashes by the shingles', that of a short text by `whole`; return how many there are."""
    if count < size:
        hashes[0] = whole
        return 1
    for at in range(count - size + 1):
        value = hashes[at]
        for offset in range(1, size):
            value = value * SHINGLING + hashes[at + offset]
        hashes[at] = _mix(value)
    return count - size + 1


@jit
def _sketch(
    data: Any, offsets: Any, begin: int, end: int, table: Any, a: Any, b: Any, rows: int, longest: int,
    prints: Any, words: Any, keys: Any,
) -> None:  # fmt: skip
    hashes = np.empty(longest + 1, np.uint64)
    minima = np.empty(PERMUTATIONS, np.uint32)
    for text in range(begin, end):
        count, first, second = _words(data, offsets[text], offsets[text + 1], table, hashes)
        prints[text, 0], prints[text, 1], words[text] = first, second, count
        if keys.shape[0] == 0:
            continue
        shingles = _shingle(hashes, count, SHINGLE, first)
        minima[:] = TOP
        for at in range(shingles):
            x = uint32(hashes[at] >> _32)
            for row in range(PERMUTATIONS):  # the hot loop: vector instructions, 8 or 16 permutations at a time
                minima[row] = min(minima[row], uint32(a[row] * x + b[row]))
        for band in range(keys.shape[0]):
            key = uint64(0)
            for row in range(band * rows, (band + 1) * rows):
                key = key * BANDING + uint64(minima[row])
            keys[band, text] = uint32(_mix(key) >> _32)


@jit
def _room(values: Any, filled: int, more: int) -> Any:
    """The values, in a longer array if there is no room for `more`."""
    if filled + more <= len(values):
        return values
    grown = np.empty(2 * len(values) + more, np.uint64)
    grown[:filled] = values[:filled]
    return grown


@jit
def _hashes(data: Any, offsets: Any, begin: int, end: int, table: Any, longest: int) -> Any:
    hashes = np.empty(longest + 1, np.uint64)
    sizes = np.empty(end - begin, np.int64)
    values = np.empty(max(16, (offsets[end] - offsets[begin]) // 4), np.uint64)
    filled = 0
    for text in range(begin, end):
        count, _, _ = _words(data, offsets[text], offsets[text + 1], table, hashes)
        values = _room(values, filled, count)
        values[filled : filled + count] = hashes[:count]
        filled += count
        sizes[text - begin] = count
    return values[:filled].copy(), sizes


@jit
def _sets(data: Any, offsets: Any, begin: int, end: int, table: Any, size: int, longest: int) -> Any:
    hashes = np.empty(longest + 1, np.uint64)
    sizes = np.empty(end - begin, np.int64)
    values = np.empty(max(16, (offsets[end] - offsets[begin]) // 4 + 2 * (end - begin)), np.uint64)
    filled = 0
    for text in range(begin, end):
        count, first, _ = _words(data, offsets[text], offsets[text + 1], table, hashes)
        shingles = _shingle(hashes, count, size, first)
        values = _room(values, filled, shingles)
        ordered = np.sort(hashes[:shingles])
        before = filled
        for at in range(shingles):
            if at == 0 or ordered[at] != ordered[at - 1]:
                values[filled] = ordered[at]
                filled += 1
        sizes[text - begin] = filled - before
    return values[:filled].copy(), sizes
