"""Which texts are the same, or nearly: words, shingles, MinHash signatures, buckets, and who represents whom.

A text is a sequence of words. A word is a maximal run of characters that are no white space, every character
lower-cased by itself (so the final sigma is a sigma, and the dotted capital I stays one); of scripts that put no spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is a word. Bytes that are not UTF-8 count
as characters of their own. Texts of several parts are joined with PART, a word of its own.

A shingle is five words in a row, as a 64-bit hash; a text of fewer words is one shingle, all of it, and so is similar
to its equals only. The similarity of two texts is the Jaccard similarity of their sets of shingles.

Finding similar pairs without comparing all of them is MinHash (Broder, 1997) with locality-sensitive hashing (Indyk
and Motwani, 1998): texts that agree in a band of their signatures meet in a bucket and are compared exactly. Signatures
only propose; the exact sets decide.

Two implementations give the same result: numpy here for small inputs, and numba in near_compiled.py, whose compilation
takes seconds, for large ones.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SHINGLE = 5
"""Words in a shingle."""
PERMUTATIONS = 128
"""Values in a MinHash signature."""
PART = "\x1e"
"""Between the parts of a text (messages, answer): ASCII's record separator, a word of its own."""
RECALL = 0.998
"""The least chance that a pair exactly at the threshold meets in a bucket."""
COMPILE_BYTES = 8 << 20
"""From so much text on, the compiled code is faster than numpy although it may have to be compiled first. A batch of so
much text is never left to numpy, which takes forty times its size: a file that repeats its texts is a small one."""
COMPILE_PAIRS = 500_000
"""The same for the comparing of so many pairs."""
LARGE = 500
"""Rows in a bucket from which on comparing each with each costs more than `narrow` does."""

Bits = NDArray[np.uint64]
Rows = NDArray[np.int64]

ALONE = np.uint32(1 << 31)  # flag in a table: this character is a word by itself
DIGIT = np.uint32(1 << 30)  # flag in a table: all words of nothing but these are the same word
_CHARACTERS = 0x110000
# Characters of scripts that are written without spaces between words.
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip

# Odd multipliers of the polynomial hashes, all arithmetic modulo 2**64. They are part of the results: changing one
# changes which pairs near the threshold are found.
CHARACTER = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
WORD = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F))
SHINGLING = np.uint64(0xE7037ED1A0B428DB)
NUMBER = np.uint64(0x589965CC75374CC3)  # in place of the hash of a word of DIGITs
BANDING = np.uint64(0x8EBC6AF09C88C6E3)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Scheme(NamedTuple):
    """How a signature of PERMUTATIONS values is cut into bands; two texts meet if one band of theirs is equal."""

    bands: int
    rows: int


class Sketch(NamedTuple):
    """What is remembered of n texts."""

    fingerprints: Bits  # (n, 2): 128 bits of the sequence of words
    words: Rows  # (n,): how many words
    keys: NDArray[np.uint32]  # (bands, n): a hash of each band of the signature


class Sets(NamedTuple):
    """n sets of shingles, one after the other."""

    values: Bits  # sorted within a set, distinct
    starts: Rows  # (n + 1,): set i is values[starts[i]:starts[i + 1]]


class Buckets(NamedTuple):
    """Who meets whom: bucket i holds the rows members[starts[i]:starts[i + 1]]. The first core[i] of them meet all the
    others, the rest meets only these."""

    members: Rows
    starts: Rows
    core: Rows


def scheme(threshold: float) -> Scheme:
    """The bands for a threshold: as many rows to a band as leave a pair exactly at the threshold RECALL's chance to
    meet, so that as few other pairs as possible do. 21 bands of 6 rows at 0.8."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return Scheme(bands, rows)
    return Scheme(PERMUTATIONS, 1)


@functools.cache
def word_table() -> NDArray[np.uint32]:
    """Code point -> 0 for white space, else the lower-cased code point, with ALONE where it is a word by itself."""
    table = np.arange(_CHARACTERS, dtype=np.uint32)
    for character in range(0x20000):  # no capital letters beyond
        lower = chr(character).lower()
        if len(lower) == 1:
            table[character] = ord(lower)
        if chr(character).isspace():
            table[character] = 0
    table[0x03C2] = 0x03C3  # final sigma
    for first, last in UNSPACED:
        table[first : last + 1] |= ALONE
    table[0] = 0
    table[ord(PART)] = ALONE | np.uint32(ord(PART))
    return table


@functools.cache
def permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Multipliers and addends of PERMUTATIONS permutations x -> a x + b of the 32-bit numbers."""
    random = np.random.Generator(np.random.PCG64(1997))
    a = random.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    b = random.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return a, b


def sketch(texts: pa.Array, cut: Scheme, compiled: bool = False) -> Sketch:
    """Fingerprints, word counts and band keys of n texts (an Arrow string array without nulls)."""
    if compiled or texts.nbytes >= COMPILE_BYTES:
        from pipeline import near_compiled

        return near_compiled.sketch(texts, cut)
    words = _words(texts, word_table())
    values, starts = _shingles(words, SHINGLE)
    minima = _minima((values >> np.uint64(32)).astype(np.uint32), starts)
    keys = np.empty((cut.bands, len(texts)), np.uint32)
    for band in range(cut.bands):
        key = np.zeros(len(texts), np.uint64)
        for row in range(band * cut.rows, (band + 1) * cut.rows):
            key = key * BANDING + minima[row]
        keys[band] = mix(key) >> np.uint64(32)
    return Sketch(words.fingerprints, np.diff(words.starts), keys)


def shingle_sets(
    texts: pa.Array, table: NDArray[np.uint32] | None = None, size: int = SHINGLE, compiled: bool = False
) -> Sets:
    """The set of shingles of each text. `table`: which characters make words, word_table() if not given."""
    table = word_table() if table is None else table
    if compiled or texts.nbytes >= COMPILE_BYTES:
        from pipeline import near_compiled

        return near_compiled.shingle_sets(texts, table, size)
    values, starts = _shingles(_words(texts, table), size)
    owner = np.repeat(np.arange(len(texts)), np.diff(starts))
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    first = np.ones(len(values), bool)
    first[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    return Sets(values[first], _starts(np.bincount(owner[first], minlength=len(texts))))


def word_hashes(texts: pa.Array, table: NDArray[np.uint32], compiled: bool = False) -> tuple[Bits, Rows]:
    """A 64-bit hash of every word of every text: (hashes, starts)."""
    if compiled or texts.nbytes >= COMPILE_BYTES:
        from pipeline import near_compiled

        return near_compiled.word_hashes(texts, table)
    words = _words(texts, table)
    return words.hashes, words.starts


def runs(words: Bits, size: int) -> Bits:
    """The hash of every run of `size` words in a row."""
    hashes = np.zeros(max(0, len(words) - size + 1), np.uint64)
    for offset in range(size):
        hashes = hashes * SHINGLING + words[offset : offset + len(hashes)]
    return mix(hashes)


def buckets(keys: Iterable[NDArray[np.uint32]], alive: Rows) -> Buckets:
    """The buckets in which at least two of the rows `alive` meet, in ascending order, each with each. `keys`: of each
    band, all rows'."""
    members, sizes = [], []
    for band in keys:
        # Key and row in one number: sorting it is several times faster than sorting an index by key.
        packed = np.sort(band[alive].astype(np.uint64) << np.uint64(32) | alive.astype(np.uint64))
        key = packed >> np.uint64(32)
        same = key[1:] == key[:-1]
        meets = np.zeros(len(packed), bool)
        meets[1:] |= same
        meets[:-1] |= same
        first = meets.copy()
        first[1:] &= ~same
        members.append((packed[meets] & np.uint64(0xFFFFFFFF)).astype(np.int64))
        begins = np.flatnonzero(first[meets])
        sizes.append(np.diff(np.append(begins, len(members[-1]))))
    everyone = np.concatenate(members) if members else np.empty(0, np.int64)
    counts = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
    return Buckets(everyone, _starts(counts), counts)


def narrow(met: Buckets, group: Rows, *measures: tuple[Sets, float]) -> Buckets:
    """Smaller buckets in place of those of more than LARGE rows, such as fill where all rows have a passage in common.
    A pair of those rows that reaches the thresholds of all measures still meets.

    `measures`: the rows' sets, and how similar two must be. The one that leaves the fewest pairs serves: rows may have
    much in common by one, and little by another. That is decided in each group of rows, and so does not depend on other
    groups. `group`: of each row the rows that it may meet, a name."""
    large = np.diff(met.starts) > LARGE
    if not large.any():
        return met
    wide = _select(met, large)
    rows = np.unique(wide.members)
    ways = [wide, *(prefix_buckets(rows, group, sets, threshold) for sets, threshold in measures)]
    of = [group[way.members[way.starts[:-1]]] for way in ways]
    costs = [np.bincount(names, pairs(way), group.max() + 1) for names, way in zip(of, ways, strict=True)]
    best = np.argmin(costs, axis=0)
    chosen = [_select(way, best[names] == number) for number, (names, way) in enumerate(zip(of, ways, strict=True))]
    return _concatenate([_select(met, ~large), *chosen])


def prefix_buckets(rows: Rows, group: Rows, sets: Sets, threshold: float) -> Buckets:
    """Buckets in which all pairs of some rows of a group meet whose sets are at least `threshold` similar, one for each
    value that is rare enough.

    This is prefix filtering (Bayardo et al., 2007; Xiao et al., 2008). Put the values of all sets in one order, the
    rarest first. If two sets have k values in common, the first of these is among the first n - k + 1 of a set of n,
    since k - 1 come behind it. Similar sets of n and m <= n values have at least threshold * n in common, and at least
    2 * threshold / (1 + threshold) * m. So the larger one is entered under the values that the first bound leaves, the
    smaller one under the fewer that the second leaves, its core; and as any set may be either, all are both."""
    lengths = np.diff(sets.starts)[rows]
    begin = _starts(lengths)
    owner = np.repeat(np.arange(len(rows), dtype=np.uint32), lengths)
    # The values of each group as numbers, the rarest first.
    keys = sets.values[np.arange(begin[-1]) + (sets.starts[rows] - begin[:-1])[owner]]
    keys += (group[rows].astype(np.uint64) * SHINGLING)[owner]  # each group has values of its own
    order = np.argsort(keys, kind="stable")  # fast where long runs are in order, as sets are
    keys = keys[order]
    number = np.cumsum(np.append(False, keys[1:] != keys[:-1]))
    del keys
    counts = np.bincount(number)
    rank = np.empty(len(counts), np.uint64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts), dtype=np.uint64)
    # Two numbers in one, to be sorted by the first and then the second: the values of each row, the rarest first.
    entries = owner[order].astype(np.uint64) << np.uint64(32)
    del order
    entries |= rank[number]
    del number
    entries.sort()
    place = np.arange(begin[-1]) - begin[owner]
    long, short = (
        lengths - np.ceil(share * lengths - 1e-6).astype(np.int64) + 1
        for share in (threshold, 2 * threshold / (1 + threshold))
    )
    entered = place < long[owner]
    rest = (place >= short[owner])[entered].astype(np.uint64)
    del place, owner
    # The rows of each value, those that have it in their core first.
    entries = entries[entered]
    entries = np.sort(entries << np.uint64(32) | rest << np.uint64(31) | entries >> np.uint64(32))
    value = (entries >> np.uint64(32)).astype(np.int64)
    sizes = np.bincount(value)
    core = np.bincount(value[entries & np.uint64(1 << 31) == 0], minlength=len(sizes))
    met = Buckets(rows[(entries & np.uint64(0x7FFFFFFF)).astype(np.int64)], _starts(sizes), core)
    return _select(met, (sizes > 1) & (core > 0))


def components(count: int, members: Any, starts: Any) -> Any:
    """For each of `count` rows the smallest row that it is connected with through buckets. Plain loops, so that numba
    can compile them as they are."""
    parent = list(range(count))
    for bucket in range(len(starts) - 1):
        for place in range(starts[bucket] + 1, starts[bucket + 1]):
            a, b = members[place - 1], members[place]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a < b:
                parent[b] = a
            else:
                parent[a] = b
    for row in range(count):
        parent[row] = parent[parent[row]]  # a parent is never larger than its child, so it is done already
    return parent


def shared(values: Any, i: Any, i_end: Any, j: Any, j_end: Any, needed: float) -> int:
    """How many values two sorted sets, values[i:i_end] and values[j:j_end], have in common; fewer if they have fewer
    than `needed`, for then the count stops when too few are left. Plain loops, so that numba can compile them."""
    both = 0
    while i < i_end and j < j_end and both + min(i_end - i, j_end - j) >= needed:
        if values[i] == values[j]:
            both += 1
            i += 1
            j += 1
        elif values[i] < values[j]:
            i += 1
        else:
            j += 1
    return both


def choose(
    order: Any,
    fixed: int,
    members: Any,
    starts: Any,
    core: Any,
    values: Any,
    bounds: Any,
    part_values: Any,
    part_bounds: Any,
    threshold: float,
) -> Any:
    """Who is kept and who repeats whom.

    The rows are taken from the best to the worst (`order`); a row that is at least `threshold` similar to rows kept
    before it repeats the most similar of them (the better one of two equally similar), else it is kept. So every row
    that is dropped names a kept one that it is really similar to, no group loses all its rows, and no two rows that are
    kept meet in a bucket and are similar; similarity is not transitive, and a row that is similar to a dropped row only
    is kept.

    Rows are 0 .. n - 1; the first `fixed` of `order` are kept whatever they repeat; members, starts, core: buckets;
    values, bounds: the rows' sets; part_values, part_bounds: sets of which half the threshold is asked besides, or
    empty.
    Returns (leader or -1, similarity) of each row. Plain loops, so that numba can compile them as they are.
    """
    count = len(order)
    leader = [-1] * count
    similarity = [1.0] * count
    # Buckets of each row, from the rows of each bucket: 2 * bucket, and one more if the row is not of its core.
    where = [0] * (count + 1)
    for row in members:
        where[row + 1] += 1
    for row in range(count):
        where[row + 1] += where[row]
    bucket_of = [0] * len(members)
    filled = where[:count]
    for bucket in range(len(starts) - 1):
        for place in range(starts[bucket], starts[bucket + 1]):
            row = members[place]
            bucket_of[filled[row]] = 2 * bucket + (0 if place - starts[bucket] < core[bucket] else 1)
            filled[row] += 1
    # The kept rows of each bucket, as linked lists: newest[2 * bucket] -> entry -> older[entry] -> ... for its core,
    # newest[2 * bucket + 1] for the rest.
    newest = [-1] * (2 * len(starts))
    older = [-1] * len(members)
    entry_row = [0] * len(members)
    rank = [0] * count
    for place in range(count):
        rank[order[place]] = place
    seen = [-1] * count
    entries = 0
    for row in order:
        best, best_similarity = -1, 0.0
        for place in range(where[row], where[row + 1] if rank[row] >= fixed else where[row]):
            code = bucket_of[place]
            for side in range(2 - code % 2):
                entry = newest[code - code % 2 + side]
                while entry >= 0:
                    other = entry_row[entry]
                    entry = older[entry]
                    if seen[other] == row:
                        continue
                    seen[other] = row
                    # First the parts: they are shorter, and where a long prompt is the same in all rows they differ.
                    if len(part_bounds) > 0:
                        i, i_end = part_bounds[row], part_bounds[row + 1]
                        j, j_end = part_bounds[other], part_bounds[other + 1]
                        total = i_end - i + j_end - j
                        both = shared(part_values, i, i_end, j, j_end, threshold * total / (2.0 + threshold) - 1e-6)
                        if 2 * both < threshold * (total - both):
                            continue
                    total = bounds[row + 1] - bounds[row] + bounds[other + 1] - bounds[other]
                    needed = threshold * total / (1.0 + threshold) - 1e-6
                    both = shared(values, bounds[row], bounds[row + 1], bounds[other], bounds[other + 1], needed)
                    jaccard = both / (total - both)
                    if jaccard < threshold or jaccard < best_similarity:
                        continue
                    if jaccard == best_similarity and rank[other] > rank[best]:
                        continue
                    best, best_similarity = other, jaccard
        if best >= 0:
            leader[row] = best
            similarity[row] = best_similarity
            continue
        for place in range(where[row], where[row + 1]):
            code = bucket_of[place]
            entry_row[entries] = row
            older[entries] = newest[code]
            newest[code] = entries
            entries += 1
    return leader, similarity


def connect(count: int, members: Any, starts: Any, core: Any, values: Any, bounds: Any, threshold: float) -> Any:
    """For each of `count` rows the smallest row that a chain of similar rows, each of which met the next in a bucket,
    connects it with. Arguments as of `choose`. Plain loops, so that numba can compile them as they are."""
    parent = list(range(count))
    # The rows of a bucket that are known to be connected, as linked lists: a row is compared with those of a list until
    # it is similar to one, so that a bucket of rows that are all alike takes no comparison of each with each.
    first, last, following = [0] * count, [0] * count, [-1] * count
    for bucket in range(len(starts) - 1):
        lists = 0
        for place in range(starts[bucket], starts[bucket + 1]):
            row = members[place]
            following[row] = -1
            in_core = place - starts[bucket] < core[bucket]  # the rest is compared with, but not by, the others
            begin, end, apart = row if in_core else -1, row if in_core else -1, 0
            for number in range(lists):
                a, b = row, first[number]
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                other = first[number]
                while a != b and other >= 0:
                    total = bounds[row + 1] - bounds[row] + bounds[other + 1] - bounds[other]
                    needed = threshold * total / (1.0 + threshold) - 1e-6
                    both = shared(values, bounds[row], bounds[row + 1], bounds[other], bounds[other + 1], needed)
                    if both / (total - both) >= threshold:
                        a, b = min(a, b), max(a, b)
                        parent[b] = a
                        b = a
                    other = following[other]
                if a == b:
                    if end >= 0:
                        following[end] = first[number]
                    else:
                        begin = first[number]
                    end = last[number]
                else:
                    first[apart], last[apart] = first[number], last[number]
                    apart += 1
            if end >= 0:
                first[apart], last[apart] = begin, end
                apart += 1
            lists = apart
    for row in range(count):
        parent[row] = parent[parent[row]]  # a parent is never larger than its child, so it is done already
    return parent


def many_pairs(met: Buckets) -> bool:
    """Whether so many pairs meet in buckets that comparing them is worth compiling."""
    return int(pairs(met).sum()) >= COMPILE_PAIRS


def pairs(met: Buckets) -> Rows:
    """How many pairs meet in each bucket."""
    return met.core * (2 * np.diff(met.starts) - met.core - 1) // 2


def _select(met: Buckets, chosen: NDArray[np.bool_]) -> Buckets:
    sizes = np.diff(met.starts)
    return Buckets(met.members[np.repeat(chosen, sizes)], _starts(sizes[chosen]), met.core[chosen])


def _concatenate(parts: Sequence[Buckets]) -> Buckets:
    return Buckets(
        np.concatenate([part.members for part in parts]),
        _starts(np.concatenate([np.diff(part.starts) for part in parts])),
        np.concatenate([part.core for part in parts]),
    )


def loop(function: Any, compiled: bool, *arguments: Any) -> tuple[NDArray[Any], ...]:
    """Run `components`, `connect` or `choose`, compiled or on lists (several times faster than on arrays when they are
    not compiled), and give the results as arrays."""
    if compiled:
        from pipeline import near_compiled

        result = getattr(near_compiled, function.__name__)(*arguments)
    else:
        result = function(*(a.tolist() if isinstance(a, np.ndarray) else a for a in arguments))
    return tuple(np.asarray(part) for part in (result if isinstance(result, tuple) else (result,)))


class _Words(NamedTuple):
    hashes: Bits  # of every word of all texts
    starts: Rows  # text i has the words starts[i] .. starts[i + 1] - 1
    fingerprints: Bits  # (texts, 2)


def _starts(sizes: Any) -> Rows:
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def mix(x: Bits) -> Bits:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * MIX[0]
    x = (x ^ (x >> np.uint64(27))) * MIX[1]
    return x ^ (x >> np.uint64(31))


def _polynomials(values: Bits, starts: Rows, factor: np.uint64) -> Bits:
    """sum of values[k] * factor ** (end - 1 - k) over each run that begins at starts[:-1]; 0 for an empty run."""
    sizes = np.diff(starts)
    result = np.zeros(len(sizes), np.uint64)
    if len(values):
        powers = np.full(int(sizes.max()), factor, np.uint64)
        powers[0] = 1
        powers = np.multiply.accumulate(powers)
        power = powers[np.repeat(starts[1:], sizes) - 1 - np.arange(len(values))]
        filled = sizes > 0
        result[filled] = np.add.reduceat(values * power, starts[:-1][filled])
    return result


def _words(texts: pa.Array, table: NDArray[np.uint32]) -> _Words:
    # Undecodable bytes become lone surrogates, one each, as in the compiled code.
    decoded = [text.decode("utf-8", "surrogateescape") for text in texts.cast(pa.binary()).to_pylist()]
    # A NUL after each text, white space in every table, so that no word reaches into the next text.
    codes = table[np.frombuffer("\0".join([*decoded, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)]
    text_of = np.repeat(np.arange(len(decoded)), [len(text) + 1 for text in decoded])
    filled = codes != 0
    alone = (codes & ALONE) != 0
    begins = filled.copy()
    begins[1:] &= ~filled[:-1] | alone[1:] | alone[:-1]
    codes = codes[filled]
    first = np.flatnonzero(begins[filled])
    bounds = np.append(first, len(codes))
    counts = np.bincount(text_of[begins], minlength=len(decoded))
    starts = _starts(counts)
    wide = codes.astype(np.uint64)
    hashes = [mix(_polynomials(wide, bounds, factor)) for factor in CHARACTER]
    if len(first):
        numbers = np.logical_and.reduceat((codes & DIGIT) != 0, first)
        for part in hashes:
            part[numbers] = NUMBER
    prints = [mix(_polynomials(h, starts, factor)) for h, factor in zip(hashes, WORD, strict=True)]
    return _Words(hashes[0], starts, np.stack(prints, axis=1))


def _shingles(words: _Words, size: int) -> tuple[Bits, Rows]:
    """Every text's shingles in their order, repeated ones too: (values, starts)."""
    hashes, counts = words.hashes, np.diff(words.starts)
    short = counts < size
    # The shingle that begins at each word; those that reach over a text's end are left out below.
    windows = runs(hashes, size)
    sizes = np.where(short, 1, counts - size + 1)
    starts = _starts(sizes)
    values = np.empty(starts[-1], np.uint64)
    values[starts[:-1][short]] = words.fingerprints[short, 0]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(values)) - starts[owner] + words.starts[owner]
    full = ~short[owner]
    values[full] = windows[place[full]]
    return values, starts


def _minima(values: NDArray[np.uint32], starts: Rows) -> NDArray[np.uint32]:
    """(PERMUTATIONS, n): the MinHash signature of each text. Every text has at least one shingle."""
    multiply, add = permutations()
    result = np.empty((PERMUTATIONS, len(starts) - 1), np.uint32)
    for row in range(PERMUTATIONS if len(starts) > 1 else 0):
        np.minimum.reduceat(values * multiply[row] + add[row], starts[:-1], out=result[row])
    return result
