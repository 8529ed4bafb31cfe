"""Which texts repeat a held-out question, whole or edited.

Words are runs of letters, digits and marks, lower-cased; punctuation separates them and ends clauses. FUNCTION_WORDS
say little by themselves; all other words, question words and negations among them, are content.

An item of at least SHORT_BELOW words is repeated by a text that has, in one place and in order, the share `overlap` of
its words (the longest common subsequence with a window of the text about as long as the item). Every number counts as
the same word, so that a copy with other numbers is still a copy. Besides, PART_SHARE of `overlap` is asked of parts of
the item by themselves: of the subject, if it is known, and of the words around it, for what a question is about is not
yet the question ("For the World Is Hollow and I Have Touched the Sky" is in any question about that episode);
otherwise of its content without stock phrases, runs of words that more than STOCK_ITEMS items share ("Which of the
following is the best"). Places to look at are where text and item have the same RUN words in a row, or, for an item of
fewer than PAIRS_BELOW words, the same two content words next to each other but for function words and numbers; stock
phrases and runs that are mostly numbers make no place.

A shorter item is repeated by a text that has it as a whole clause, numbers included, word for word or with one function
word replaced, left out or put in; with another content word it would be another question ("Who painted the bridge?").
One of fewer than CLAUSE_FROM words is repeated only by a whole message, word for word, and so is one with a single
content word by a clause. An item that is mostly numbers is repeated word for word as a whole clause.

Word n-gram overlap is the usual test (Brown et al., 2020, appendix C, use 8 to 13 words); an 8-gram misses a copy of a
short question in which one word was changed, hence the short runs and the second look.
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

SHORT_BELOW = 8
CLAUSE_FROM = 4
RUN = 4
PAIRS_BELOW = 16
"""A longer item with a tenth of its words replaced still has RUN of them in a row."""
STOCK_ITEMS = 3
"""What more items than this share is a stock phrase."""
PART_SHARE = 0.75
"""What is asked of parts of an item, as a share of `overlap`."""
FUNCTION_WORDS = """
a an the this that these those there it its is are was were am be been being do does did has have had
can could will would shall should of in on at as s re ve
""".split()  # noqa: SIM905
"""English words of which one can be exchanged for another without making another question ("what's" is two words). Of
another language all words are content. None tells who to whom, when, or whether at all: I, from, by, not, how."""


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


class _Words(NamedTuple):
    """The words of texts, one text after the other; near.PART is a word."""

    starts: near.Rows  # text i has the words starts[i] .. starts[i + 1] - 1
    exact: near.Bits  # hash of each word
    merged: near.Bits  # the same, all numbers alike
    function: NDArray[np.bool_]
    clauses: NDArray[np.bool_]  # whether a clause may begin before this word and end behind the one before; words + 1
    parts: NDArray[np.bool_]  # the same for the parts of the text


class _Places(NamedTuple):
    """Which items have a run, pair or clause."""

    hashes: near.Bits  # sorted
    items: list[list[tuple[int, int]]]  # for each hash (item, where in the item)


class _Part(NamedTuple):
    """Words of an item of which a copy must have some in order."""

    bits: dict[int, int]  # word -> bits of its places
    size: int
    needed: float


class Index(NamedTuple):
    """Items, prepared for `find`."""

    exact: list[list[int]]  # words of each item
    long: dict[int, list[_Part]]  # of each long item, what is asked of a copy; first of all its words
    runs: _Places
    pairs: _Places
    clauses: _Places


class _Tables(NamedTuple):
    """Tables of near.py: letters, digits and marks make words; other signs and line breaks are EDGE, a word."""

    exact: NDArray[np.uint32]
    merged: NDArray[np.uint32]  # all numbers alike


EDGE = "\n"


@functools.cache
def _tables() -> _Tables:
    exact = near.word_table().copy()
    merged = exact.copy()
    edge = near.ALONE | np.uint32(ord(EDGE))
    for character in range(0x20000):
        if unicodedata.category(chr(character))[0] not in "LNM":
            space = (exact[character] == 0 and chr(character) != EDGE) or chr(character) in "'\u2019-_"
            exact[character] = merged[character] = 0 if space else edge
        elif chr(character).isdecimal():
            merged[character] |= near.DIGIT
    for table in (exact, merged):
        table[ord(near.PART)] = near.ALONE | np.uint32(ord(near.PART))
    return _Tables(exact, merged)


class _Marks(NamedTuple):
    """Hashes of words."""

    edge: int
    part: int
    function: near.Bits  # sorted


@functools.cache
def _marks() -> _Marks:
    said = pa.array([EDGE + near.PART + " ".join(FUNCTION_WORDS)])
    edge, part, *function = near.word_hashes(said, _tables().exact)[0].tolist()
    return _Marks(edge, part, np.array(sorted(function), np.uint64))


def index(items: Sequence[Item], overlap: float) -> Index:
    """Prepare items; `overlap`: the share of an item's words that make a copy."""
    words = _read(pa.array([item.text for item in items], pa.string()))
    subjects = _read(pa.array([item.subject for item in items], pa.string()))
    begins, sizes = words.starts[:-1], np.diff(words.starts)
    numbers = np.append(0, np.cumsum(words.merged == near.NUMBER))  # how many before each word
    exact = _split(words.exact, words.starts)
    # Of items that are the same the first is looked for, which is the one that is named.
    again = np.ones(len(sizes), bool)
    again[list({tuple(item): n for n, item in reversed(list(enumerate(exact)))}.values())] = False
    long = ~again & (sizes >= SHORT_BELOW) & (2 * (numbers[words.starts[1:]] - numbers[begins]) <= sizes)

    at, last, hashes = _runs(words)
    chosen = long[_rows(words, at)] & (2 * (numbers[last + 1] - numbers[at]) <= RUN)
    runs = _by_item(words, at[chosen], last[chosen], hashes[chosen])
    stock = _stock(runs)
    parts = {}
    for n in np.flatnonzero(long).tolist():
        within = slice(words.starts[n], words.starts[n + 1])
        subject = subjects.merged[subjects.starts[n] : subjects.starts[n + 1]].tolist()
        plain = words.function[within].copy()  # what is not asked for by itself
        for value, where in runs.get(n, ()):
            if value in stock:
                plain[where : where + RUN] = True
        parts[n] = _parts(words.merged[within].tolist(), subject, plain.tolist(), overlap)
    runs = {n: [run for run in of_item if run[0] not in stock] or of_item for n, of_item in runs.items()}

    at, last, hashes = _pairs(words)
    # Two characters of a script without spaces are no more than a syllable or two of another, and found everywhere.
    characters = {c for item in items for c in item.text if near.word_table()[ord(c)] & near.ALONE}
    unspaced = near.word_hashes(pa.array(sorted(characters), pa.string()), _tables().merged)[0]
    chosen = (long & (sizes < PAIRS_BELOW))[_rows(words, at)]
    chosen &= ~np.isin(words.merged[at], unspaced) & ~np.isin(words.merged[last], unspaced)
    pairs = _by_item(words, at[chosen], last[chosen], hashes[chosen])
    stock = _stock(pairs)
    pairs = {n: [pair for pair in of_item if pair[0] not in stock] for n, of_item in pairs.items()}

    short = np.flatnonzero(~again & ~long & (sizes > 0))
    clauses = {}
    for size, at, hashes in _clauses(words, begins[short]):
        for n, value in zip(_rows(words, at).tolist(), hashes.tolist(), strict=True):
            if size == min(sizes[n], SHORT_BELOW - 1):
                clauses[n] = [(value, 0)]
    return Index(exact, parts, *map(_places, (runs, pairs, clauses)))


def find(index: Index, texts: pa.Array, compiled: bool = False) -> list[Hit]:
    """The texts (parts joined with near.PART) that repeat an item, at most one hit a text: a whole one first, then the
    item with the most words, then the first."""
    words = _read(texts, compiled)
    begins: dict[tuple[int, int], set[int]] = {}  # (text, item) -> where a copy would begin
    for places, (at, last, hashes) in ((index.runs, _runs(words)), (index.pairs, _pairs(words))):
        found, keys = _lookup(hashes, places.hashes)
        rows = _rows(words, at[found])
        inside = last[found] < words.starts[rows + 1]
        for row, first, key in zip(*(x[inside].tolist() for x in (rows, at[found], keys)), strict=True):
            for item, where in places.items[key]:
                begins.setdefault((row, item), set()).add(first - where)
    repeated: dict[int, list[int]] = {}
    for (row, item), tries in begins.items():
        if _copied(index.long[item], words, row, sorted(tries)):
            repeated.setdefault(row, []).append(item)
    if index.clauses.items:
        for size, at, hashes in _clauses(words, np.flatnonzero(words.clauses[:-1])):
            found, keys = _lookup(hashes, index.clauses.hashes)
            rows = _rows(words, at[found])
            for row, first, key in zip(rows.tolist(), at[found].tolist(), keys.tolist(), strict=True):
                for item, _ in index.clauses.items[key]:
                    if _quoted(index.exact[item], words, row, first, size):
                        repeated.setdefault(row, []).append(item)
    hits = []
    for row, found_here in sorted(repeated.items()):
        whole = _split_at(words.exact[words.starts[row] : words.starts[row + 1]].tolist(), _marks().part)
        ranked = [(index.exact[item] not in whole, -len(index.exact[item]), item) for item in found_here]
        edited, _, item = min(ranked)
        hits.append(Hit(row, item, not edited))
    return hits


def _read(texts: pa.Array, compiled: bool = False) -> _Words:
    tables, marks = _tables(), _marks()
    exact, starts = near.word_hashes(texts, tables.exact, compiled)
    merged, _ = near.word_hashes(texts, tables.merged, compiled)
    words = exact != marks.edge
    starts = np.append(0, np.cumsum(words))[starts]
    clauses = np.append(np.append(False, ~words[:-1])[words], True)  # behind an edge
    exact, merged = exact[words], merged[words]
    parts = np.ones(len(exact) + 1, bool)
    parts[:-1] = exact == marks.part
    parts[1:] |= parts[:-1]
    parts[starts] = True
    function = np.zeros(len(exact), bool)
    function[_lookup(exact, marks.function)[0]] = True
    return _Words(starts, exact, merged, function, clauses | parts, parts)


def _runs(words: _Words) -> tuple[near.Rows, near.Rows, near.Bits]:
    """(first word, last word, hash) of all runs of RUN words, those from one text into the next too."""
    hashes = near.runs(words.merged, RUN)
    at = np.arange(len(hashes))
    return at, at + RUN - 1, hashes


def _pairs(words: _Words) -> tuple[near.Rows, near.Rows, near.Bits]:
    """(first word, last word, hash) of all pairs of content words that are neighbours but for function words and
    numbers, those from one text into the next too."""
    at = np.flatnonzero(~words.function & (words.merged != near.NUMBER))
    return at[:-1], at[1:], near.runs(words.merged[at], 2)


def _clauses(words: _Words, at: near.Rows) -> Iterator[tuple[int, near.Rows, near.Bits]]:
    """(size, first word, hash of the content) of the runs of up to SHORT_BELOW words, size after size,
    that begin at `at` and end in the same text."""
    ends = words.starts[_rows(words, at) + 1]
    hashes = np.zeros(len(at), np.uint64)
    for size in range(1, SHORT_BELOW + 1):
        inside = at + size <= ends
        at, ends, hashes = at[inside], ends[inside], hashes[inside]
        last = at + size - 1
        hashes = np.where(words.function[last], hashes, hashes * near.SHINGLING + words.exact[last])
        yield size, at, near.mix(hashes)


def _by_item(words: _Words, at: near.Rows, last: near.Rows, hashes: near.Bits) -> dict[int, list[tuple[int, int]]]:
    """Item -> (hash, where in the item) of its runs or pairs."""
    found: dict[int, list[tuple[int, int]]] = {}
    rows = _rows(words, at)
    inside = last < words.starts[rows + 1]
    where = at - words.starts[rows]
    for row, value, place in zip(*(x[inside].tolist() for x in (rows, hashes, where)), strict=True):
        found.setdefault(row, []).append((value, place))
    return found


def _stock(of_items: dict[int, list[tuple[int, int]]]) -> set[int]:
    """The hashes that more than STOCK_ITEMS items have."""
    shared = Counter(itertools.chain.from_iterable({value for value, _ in found} for found in of_items.values()))
    return {value for value, many in shared.items() if many > STOCK_ITEMS}


def _places(of_items: dict[int, list[tuple[int, int]]]) -> _Places:
    places: dict[int, list[tuple[int, int]]] = {}
    for item, found in of_items.items():
        for value, where in found:
            places.setdefault(value, []).append((item, where))
    ordered = sorted(places)
    return _Places(np.array(ordered, np.uint64), [places[value] for value in ordered])


def _parts(words: list[int], subject: list[int], plain: list[bool], overlap: float) -> list[_Part]:
    """All words with the share asked of them, then the parts with theirs, if the item has them."""
    if subject:
        within = [False] * len(words)
        for at in range(len(words) - len(subject) + 1):
            if words[at : at + len(subject)] == subject:
                within[at : at + len(subject)] = [True] * len(subject)
        chosen = [
            list(itertools.compress(words, within)),
            [w for w, inside in zip(words, within, strict=True) if not inside],
        ]
    else:
        chosen = [[word for word, said in zip(words, plain, strict=True) if not said]]
    asked = [(words, overlap), *((part, PART_SHARE * overlap) for part in chosen if 0 < len(part) < len(words))]
    return [_Part(_bits(part), len(part), share * len(part)) for part, share in asked]


def _copied(parts: list[_Part], words: _Words, row: int, begins: list[int]) -> bool:
    """Whether the text has enough of an item's words in order in a window where a copy would begin."""
    size = parts[0].size
    slack = 2 + size // 4
    first, end = words.starts[row : row + 2].tolist()
    tried = -size
    for begin in begins:
        if begin - tried <= slack // 2:
            continue
        tried = begin
        window = words.merged[max(first, begin - slack) : min(end, begin + size + slack)].tolist()
        if all(_common(window, part.bits, part.size) >= part.needed for part in parts):
            return True
    return False


def _quoted(item: list[int], words: _Words, row: int, at: int, size: int) -> bool:
    """Whether a text has a short item, or one that is mostly numbers, where its content, or the beginning, is."""
    end = at + (size if len(item) < SHORT_BELOW else len(item))
    edges = words.clauses if len(item) >= CLAUSE_FROM else words.parts
    if end > words.starts[row + 1] or not (edges[at] and edges[end]):
        return False
    found = words.exact[at:end].tolist()
    if found == item:
        return True
    if not CLAUSE_FROM <= len(item) < SHORT_BELOW or (~words.function[at:end]).sum() < 2:
        return False
    # The content is the same; of the function words one may be another.
    return _common(found, _bits(item), len(item)) >= max(len(item), len(found)) - 1


def _bits(words: list[int]) -> dict[int, int]:
    """Word -> bits of its places."""
    bits: dict[int, int] = {}
    for at, word in enumerate(words):
        bits[word] = bits.get(word, 0) | 1 << at
    return bits


def _common(window: Iterable[int], bits: dict[int, int], count: int) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö, 2004)."""
    full = (1 << count) - 1
    state = full
    for word in window:
        if matches := bits.get(word):
            moved = state & matches
            state = (state + moved | state - moved) & full
    return count - state.bit_count()


def _rows(words: _Words, at: near.Rows) -> near.Rows:
    """The texts that words are in."""
    return np.searchsorted(words.starts, at, side="right") - 1


def _split(values: near.Bits, starts: near.Rows) -> list[list[int]]:
    every, bounds = values.tolist(), starts.tolist()
    return [every[begin:end] for begin, end in itertools.pairwise(bounds)]


def _split_at(values: list[int], mark: int) -> list[list[int]]:
    return [list(run) for marked, run in itertools.groupby(values, mark.__eq__) if not marked]


def _lookup(values: near.Bits, keys: near.Bits) -> tuple[near.Rows, near.Rows]:
    """(place in values, place in keys) of every value that is one of the keys, which are sorted."""
    # Nearly all values are none; a table of a bit for 44 of theirs says so of most, faster than a search.
    few = np.zeros(1 << 20, bool)
    few[keys >> np.uint64(44)] = True
    found = np.flatnonzero(few[values >> np.uint64(44)])
    place = np.searchsorted(keys, values[found])
    same = keys[np.minimum(place, len(keys) - 1)] == values[found] if len(keys) else np.zeros(0, bool)
    return found[same], place[same]
