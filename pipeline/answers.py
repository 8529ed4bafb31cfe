"""An answer as the filter's rules see it, and what several of them ask of a text."""

# Typographic dashes, quotes and full-width marks are among what is looked for; lists of words read best as text.
# ruff: noqa: RUF001, SIM905

import re
from dataclasses import dataclass
from functools import cached_property

# --- Patterns ---------------------------------------------------------------------------------------------------------


def joined(pattern: str) -> str:
    """A pattern written over several lines: line breaks, and white space at the ends of lines, do not count."""
    return "".join(line.strip() for line in pattern.splitlines())


def compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(joined(pattern), flags)


_LOOKAROUND = re.compile(r"\(\?<?[!=](?:\\.|\[(?:\\.|[^\]\\])+\]|[^()\[\\]|\([^()]*\))*\)")


def hint(*patterns: re.Pattern[str]) -> str:
    """RE2 that is found wherever one of the patterns is, and sometimes elsewhere: lookarounds, which it does not have,
    are left out, and for \\w, which is ASCII there (and slow where it is not), stands \\S."""
    parts = []
    for pattern in patterns:
        text = _LOOKAROUND.sub("", pattern.pattern).replace(r"[^\W\d_]", r"\pL").replace(r"\w", r"\S")
        text = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", text)
        parts.append(f"(?m:{text})" if pattern.flags & re.M else text)
    return "|".join(parts)


# --- Answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a rule sees of a completion."""

    prompt: str
    """The last user turn."""
    text: str
    """The answer."""
    finish_reason: str | None = "stop"
    agreement: float | None = None
    """Share of the prompt's completions that say the same; None for a prompt with one completion."""
    context: str | None = None
    """The passage that the answer must rest on; None where there is none."""

    @cached_property
    def lower(self) -> str:
        """The answer in lower case, its typographic apostrophes made plain."""
        lower = self.text.lower()
        return lower if lower.isascii() else lower.replace("\u2019", "'")

    @cached_property
    def words(self) -> list[str]:
        """`lower`, split at white space."""
        return self.lower.split()

    @cached_property
    def vocabulary(self) -> set[str]:
        """The distinct `words`."""
        return set(self.words)


_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.S)


def prose(text: str) -> str:
    """The text without its code: fenced blocks and `inline code`."""
    return _FENCED.sub(" ", text) if "`" in text else text


def quoted(text: str, at: int) -> bool:
    """Whether the character at a position stands inside double quotes, or begins one."""
    before = text[:at]
    if "\u201e" in before:  # German, Polish ...: opened low and closed by what opens in English
        return before.count("\u201e") > before.count("\u201c") + before.count("\u201d")
    if before.count("\xab") > before.count("\xbb"):
        return True
    return before.count('"') % 2 == 1 or before.count("\u201c") > before.count("\u201d")


def size(answer: Answer) -> int:
    """How many words an answer has; scripts that write no spaces count four characters as one."""
    text = answer.text
    return len(answer.words) if text.isascii() else max(len(answer.words), len(text.strip()) // 4)


SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"')\]\u201d]*\s+|\n+")


def sentences(text: str) -> list[str]:
    """A text cut after each full stop, question or exclamation mark that white space follows, and at line ends."""
    return [part for part in SENTENCE_END.split(text) if part]


# Somebody else speaks in the answer: a person in a story, the sender of a letter, a text to translate.
VOICE = compiled(
    r"""
    \b(?:story|stories|poem|haiku|limerick|verse|song|lyrics|rap|monologue|dialogues?|conversation|scene|script
        |play|speech|letter|e-?mail|message|note|reply|respon[ds]e? (?:to|from)|announcement|apology|complaint
        |diary|journal entry|character|quote|quotation
        |say(?! who| which| whether| what| why| how| if)|says|said|saying|phrases?|sentences?|translate
        |translation|rewrite|rephrase|paraphrase|proofread|pretend|imagine|role-?play|act as|as if you
        |in the voice|monologue|paragraph|template|line from|essay opening|opening)\b
    """,
    re.I,
)

# --- Words ------------------------------------------------------------------------------------------------------------

LETTERS = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
FUNCTION_WORDS = frozenset(
    """about above according after again against ago all almost also although always among amount and another answer any
    are around because been before being below between both but came can come could described did does doing done down
    during each either else even ever every few first following for from further gave get give given gives got had has
    have having her here him his how however indeed instead into its itself just last later least less like likely made
    mainly make makes many may mean means mentioned might more most much must namely near neither never nor not now off
    often one only onto other others our out over own passage perhaps please rather really same second see seem several
    shall she should since some still such take text than that the their them then there therefore these they thing
    things this those though through thus too toward towards true under until upon use used uses using very was way well
    were what when where whereas whether which while who whom whose why will with within without would yes yet you
    your""".split()
)


_ENDING = re.compile(r"(?:'s|ings?|ed|es|s|e)$")


def key(word: str) -> str:
    """A word as it is compared: its beginning without an English ending, so that burn, burns and burning are one."""
    plain = word.lower().replace("\u2019", "'")
    return (_ENDING.sub("", plain) if len(plain) > 4 else plain)[:6]


def content(text: str) -> set[str]:
    """The keys of the content words of a text in lower case."""
    return {key(word) for word in LETTERS.findall(text) if len(word) > 2 and word not in FUNCTION_WORDS}
