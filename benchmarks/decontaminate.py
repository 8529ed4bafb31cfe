"""Recall, false alarms and speed of decontamination, beside a plain 8-gram and a plain 13-gram test.

    python benchmarks/decontaminate.py [--items 500] [--rows 50000] [--seed 11]

makes an evaluation set (questions of 4 to 60 words), rows that repeat its items (word for word, embedded in a longer
text, with other numbers, with 10 % and 20 % of the words replaced) and `--rows` unrelated rows. Words are drawn with
the frequencies of English and questions begin with stock phrases, so that unrelated rows share many runs of words with
the items. Of the 10 % it says recall by length of item, and how many misses had a word of their content replaced, which
makes another question of a short item. `--text FILE ...` adds the paragraphs of plain text files to the unrelated rows.
"""

import argparse
import itertools
import random
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import near, overlap

COMMON = """
the of and to a in is that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only way
find use may water long little very after words called just where most know
""".split()  # noqa: SIM905
STOCK = (
    "What is the name of the {}", "Which of the following best describes the {}", "How many {}", "Who was the first {}",
    "In which year did the {}", "Why does the {}", "According to the text, what did the {}", "Where can the {}",
    "Explain in one or two sentences how the {}", "At what time of the day does the {}",
)  # fmt: skip


class Words:
    """A vocabulary drawn with English-like frequencies: half of a text is common words."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        syllables = [c + v for c in "bcdfghklmnprstvw" for v in ("a", "e", "i", "o", "u", "en", "ar", "il")]
        self.rare = list(dict.fromkeys("".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(30_000)))
        self.rare_weights = list(itertools.accumulate(1 / (rank + 20) for rank in range(len(self.rare))))
        self.common_weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(len(COMMON))))

    def take(self, count: int) -> list[str]:
        """`count` words, every third or so rare."""
        rare = iter(self.draw.choices(self.rare, cum_weights=self.rare_weights, k=count))
        common = iter(self.draw.choices(COMMON, cum_weights=self.common_weights, k=count))
        return [next(rare) if self.draw.random() < 0.5 else next(common) for _ in range(count)]

    def question(self, count: int) -> str:
        """A question of about `count` words, now and then with a number."""
        words = self.take(count)
        for at in range(len(words)):
            if self.draw.random() < 0.05:
                words[at] = str(self.draw.randint(2, 2000))
        start = self.draw.choice(STOCK)
        known = len(start.split()) - 1
        words = words[: max(3, count - known)]
        words[-1], words[-2] = self.draw.choices(self.rare, k=2)  # what it asks about
        return start.format(" ".join(words)) + "?"

    def text(self, count: int) -> str:
        """Sentences and the odd stock phrase."""
        parts = []
        while sum(len(part.split()) for part in parts) < count:
            words = self.take(self.draw.randint(5, 20))
            stock = self.draw.random() < 0.1
            sentence = self.draw.choice(STOCK).format(" ".join(words)) if stock else " ".join(words).capitalize()
            parts.append(sentence + ("?" if stock else "."))
        return " ".join(parts)


def replaced(item: str, share: float, words: Words) -> str:
    """The item with a share of its words (at least one) replaced by others."""
    parts = item.split()
    for at in words.draw.sample(range(len(parts)), max(1, round(share * len(parts)))):
        parts[at] = words.take(1)[0]
    return " ".join(parts)


def content_replaced(item: str, text: str) -> bool:
    """Whether a word of the item other than a function word is another one in the text."""
    pairs = zip(item.split(), text.split(), strict=True)
    return any(ours != theirs and ours.lower() not in overlap.FUNCTION_WORDS for ours, theirs in pairs)


def by_length(items: list[str], texts: list[str], found: set[int]) -> Iterator[str]:
    """Lines of a table: recall for each length of item, and how many misses had a word of their content replaced."""
    yield f"{'words of the item':30}{'items':>8}{'recall':>8}{'missed':>8}   of these with a content word replaced"
    for least, most in ((1, 7), (8, 12), (13, 19), (20, 99)):
        these = [n for n, item in enumerate(items) if least <= len(item.split()) <= most]
        missed = [n for n in these if n not in found]
        content = sum(content_replaced(items[n], texts[n]) for n in missed)
        recall = 1 - len(missed) / max(1, len(these))
        yield f"{f'{least}-{most}':30}{len(these):8}{recall:8.3f}{len(missed):8}{content:8}"


def ngrams(size: int, items: list[str]) -> Callable[[str], bool]:
    """The usual test: any run of `size` words in common, or the whole item if it is shorter."""

    def of(text: str, many: int) -> set[tuple[str, ...]]:
        parts = re.findall(r"\w+", text.lower())
        return {tuple(parts[at : at + many]) for at in range(len(parts) - many + 1)}

    known = set().union(*(of(item, size) for item in items))
    return lambda text: bool(of(text, size) & known)


def main() -> None:
    """Make the data, look for the items in it, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--show", type=int, default=0, help="print so many false alarms")
    arguments = parser.parse_args()
    words = Words(random.Random(arguments.seed))
    items = [words.question(words.draw.choice([4, 6, 8, 10, 12, 15, 20, 30, 40, 60])) for _ in range(arguments.items)]
    planted = {
        "word for word": items,
        "embedded": [f"{words.text(40)} {item} {words.text(40)}" for item in items],
        "lower case, no punctuation": [re.sub(r"[^\w ]", "", item).lower() for item in items],
        "other numbers": [re.sub(r"\d+", lambda _: str(words.draw.randint(2, 2000)), item) for item in items],
        "10 % of words replaced": [replaced(item, 0.1, words) for item in items],
        "20 % of words replaced": [replaced(item, 0.2, words) for item in items],
    }
    unrelated = [f"{words.question(15)}{near.PART}{words.text(100)}" for _ in range(arguments.rows)]
    for path in arguments.text:
        paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
        unrelated += [paragraph for paragraph in paragraphs if len(paragraph.split()) > 3]
    clock = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    index = overlap.index([overlap.Item(str(n), item) for n, item in enumerate(items)], 0.75)
    indexing = resource.getrusage(resource.RUSAGE_SELF).ru_utime - clock
    overlap.find(index, pa.array(["compile first"]), compiled=True)
    long = [n for n, item in enumerate(items) if len(item.split()) >= overlap.SHORT_BELOW]
    print(f"{len(items)} items, {len(items) - len(long)} of them shorter than {overlap.SHORT_BELOW} words\n")
    tests = {"8-gram": ngrams(8, items), "13-gram": ngrams(13, items)}
    print(f"{'recall':30}{'all':>8}{'long':>8}" + "".join(f"{name:>10}" for name in tests) + "   (all)")
    lengths: list[str] = []
    for name, texts in planted.items():
        found = {hit.row for hit in overlap.find(index, pa.array(texts), compiled=True)}
        others = [sum(map(test, texts)) / len(texts) for test in tests.values()]
        shares = [len(found) / len(texts), len(found.intersection(long)) / len(long)]
        print(f"{name:30}" + "".join(f"{share:8.3f}" for share in shares) + "".join(f"{s:10.3f}" for s in others))
        if name.startswith("10 %"):
            lengths = list(by_length(items, texts, found))
    print("\nof the 10 %:", *lengths, sep="\n")
    clock = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    hits = []
    for begin in range(0, len(unrelated), 16_384):
        found_here = overlap.find(index, pa.array(unrelated[begin : begin + 16_384]), compiled=True)
        hits += [hit._replace(row=begin + hit.row) for hit in found_here]
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - clock
    others = [sum(map(test, unrelated)) for test in tests.values()]
    print(
        f"\n{'false alarms in ' + format(len(unrelated), ','):30}{len(hits):8}{'':8}"
        + "".join(f"{o:10}" for o in others)
    )
    print(f"\n{indexing:.2f} CPU s to index, {used:.2f} CPU s for the unrelated rows")
    for hit in hits[: arguments.show]:
        print("\n", items[hit.item], "\n  ", unrelated[hit.row][:300])


if __name__ == "__main__":
    main()
