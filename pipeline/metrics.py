"""What evaluate's figures are made of: how two texts are compared, and how sure a mean is.

The measures of texts are those of SQuAD (Rajpurkar et al., 2016), ROUGE-L (Lin, 2004) and chrF (Popovic, 2015); the
intervals are the percentile bootstrap's (Efron & Tibshirani, 1993) and, where all is alike, Wilson's (1927).
"""

import re
import statistics
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline import near


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces. Punctuation beyond ASCII counts
    too, and letters are the same however they are encoded (accents apart, letters of full width). A text with nothing
    else in it stays as it is, so that "+" is not equal to "-"."""
    text = _WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), unicodedata.normalize("NFC", text)).lower()
    # By the letters that it has and not letter by letter: long answers would take most of evaluate's time otherwise.
    kept = text.translate({ord(letter): None if _is_punctuation(letter) else letter for letter in set(text)})
    words = re.sub(r"\b(a|an|the)\b", " ", kept).split()
    return " ".join(words) or " ".join(text.split())


_WIDE = re.compile("[\uff01-\uffee]+")
UNSPACED = "".join(f"{chr(low)}-{chr(high)}" for low, high in near.UNSPACED)
"""Inside the brackets of a pattern: a character of a script that is written without spaces."""
_UNSPACED = re.compile(f"[{UNSPACED}]")


def words_of(text: str) -> list[str]:
    """The words of a text after normalisation. Of scripts that put no spaces between words (Chinese, Japanese, Thai,
    Lao, Khmer, Burmese) every character is one: else a sentence would be a single word, right as a whole or not at
    all."""
    return _UNSPACED.sub(r" \g<0> ", normalise(text)).split()


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether a text says the same as one of the accepted answers."""
    return normalise(text) in {normalise(answer) for answer in answers}


def token_f1(text: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the words that a text shares with an accepted answer, 0 .. 1; the best over the answers."""
    return max((_overlap(words_of(text), words_of(answer)) for answer in answers), default=0.0)


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return _f(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of two texts' words after normalisation, 0 .. 1 (Lin, 2004)."""
    return rouge_of_words(words_of(text), words_of(reference))


def rouge_of_words(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The same of two lists of words."""
    if not ours or not theirs:
        return float(ours == theirs)
    places: dict[str, int] = {}  # word -> a bit for each of its places in theirs
    for at, word in enumerate(theirs):
        places[word] = places.get(word, 0) | 1 << at
    # Bit-parallel (Hyyrö, 2004): a bit is cleared for each word of theirs that makes the longest subsequence longer.
    full = state = (1 << len(theirs)) - 1
    for word in ours:
        matches = state & places.get(word, 0)
        state = (state + matches | state - matches) & full
    return _f(len(theirs) - state.bit_count(), len(ours), len(theirs))


def chrf(text: str, reference: str) -> float:
    """Character n-gram F-score of two texts, 0 .. 1 (Popovic, 2015): sacrebleu's sentence chrF2."""
    from sacrebleu.metrics.chrf import CHRF

    if not text.split() or not reference.split():
        return float(text.split() == reference.split())
    return CHRF().sentence_score(text, [reference]).score / 100


def _f(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs)


def resample(values: np.ndarray, groups: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Bootstrap: each column's sum over questions drawn with replacement, whole groups at a time.

    values: (questions, columns); groups: for each question, what it is about. Returns (resamples, columns). The figures
    here are all ratios of two such sums, so paired ones come from the same draws by themselves.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    totals = np.zeros((len(numbers), values.shape[1]))
    np.add.at(totals, [numbers[group] for group in groups], values)
    random_numbers = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    for index in range(resamples):
        drawn = random_numbers.integers(0, len(totals), len(totals))
        sums[index] = np.bincount(drawn, minlength=len(totals)) @ totals
    return sums


def interval(samples: np.ndarray) -> list[float] | None:
    """The 95% percentile interval [low, high]; None if there is nothing to take it of."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return [float(low), float(high)]


def share_interval(share: float, samples: np.ndarray, facts: int) -> list[float] | None:
    """The same for a figure from 0 to 1, which is certain of nothing: where all of `facts` independent facts have it
    alike, so that every resample does, it is Wilson's (1927)."""
    ends = interval(samples)
    if ends is None or ends[1] - ends[0] > 1e-9:
        return ends
    z = statistics.NormalDist().inv_cdf(0.975)
    middle, wide = share + z * z / (2 * facts), z * (share * (1 - share) / facts + (z / (2 * facts)) ** 2) ** 0.5
    low, high = ((middle + side * wide) / (1 + z * z / facts) for side in (-1, 1))
    return [max(0.0, round(low, 12)), min(1.0, round(high, 12))]  # 0 and not 3e-17


def counted(groups: Sequence[str], values: Sequence[float] | np.ndarray) -> int:
    """How many facts there are among the questions that count, those with a value."""
    return len({group for group, value in zip(groups, values, strict=True) if value})
