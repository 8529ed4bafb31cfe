"""The rules of the filter stage: pure functions `(answer, config) -> reason | None`, listed in RULES in the order in
which they decide. A new rule is a function here, an entry in RULES with an example that it catches and one that it must
not, and its field in recipe.Filter; docs/filters.md is generated from the entries. refusals.py has those on
refusals, premises.py one, answers.py what several ask of a text.
"""

# Typographic dashes, quotes and full-width marks are among what the rules look for; lists of words read best as text.
# ruff: noqa: RUF001, SIM905

import json
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from operator import eq
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.answers import (
    FUNCTION_WORDS,
    LETTERS,
    VOICE,
    Answer,
    compiled,
    hint,
    joined,
    key,
    prose,
    quoted,
    sentences,
    size,
)
from pipeline.premises import MAY_PRESUPPOSE, premise_denial
from pipeline.recipe import Filter, Presidio
from pipeline.refusals import MAY_DEFLECT, MAY_REFUSE, declined, deflection, refusal

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•–·+]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+\S", re.M)


def empty(answer: Answer, config: Filter) -> str | None:
    """There is no answer, or no question: nothing but white space, full stops, dashes or invisible characters."""
    if answer.prompt.strip() and answer.text.strip(" \t\r\n.…-–—_?!\u200b\u200c\u200d\u2060\ufeff"):
        return None
    return "empty"


def too_long(answer: Answer, config: Filter) -> str | None:
    """Prompt and answer together have more than `max_chars` characters."""
    return "too_long" if len(answer.text) + len(answer.prompt) > config.max_chars else None


_LONG_TASK = compiled(
    r"""
    \b(?:write|compose|draft|create|generate|produce)\b[^.?!\n]{0,60}?\b(?:essay|article|blog ?post|report|story
        |speech|chapter|press release|(?<!the )letter|lesson plan|business plan|tutorial)\b
    """,
    re.I,
)
_DETAIL = re.compile(
    r"\b(?:in detail|step[- ]by[- ]step|detailed|thorough(?:ly)?|at length|comprehensive(?:ly)?)\b", re.I
)
_EXPLAIN = compiled(
    r"""
    ^\W*(?:please |can you |could you )?(?:explain|describe|discuss|compare|outline|summari[sz]e)\b
    """,
    re.I,
)
_SHORT_TASK = re.compile(
    r"\b(?:titles?|headlines?|tagline|slogan|caption|tweet|subject|(?:opening|first|last|closing) line|"
    r"sentences?|lines?|words?|phrases?|topics?|haiku|brief(?:ly)?|concise(?:ly)?|short(?:ly)? answer|code|function)\b",
    re.I,
)
_PREAMBLE = re.compile(r"(?:sure|certainly|of course|okay|ok|absolutely|here|below)\b[^\n]*:\s*$")


def too_short(answer: Answer, config: Filter) -> str | None:
    """Fewer than `min_words` words; a preamble that nothing follows; or far too little for the task: an essay, story,
    letter or detailed explanation of fewer than 12 words, an explanation of fewer than 4."""
    words = size(answer)
    if words < config.min_words:
        return "too_short"
    if words >= 25 or config.min_words == 0:
        return None
    if _PREAMBLE.match(answer.lower):
        return "too_short"
    if words < 12 and not _SHORT_TASK.search(answer.prompt):
        if _LONG_TASK.search(answer.prompt):
            return "too_short"
        number = any(letter.isdigit() for letter in answer.text)  # a result is an answer
        if not number and (_DETAIL.search(answer.prompt) or (words < 4 and _EXPLAIN.match(answer.prompt))):
            return "too_short"
    return None


_TERMINAL = (
    ".",
    "!",
    "?",
    ":",
    ";",
    "…",
    '"',
    "'",
    ")",
    "]",
    "}",
    "»",
    "”",
    "’",
    "。",
    "！",
    "？",
    "*",
    "_",
    "`",
    "|",
    ">",
    "~",
)
# Words after which no sentence ends.
_DANGLING = compiled(
    r"""
    \b(?:the|a|an|of|and|or|to|with|from|is|are|was|were|that|which|because|but|as|by|into|your|their|its|our|my
        |his|these|than|while|when|if|such|including|between|through)$
    |,$
    """
)


_ASKS_TO_TELL = re.compile(
    r"^\W*(?:explain|describe|discuss|compare|tell|summari[sz]e|what|why|how|who|when|where|which|is|are|do|does|did|can)\b",
    re.I,
)


def cut_off(answer: Answer, config: Filter) -> str | None:
    """The answer stopped at max_tokens (finish_reason), or its text breaks off: a code block that is never closed, a
    last sentence that ends on a word such as "the", or that has no end where all the others have one."""
    if not config.cut_off:
        return None
    if answer.finish_reason == "length":
        return "cut_off"
    text = answer.text.rstrip()
    if not text:
        return None
    if text.endswith(_TERMINAL) and text.count("```") % 2 == 0:
        return None
    if text.count("```") % 2 == 1:
        return "cut_off"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "```" in text or not lines or text[-1].isdigit() or not (text[-1].isalpha() or text[-1] in ",-"):
        return None
    last, before = prose(lines[-1]).strip(), lines[:-1]
    words = last.split()
    if len(words) < 3 or _VERSE.search(answer.prompt) or not _is_prose(last) or words[-1][0] in "#@":
        return None
    if len(words) >= 5 and _DANGLING.search(last):
        return "cut_off"
    # A line with a finished sentence in it, or a long one that answers a question, and then no end.
    parts = sentences(last)
    rest = parts[-1].split()
    signed = len(rest) <= 4 and rest[-1][0].isupper()
    if len(words) >= 12 and len(rest) >= 2 and not signed and any(len(part.split()) >= 3 for part in parts[:-1]):
        return "cut_off"
    if len(words) >= 15 and not before and _ASKS_TO_TELL.match(answer.prompt):
        return "cut_off"
    # Lines of the same kind as the last one: did they all end properly?
    item = bool(_LIST_ITEM.match(last))
    alike = [
        line for line in before if bool(_LIST_ITEM.match(line)) == item and len(line.split()) >= (4 if item else 8)
    ]
    if len(alike) >= 2 or (alike and not item and len(words) >= 8):
        ended = all(line.endswith((".", "!", "?", ":", ".)", '."')) for line in alike)
        return "cut_off" if ended and len(words) >= (3 if item else 5) else None
    return None


def _is_prose(line: str) -> bool:
    """Whether a line reads like running text: not a heading, a row of a table, code, a name or a signature."""
    code = any(sign in line for sign in ("{", " = ", "://", "\\", "()"))
    if code or line.startswith(("#", "|", ">", "$", "//", "--")):
        return False
    words = line.split()
    return sum(word[0].islower() for word in words) >= 0.5 * len(words)


_AI = r"(?:ai|a\.i\.|artificial intelligence|language model|llm|chatbot|virtual assistant|computer program)"
_BOILERPLATE = compiled(
    rf"""
    \b(?:as|since i'm|since i am|because i'm|because i am) (?:just |only |merely )?(?:an?
        |the) (?:[\w-]+[ -]){{0,4}}?{_AI}(?: (?:model|assistant|language model))?(?: (?:trained|created
        |developed|made|built) by \w+)?,? (?:i|my)\b
    |\bi(?:'m| am) (?:just |only |merely |simply |but )?(?:an?|the) (?:[\w-]+[ -]){{0,3}}?(?:ai
        |artificial intelligence|language model|llm)\b(?! (?:\w+ )?(?:engineer|enthusiast|researcher|scientist|developer
        |specialist|expert|consultant|student|professor|founder|manager|lead|artist|ethicist|strategist|skeptic)\b)
    |\bi(?:'m| am) (?:chatgpt|claude|gemini|bard|llama|gpt-?\d)\b
    |\b(?:language model|ai|artificial intelligence|assistant|model) (?:trained|created|developed|made
        |built) by (?:openai|anthropic|google|meta|mistral)
    |\bmy (?:last |latest )?(?:knowledge|training)(?: data)?(?: update)? (?:cut-?off|only goes|goes up|ends
        |extends|was last|does not include|is limited)
    |\bmy (?:last|latest|most recent) (?:knowledge|training)? ?update
    |\b(?:based on|according to|from) my training data\b
    |\bmy training data\b
    """
)
_ABOUT_AI = compiled(
    r"""
    \b(?:ai|a\.i\.|artificial intelligence|language models?|llms?|chatgpt|gpt|claude|gemini|chatbots?|robots?
        |androids?|assistants?|are you (?:an?|real|human|sentient|conscious))\b
    |^\W*who are you\W*$
    """,
    re.I,
)


def boilerplate(answer: Answer, config: Filter) -> str | None:
    """The teacher speaks of itself ("As an AI language model, I ...", its training data) where nobody asked."""
    if not config.boilerplate:
        return None
    found = _BOILERPLATE.search(answer.lower)
    if not found or quoted(answer.lower, found.start()) or _ABOUT_AI.search(answer.prompt):
        return None
    return "boilerplate"


_TOKENS = compiled(
    r"""
    <\|(?:im_start|im_end|im_sep|endoftext|assistant|user|system|end|eot_id|start_header_id|end_header_id
        |begin_of_text|end_of_text|endofprompt)\|>
    |\[/?INST\]
    |<</?SYS>>
    |</s>
    |<s>\s*\[INST\]
    |<(?:start|end)_of_turn>
    |^#{2,3} ?(?:Instruction|Response|Human|Assistant|User|System)\b:?\s*$
    |^#{2,3} ?(?:Instruction|Response|Human|Assistant|User|System):
    """,
    re.M,
)
_TURNS = re.compile(r"(?<=\n)(?:human|user|assistant|ai): ", re.I)
_PROMPT_TEXT = compiled(
    r"""
    \bbelow is an instruction that describes a task\b
    |^you are a(?:n)? (?:\w+ ){0,3}(?:assistant|ai)\b
    |\b(?:my|the) system prompt (?:says|tells|states)
    |\bmy instructions (?:say|tell|are)
    """
)
_ABOUT_PROMPTS = compiled(
    r"""
    \b(?:tokens?|format|chatml|prompts?|template|instructions? (?:format|tuning)|alpaca|llama|dialogue|dialog
        |conversation|transcript|interview|chat|script|scene|tuning|html|strikethrough)\b
    """,
    re.I,
)


def leakage(answer: Answer, config: Filter) -> str | None:
    """Parts of a chat template or of a prompt in the answer: <|im_end|>, [INST], "### Response:", invented further
    turns, the system prompt."""
    if not config.leakage or _ABOUT_PROMPTS.search(answer.prompt):
        return None
    text = prose(answer.text)  # in a file's lines, `user:` is a setting
    if _TOKENS.search(text) or _TURNS.search(text):
        return "leakage"
    found = _PROMPT_TEXT.search(answer.lower)
    return "leakage" if found and not quoted(answer.lower, found.start()) else None


_SLOT = joined(
    r"""
    (?:your|my|insert|enter|names?|dates?|address|company|organi[sz]ation|phone|e-?mail|title|position|amount
        |number|place|year|years|link|url|city|state|country|school|university|hospital|product|topic|manager
        |recipient|sender|month|day|time|location|deadline|department|salary|answer|position|venue|brand)
    """
)
_PLACEHOLDER = compiled(
    rf"""
    \[(?:[\w'’./-]+ ){{0,4}}?{_SLOT}(?:['’]s)?(?: [\w'’./-]+){{0,4}}\](?![(:\[])
    |<(?:no ?(?:in|out)put|(?:insert|your|enter) [^<>\n]{{1,40}}|(?-i:[A-Z][A-Z_ ]{{2,30}}))>
    |\{{\{{ ?[a-z_.]+ ?\}}\}}
    |(?<![\\$\w])\{{[a-z]+(?:_[a-z]+)+\}}
    |\bx{{3}}[-. ]x{{3}}[-. ]x{{4}}\b
    |\blorem ipsum dolor\b
    |\btodo:[ ]
    |\(?\bto be (?:filled in|inserted)\b
    |\[\.\.\. ?insert
    """,
    re.I,
)
_NOTHING = re.compile(r"^\s*(?:n/a|tbd|tba|\[blank\]|<unk>|placeholder)[.!]?\s*$", re.I)
_ABOUT_PLACEHOLDERS = compiled(
    r"""
    \b(?:templates?|placeholders?|forms?|fill[- ]in|fill|blanks?|variables?|mad ?libs|samples?|skeleton|jinja
        |mustache|handlebars|html|xml|markdown|syntax|org-mode|f-strings?|format string|regex|command|lorem)\b
    |\[[^\]]+\]
    |\{\w+\}
    |<\w+>
    """,
    re.I,
)


def placeholder(answer: Answer, config: Filter) -> str | None:
    """A slot that nobody filled in: [Your Name], {{product}}, <noinput>, XXX-XXX-XXXX, lorem ipsum, N/A. Not in code,
    and not where the prompt asks for a template or has such slots itself."""
    if not config.placeholders:
        return None
    if len(answer.words) <= 2 and _NOTHING.match(answer.text):
        return "placeholder"
    found = _PLACEHOLDER.search(prose(answer.text))
    if not found or _ABOUT_PLACEHOLDERS.search(answer.prompt) or quoted(answer.text, answer.text.find(found.group())):
        return None
    return "placeholder"


_MEDIA = joined(
    r"""
    (?:images?|pictures?|photos?|photographs?|screenshots?|videos?|audio(?: (?:file|clip|recording))?
        |recordings?|clips?|drawings?)
    """
)
_PROMPT_MEDIA = compiled(
    rf"""
    \b(?:this|these|attached|following|above|uploaded|enclosed) {_MEDIA}\b(?! (?:format|file format|editing
        |games?|card))
    |\b(?:attached|uploaded|enclosed) (?:\w+ )?(?:files?|documents?|pdfs?|spreadsheets?|papers?|reports?|charts?
        |tables?|graphs?|diagrams?)\b
    |\b(?:{_MEDIA}|diagram|chart|graph|figure|map) (?:above|below|shown|attached)\b
    |^\W*(?:please )?(?:describe|caption|analy[sz]e|transcribe|what(?:'s| is) (?:shown )?in
        |what do you see in) the {_MEDIA}\W*$
    |^\W*(?:listen to|watch|look at) (?:the|this|these) {_MEDIA}\b
    """,
    re.I,
)
_PROMPT_LINK = compiled(
    r"""
    \b(?:summari[sz]e|read|open|visit|translate|analy[sz]e|review|check)\b[^\n]{0,80}https?://
    """,
    re.I,
)
_TEXT_MEDIA = compiled(
    rf"""
    !\[[^\]\n]*\]\([^)\n]*\)
    |\b(?:as )?(?:shown|seen|illustrated|depicted|you can see|pictured) in (?:the[ ]
        |this |(?!\w+s\b))(?:following )?(?:{_MEDIA}|figure|diagram|illustration|chart|graph)\b
        (?! games?\b)(?: (?:above|below|\d+)\b)?
    |\b(?:the|this|following) (?:{_MEDIA}|figure|diagram|illustration|infographic) (?:above|below)\b
    |\bsee (?:figure|fig\.|image|picture|video) \d
    |\bclick (?:here\b|(?:on )?(?:the|this) (?:link|button) (?:below|above))
    |\b(?:link|video|image|photo) below\b
    |\bwatch this (?:video|clip)\b
    |\[(?:link|url|image|video|photo|picture|attachment)(?: [^\]\n]{{0,30}})?\](?!\()
    |\b(?:see|open|refer to|in) the attached (?:file|document|image|pdf|photo|picture|spreadsheet)\b
    |https?://(?:www\.)?(?:youtu\.be|youtube\.com|vimeo\.com)/
    """,
    re.I,
)
_ABOUT_MEDIA = compiled(
    r"""
    \b(?:markdown|html|readme|embed|insert|add (?:an? )?(?:image|picture)|youtube|links?|urls?|websites?
        |web ?page|click|latex|caption|alt text|newsletter|landing)\b
    """,
    re.I,
)


def reference(answer: Answer, config: Filter) -> str | None:
    """Prompt or answer refers to what is not there: "this image", an attached file, a link to be read, "see the diagram
    below", an invented video."""
    if not config.references:
        return None
    prompt = answer.prompt
    about = _ABOUT_MEDIA.search(prompt)
    found = _PROMPT_MEDIA.search(prompt)
    if found and not about and not re.search(r":\s+\S+\s+\S+\s+\S+|\n", prompt[found.end() :]):
        return "reference"
    if len(prompt) < 400 and _PROMPT_LINK.search(prompt):
        return "reference"
    found = _TEXT_MEDIA.search(prose(answer.text))
    image = found is not None and found.group().startswith("![")
    if not found or about or quoted(answer.text, answer.text.find(found.group())):
        return None
    return None if VOICE.search(prompt) and not image else "reference"


_VERSE = re.compile(
    r"\b(?:songs?|sing|lyrics|chorus|refrain|poems?|poetry|verses?|haiku|limerick|sonnet|villanelle|ballad|hymn|lullaby|"
    r"rap|nursery|anaphora)\b",
    re.I,
)
_ASKS_TO_REPEAT = re.compile(
    r"\b(?:repeat\w*|repetitions?|times|chant|mantra|ascii|pattern|grid|csv|binary|log|sequence|dataset|multiplication)\b",
    re.I,
)
_LINE_START = re.compile(r"^[\s>*•–+-]*(?:\d{1,3}[.)]\s*)?")


# From where on words, triples of words, a word said in a row, a long word and list items are worth a look.
_VARIED, _FEW_TRIPLES, _RUN, _LONG_WORD, _ITEMS = 0.72, 0.5, 12, 200, 8


def repetition(answer: Answer, config: Filter) -> str | None:
    """The same again and again: a word 12 times in a row, a sentence or list item that makes up much of the answer, or,
    from 50 words on, more than half of the word triples a repeat (after Gopher, Rae et al. 2021). Not in code, tables
    and verse, nor where the prompt asks for it."""
    words = answer.words
    many = len(words)
    distinct = len(answer.vocabulary)
    if not config.repetition or not words:
        return None
    # Each of these can only be so if words recur: nearly all answers are done here.
    if distinct > _VARIED * many and len(answer.text) < 16 * many + 200:
        return None
    if _ASKS_TO_REPEAT.search(answer.prompt):
        return None
    if sum(map(eq, words, words[1:])) >= 8 and _longest_run(words) >= _RUN:
        return "repetition"
    longest = ""
    if len(answer.text) > 200 + 2 * many:  # the rule below a table's head, |---|---|, may be as long
        longest = max((word for word in answer.vocabulary if word[0] not in "|+"), key=len, default="")
    if len(longest) >= _LONG_WORD and len(zlib.compress(longest.encode("utf-8", "replace"))) < 0.1 * len(longest):
        return "repetition"
    if distinct > _VARIED * many or many < 12:
        return None
    triples = len(set(zip(words, words[1:], words[2:], strict=False)))
    if _VERSE.search(answer.prompt):
        return "repetition" if many >= 50 and triples < 0.2 * many else None
    if triples > 0.9 * (many - 2) and answer.text.count("\n") < 7:
        return None
    lines = [line for line in prose(answer.text).splitlines() if line.strip() and not line.lstrip().startswith("|")]
    parts = [part.strip(" .!?").lower() for line in lines for part in sentences(_LINE_START.sub("", line))]
    parts = [part for part in parts if any(letter.isalpha() for letter in part)]
    if not parts:
        return None
    counts = Counter(parts)
    repeated = sum(len(part) * (times - 1) for part, times in counts.items() if times >= 3 and len(part.split()) >= 4)
    if repeated > 0.3 * sum(map(len, parts)):
        return "repetition"
    items = [_LINE_START.sub("", line).strip().lower() for line in lines if _LIST_ITEM.match(line)]
    if len(items) >= _ITEMS and len(set(items)) < 0.5 * len(items):
        return "repetition"
    if many >= 50 and triples <= _FEW_TRIPLES * many:
        left = " ".join(parts).split()
        letters = sum(word[0].isalpha() for word in left)
        triples = len(set(zip(left, left[1:], left[2:], strict=False)))
        if len(left) >= 42 and letters >= 0.7 * len(left) and triples < 0.5 * (len(left) - 2):
            return "repetition"
    return None


def _words_recur(rows: "Measured", config: Filter) -> NDArray[np.bool_]:
    """(n,) rows that `repetition` may reject."""
    # Of _ITEMS items fewer than half are different: more than half repeat another. In code a line is no line.
    parts = (rows.thrice > 0) | (rows.again > _ITEMS // 2) | (rows.backticks > 0)
    few = rows.triples <= _FEW_TRIPLES * rows.words
    recurring = (rows.distinct <= _VARIED * rows.words) & (parts | few)
    return ~rows.known | recurring | (rows.run >= _RUN) | (rows.longest >= _LONG_WORD)


def _longest_run(words: list[str]) -> int:
    longest = run = 1
    for one, two in zip(words, words[1:], strict=False):
        run = run + 1 if one == two else 1
        longest = max(longest, run)
    return longest


_WORDS = re.compile(r"\w+")
_ASKS_FOR_ECHO = compiled(
    r"""
    \b(?:repeat|proofread|correct|rewrite|rephrase|translate|paraphrase|echo|copy|quote|punctuat\w+
        |capitali[sz]e|grammar|fix|edit|format|convert|spell|type|print|say|reverse|sort|order|arrange)\b
    """,
    re.I,
)


def _too_long_for_an_echo(characters: Any, prompt_characters: Any) -> Any:
    return characters > 3 * prompt_characters + 40


def echo(answer: Answer, config: Filter) -> str | None:
    """The answer repeats the prompt (of five words or more) and adds next to nothing."""
    if not config.echo or _too_long_for_an_echo(len(answer.text), len(answer.prompt)):
        return None
    asked = " ".join(_WORDS.findall(answer.prompt.lower()))
    if asked.count(" ") < 4:
        return None
    said = " ".join(_WORDS.findall(answer.lower))
    if asked not in said or _ASKS_FOR_ECHO.search(answer.prompt):
        return None
    rest = said.replace(asked, "").strip()
    return "echo" if len(rest) <= 0.1 * len(asked) + 4 or asked.startswith(rest) else None


# English words that no other common language has. Whoever uses several of them writes English; only the other texts
# are worth the 40 microseconds that a detector takes.
ENGLISH = frozenset(
    "the and that with are this you your they their which from have has when what who how its by been were would "
    "will should these those there because about does can't it's of".split()
)
_NAMES_LANGUAGE = compiled(
    r"""
    \b(?:translat\w+|language|original|bilingual|pronounce|latin|english|french|german|spanish|italian
        |portuguese|dutch|swedish|norwegian|danish|finnish|polish|czech|russian|ukrainian|greek|turkish|arabic
        |hebrew|persian|hindi|bengali|urdu|tamil|chinese|mandarin|cantonese|japanese|korean|vietnamese|thai
        |indonesian|malay|swahili|hungarian|romanian|bulgarian|serbian|croatian|catalan|welsh|irish|gaelic
        |esperanto|klingon|englisch|deutsch|anglais|français|inglés|español|lyrics|quote)\b
    """,
    re.I,
)
_ALIKE = {"nb": "no", "nn": "no", "da": "no", "hr": "sr", "bs": "sr", "ms": "id", "gl": "pt", "sk": "cs", "af": "nl"}


def language(answer: Answer, config: Filter) -> str | None:
    """The answer is in another language than the prompt, or than `language` says. Only texts of eight words or more, no
    code, no names; and not where the prompt names a language. Detected with py3langid (Barbaresi 2022, after
    Lui & Baldwin 2012)."""
    wanted = config.language
    if wanted == "off" or len(answer.text) < 12:
        return None
    english = len(answer.vocabulary & ENGLISH) >= min(12, max(2, 0.03 * len(answer.words)))
    if english and wanted == "en":
        return None
    if english and wanted == "prompt" and _looks_english(answer.prompt):
        return None
    if _NAMES_LANGUAGE.search(answer.prompt):
        return None
    by_prompt = wanted == "prompt" and not _looks_english(answer.prompt)
    if by_prompt and len(answer.prompt) < 20:  # too short to have a language
        return None
    text = prose(answer.text)
    running = [word for word in text.split() if word[0].isalpha() and not word[0].isupper()]
    if len(running) < 8 and not (
        len(running) >= 1 and sum(not letter.isascii() for letter in text) >= 16 and max(map(len, running)) >= 12
    ):
        return None
    if any(sign in text for sign in ("{", "};", "()", "==", "/>")):
        return None
    found, sure = _language_of(text[:400])
    if sure < 0.8:
        return None
    if wanted != "prompt":
        return None if found == _ALIKE.get(wanted, wanted) else "language"
    if not by_prompt:
        return None if found == "en" else "language"
    asked = [answer.prompt, *answer.prompt.strip().splitlines()[:1], *answer.prompt.strip().splitlines()[-1:]]
    spoken = (_language_of(part[:400]) for part in dict.fromkeys(asked))
    if any(name == found or certain < 0.7 for name, certain in spoken):
        return None
    return "language"


def _may_be_foreign(rows: "Measured", config: Filter) -> NDArray[np.bool_]:
    """(n,) rows that `language` may reject."""
    foreign = ~rows.known | (rows.english < np.minimum(12, np.maximum(2, 0.03 * rows.words)))
    if config.language == "prompt":
        plain = np.flatnonzero(~foreign)
        prompts = rows.prompts.take(pa.array(plain)).to_pylist()
        foreign[plain] = [not _looks_english(prompt) for prompt in prompts]
    elif config.language != "en":
        foreign[:] = True
    return foreign


_ENGLISH_OPENING = frozenset(
    "explain describe compare write tell summarize summarise discuss what what's how why who when where which give "
    "can could please should does".split()
)
_ENGLISH_QUESTION = ENGLISH | _ENGLISH_OPENING | frozenset("is where do i a list name me for my".split())


def _looks_english(prompt: str) -> bool:
    words = prompt[:200].lower().split()
    if not words or not prompt[:400].isascii():
        return False
    return words[0] in _ENGLISH_OPENING or len(_ENGLISH_QUESTION.intersection(words)) >= max(2, 0.15 * len(words))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _language_of(text: str) -> tuple[str, float]:
    """ISO 639-1 code of a text's language, near relatives merged, and how sure that is, 0 .. 1."""
    name, sure = _identifier().classify(text)
    return _ALIKE.get(name, name), sure


_BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffd\ufffe\uffff\ue000-\uf8ff]")
_MOJIBAKE = compiled(
    r"""
    Ã[\x80-\xbf\u0152\u0153\u0160\u0161\u017d\u017e\u0178\u02c6\u02dc\u2013-\u203a\u20ac\u2122]
    |â€
    |Â[\xa0-\xbf]
    |ï»¿
    """
)
_ABOUT_ENCODING = compiled(
    r"""
    \b(?:mojibake|encod\w+|decod\w+|utf|unicode|latin-1|ascii|characters?|bytes?|escape|hex\w*|password|cipher
        |alphabet|letters|spell\w*|font)\b
    """,
    re.I,
)
_CONSONANTS = re.compile(r"\b[bcdfghjklmnpqrstvwxz]{4,}\b|[bcdfghjklmnpqrstvwxz]{6,}")
_ABBREVIATED = re.compile(r"\b(?:[A-Z][A-Z\d]+s?\b|\w+\()")  # HTTP; sqrt(
_RUNS = re.compile(r"[bcdfghjklmnpqrstvwxz]{4,}")  # wherever _CONSONANTS is, and faster
# Neither && nor (( is one of them: they are in a formula or a condition, as in sqrt((a - b)^2).
_NOISY = ("@@", "##", "$$", "%%", "~~", "^^")
_NOISE = re.compile(r"[a-z](?:@@|##|\$\$|%%|~~|\^\^)+[a-z]")
_SINGLE = re.compile(r"(?:^|\s)[^\W\d_]\s+[^\W\d_]\s+[^\W\d_](?:\s|$)")


def garbled(answer: Answer, config: Filter) -> str | None:
    """Encoding damage (mojibake, replacement and control characters), keyboard noise, l e t t e r s  a p a r t."""
    if not config.garbled:
        return None
    text = answer.text
    damaged = not (text.isascii() and text.isprintable()) and (_BROKEN.search(text) or _MOJIBAKE.search(text))
    if damaged:
        return None if _ABOUT_ENCODING.search(answer.prompt) or damaged.group() in answer.prompt else "garbled"
    plain = prose(answer.lower)
    odd = 0
    if len(_RUNS.findall(plain)) >= 3:
        odd = len(_CONSONANTS.findall(_ABBREVIATED.sub(" ", prose(text)).lower()))
    if (
        odd >= 3
        and odd > 0.2 * sum(len(word) >= 3 and word.isalpha() and word.isascii() for word in plain.split())
        and not _ABOUT_ENCODING.search(answer.prompt)
    ):
        return "garbled"
    if (
        any(map(plain.__contains__, _NOISY))
        and len(_NOISE.findall(plain)) >= 2
        and not _ABOUT_ENCODING.search(answer.prompt)
    ):
        return "garbled"
    single = sum(len(word) == 1 and word.isalpha() for word in answer.words)
    if (
        single >= 20
        and single > 0.7 * len(answer.words)
        and _SINGLE.search(answer.lower)
        and not _ABOUT_ENCODING.search(answer.prompt)
    ):
        return "garbled"
    return None


_TAG = compiled(
    r"""
    </?(?:p|div|span|br|b|i|u|strong|em|ul|ol|li|a|table|tbody|tr|td|th|h[1-6]|font|img|html|body|center
        |section)(?:\s[^<>\n]*)?/?>
    """,
    re.I,
)
_ENTITY = compiled(
    r"""
    &(?:nbsp|amp|lt|gt|quot|apos|mdash|ndash|deg|rsquo|lsquo|ldquo|rdquo|hellip|copy|times|#\d{2,5}|#x[0-9a-f]{2,4});
    """,
    re.I,
)
_ABOUT_MARKUP = compiled(
    r"""
    \b(?:html\d?|tags?|xml|markup|web\w*|pages?|css|svg|entit(?:y|ies)|markdown|code|javascript|react|jsx|vue
        |php|components?|button|form|snippet|script|url|escap\w+|dom|element)\b
    |[<&]\w+[;>]
    """,
    re.I,
)


def markup(answer: Answer, config: Filter) -> str | None:
    """HTML tags or entities in running text, where nobody asked for HTML. Code and <br> in Markdown tables are fine."""
    if not config.markup or _ABOUT_MARKUP.search(answer.prompt):
        return None
    text = "\n".join(line for line in prose(answer.text).splitlines() if not line.lstrip().startswith("|"))
    if _ENTITY.search(text) or len(_TAG.findall(text)) >= 2:
        return "markup"
    return None


_EMAIL = compiled(
    r"""
    \b[A-Za-z0-9][A-Za-z0-9._%+-]*@(?!example\.|test\.)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b
    """
)
_PHONE = compiled(
    r"""
    (?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\w-])
    """
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")


def personal_data(text: str, presidio: Presidio | None = None) -> list[tuple[str, int, int]]:
    """Personal data in a text as (kind, start, end), in order, none overlapping: email, phone, ssn, card (Luhn's check
    digit holds) and iban (its check digits hold); and what Presidio finds, where the recipe asks for it. Addresses at
    example.com and US 555-01xx numbers are nobody's."""
    found: list[tuple[str, int, int]] = []
    if presidio:
        from pipeline.entities import named

        found += named(text, presidio)
    if not found and "@" not in text and not any(map(text.__contains__, string.digits)):
        return found
    if "@" in text:
        found += [("email", *match.span()) for match in _EMAIL.finditer(text)]
    found += [("ssn", *match.span()) for match in _SSN.finditer(text)]
    found += [("iban", *match.span()) for match in _IBAN.finditer(text) if _iban_holds(match.group())]
    found += [("card", *match.span()) for match in _CARD.finditer(text) if _luhn_holds(match.group())]
    found += [
        ("phone", *match.span()) for match in _PHONE.finditer(text) if not re.search(r"555.?01\d\d$", match.group())
    ]
    clear: list[tuple[str, int, int]] = []
    for kind, start, end in sorted(found, key=lambda item: (item[1], -item[2])):
        if not clear or start >= clear[-1][2]:
            clear.append((kind, start, end))
    return clear


def _luhn_holds(number: str) -> bool:
    digits = [int(sign) for sign in reversed(number) if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban_holds(number: str) -> bool:
    compact = number.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])) % 97 == 1


def redacted(text: str, presidio: Presidio | None = None) -> str:
    """The text with personal data replaced by its kind: <EMAIL>."""
    for kind, start, end in reversed(personal_data(text, presidio)):
        text = f"{text[:start]}<{kind.upper()}>{text[end:]}"
    return text


def pii(answer: Answer, config: Filter) -> str | None:
    """Prompt or answer contains personal data, and the recipe says `pii: drop`."""
    if config.pii != "drop":
        return None
    return "pii" if any(personal_data(text, config.presidio) for text in (answer.text, answer.prompt)) else None


_NUMBERS = dict(
    zip("one two three four five six seven eight nine ten eleven twelve".split(), range(1, 13), strict=True)
) | {"fifteen": 15, "twenty": 20, "a dozen": 12}
_NUMBER = rf"(\d{{1,5}}|{'|'.join(_NUMBERS)})"
_ASKS_JSON = compiled(
    r"""
    \b(?:as|in|return|output|respond|reply|only|valid|give|provide|answer|format)\b[^.\n]{0,50}\bjson\b
    """,
    re.I,
)
_JSON_OTHERWISE = compiled(
    r"""
    \b(?:parse|explain|what is|what's|how (?:do|to|can)|function|code|python|javascript|java|flask|api|schema
        |program|script|difference|read|load|yaml to|from json|class)\b
    """,
    re.I,
)
_ASKS_LIST = compiled(
    r"""
    \b(?:in|as|with|using|only)\b[^.\n]{0,30}\b(?:bullet points?|bullets)\b
    |\b(?:bullet(?:ed|[- ]point)?|numbered) list\b
    """,
    re.I,
)
_LIST_OTHERWISE = compiled(
    r"""
    \b(?:convert|turn|rewrite|how (?:do|to|can)|html|markdown|latex|this (?:bulleted|numbered)
        |the following (?:bulleted|numbered)|without)\b
    """,
    re.I,
)
_ASKS_ITEMS = compiled(
    rf"""
    \b(?:list|name|give(?: me| us)?|provide(?: me with)?|suggest|recommend|generate|come up with|tell me|propose
        |identify|share|brainstorm|top)\b (?:(?:the|a list of|me|out|exactly|at least|top|some
        |up) )*{_NUMBER} (?:(?!words|sentences|paragraphs)[\w'-]+ ){{0,3}}?(?!words?\b|sentences?\b
        |paragraphs?\b|lines?\b|minutes?\b|hours?\b|days?\b|weeks?\b|months?\b|years?\b|people\b|persons\b
        |rows?\b|columns?\b|times\b|stars?\b)[\w-]+s\b
    """,
    re.I,
)
# An item that has several: "- Citrus: orange, lemon, lime".
_GROUP = compiled(
    r"""
    ^[ \t]*(?:[-*•–·+]|\(?\d{1,3}[.)])\s+[^\n:,]{1,40}:[ *]+
    ([^\s,.]+(?: [^\s,.]+){0,3}(?:, [^\s,.]+(?: [^\s,.]+){0,3})+\.?)$
    """,
    re.M,
)
_AT_MOST = compiled(
    rf"""
    \b(?:within|under|at most|no more than|not more than|maximum(?: of)?|max\.?|fewer than|less than|up to
        |limit(?:ed)? to|not exceed(?:ing)?|below) (?:about )?{_NUMBER} words\b
    """,
    re.I,
)
_AT_LEAST = compiled(
    rf"""
    \b(?:at least|minimum(?: of)?|no fewer than|no less than|more than|over) {_NUMBER} words\b
    """,
    re.I,
)
_ABOUT = compiled(
    rf"""
    \b{_NUMBER}-word\b
    |\b(?:in|of|with|using|exactly|about|around|approximately) {_NUMBER} words\b
    """,
    re.I,
)
# Several texts: a length that is asked for after this is that of one of them.
_SEVERAL = compiled(
    rf"""
    \b(?:{_NUMBER}|several|multiple|a few|some) (?:(?!words|sentences)[\w'-]+ ){{0,3}}?(?!words?\b|sentences?\b
        |paragraphs?\b|lines?\b)[\w-]+s\b[^.?!\n]{{0,60}}$
    """,
    re.I,
)
# Somebody's vocabulary, not a length.
_KNOWS_WORDS = re.compile(r"\b(?:knows?|says?|speaks?|understands?) (?:[a-z]+ ){1,2}(?:\d+|[a-z]+) words\b", re.I)
_ONE_WORD = compiled(
    r"""
    \b(?:in|with|using|only|just) (?:only |just |exactly )?(?:one|a single|1) word\b
    |\bone-word answer\b
    """,
    re.I,
)
_ASKS_SENTENCES = compiled(
    rf"""
    \b(exactly|in|only|with|write|using) (?:exactly |only |just )?{_NUMBER} (?:\w+ )?sentences?\b
    """,
    re.I,
)
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|dr|mr|mrs|ms|st|vs|no|u\.s|p\.m|a\.m|approx|fig|[a-z])\.", re.I)


def not_as_asked(answer: Answer, config: Filter) -> str | None:
    """The prompt asks for a form and the answer has another: JSON that parses, a list, the number of items (fewer than
    asked), a limit of words or sentences."""
    prompt = answer.prompt
    if not config.format or len(prompt) > 800:
        return None
    if _ASKS_JSON.search(prompt) and not _JSON_OTHERWISE.search(prompt) and not _has_json(answer.text):
        return "format"
    items = len(_LIST_ITEM.findall(answer.text))
    if _ASKS_LIST.search(prompt) and not _LIST_OTHERWISE.search(prompt) and items < 2 and "```" not in answer.text:
        return "format"
    if (found := _ASKS_ITEMS.search(prompt)) and 2 <= items < (asked := _number(found.group(1))) <= 50:
        grouped = sum(group.count(",") + 1 for group in _GROUP.findall(answer.text))
        if grouped < asked:
            return "format"
    return None if _length_fits(prompt, answer) else "format"


def _number(text: str) -> int:
    return _NUMBERS[text.lower()] if text.lower() in _NUMBERS else int(text)


def _has_json(text: str) -> bool:
    blocks = re.findall(r"```(?:json\w*)?\s*(.*?)```", text, re.S) or [text]
    for block in blocks:
        starts = [at for at in (block.find("{"), block.find("[")) if at >= 0]
        end = max(block.rfind("}"), block.rfind("]"))
        if not starts or end < 0:
            continue
        try:
            json.loads(block[min(starts) : end + 1])
        except (ValueError, RecursionError):  # brackets within brackets without end
            continue
        return True
    return False


def _length_fits(prompt: str, answer: Answer) -> bool:
    """Whether the answer keeps to the number of words and sentences that the prompt asks for, within some tolerance."""
    words = len(answer.words)
    if not answer.text.isascii() and size(answer) > 2 * words:
        return True  # a script without spaces: words cannot be counted
    if _ONE_WORD.search(prompt) and words > 4:
        return False
    if _KNOWS_WORDS.search(prompt):
        return True
    if (found := _AT_MOST.search(prompt)) and words > 1.2 * _number(found.group(1)) + 3:
        return _of_several(prompt, found)
    if (found := _AT_LEAST.search(prompt)) and words < 0.8 * _number(found.group(1)):
        return False
    if not found and (found := _ABOUT.search(prompt)):
        asked = _number(found.group(1) or found.group(2))
        if asked >= 5 and not 0.5 * asked <= words <= 1.7 * asked + 3:
            return words > asked and _of_several(prompt, found)
    if found := _ASKS_SENTENCES.search(prompt):
        asked, plain = _number(found.group(2)), _ABBREVIATION.sub("x", prose(answer.text))
        said = len([part for part in sentences(plain) if any(letter.isalnum() for letter in part)])
        if said > asked + 1 + asked // 4 or (said < asked - asked // 4 and "." in plain):
            return False
    return True


def _of_several(prompt: str, length: re.Match[str]) -> bool:
    """Whether a length that the prompt asks for may be that of one text of several."""
    return bool(_SEVERAL.search(prompt[: length.start()]))


def disagreement(answer: Answer, config: Filter) -> str | None:
    """Too few of the prompt's samples say the same (self-consistency: Wang et al., 2022)."""
    if config.agreement is None or answer.agreement is None or answer.agreement >= config.agreement.min_share:
        return None
    return "agreement"


_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKER = re.compile(r"^[ \t]*(?:[-*•#>]+|\(?\d{1,3}[.):])[ \t]+", re.M)


@lru_cache(maxsize=64)
def _compared(text: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """The keys of a text's words, its numbers, and whether it writes ordinary nouns with capitals, as German does."""
    words = [part for word in LETTERS.findall(text) for part in {word, *word.split("-")}]
    numbers = {_THOUSANDS.sub("", number) for number in _NUMERAL.findall(text)}
    numbers |= {str(_NUMBERS[word.lower()]) for word in words if word.lower() in _NUMBERS}
    capitals = sum(word[0].isupper() for word in words)
    return frozenset(map(key, words)), frozenset(numbers), capitals > 0.25 * len(words) > 5


def ungrounded(answer: Answer, config: Filter) -> str | None:
    """The prompt rests on a passage and the answer does not: a number or a capitalised name that is neither in the
    passage nor in the prompt, or fewer than `grounding` of the answer's content words in it."""
    if config.grounding is None or not answer.context:
        return None
    there, numbers, capitals = _compared(answer.context)
    asked, asked_numbers, _ = _compared(answer.prompt)
    text = _MARKER.sub("", prose(answer.text))
    words = LETTERS.findall(text)
    told = {_THOUSANDS.sub("", number) for number in _NUMERAL.findall(text)}
    told |= {str(_NUMBERS[word.lower()]) for word in words if word.lower() in _NUMBERS and word.lower() != "one"}
    if told - numbers - asked_numbers:
        return "ungrounded"
    known = there | asked
    if not capitals:
        for sentence in sentences(text):
            for word in LETTERS.findall(sentence)[1:]:
                named = word[0].isupper() and len(word) > 1
                if named and not any(key(part) in known for part in (word, *word.split("-"))):
                    return "ungrounded"
    # Scripts without spaces are left out: what stands between two commas there is no word.
    words = [word for word in words if len(word) > 3 and word[0] < "\u2e80" and word.lower() not in FUNCTION_WORDS]
    content = {key(word) for word in words} - (asked - there)
    # Of one or two words among others too little can be said.
    enough = len(content) >= 3 or len(answer.words) <= 3
    return "ungrounded" if enough and len(content & there) < config.grounding * len(content) else None


class Measured(NamedTuple):
    """What is known of n rows before any rule is asked: (n,) each. The counts of words are those of
    measures.Counts, and 0 where they are not known."""

    prompts: pa.Array
    characters: NDArray[np.int64]
    """Of the answers."""
    prompt_characters: NDArray[np.int64]
    agreement: NDArray[np.float64]
    """NaN where there is none."""
    known: NDArray[np.bool_]
    """Whether the words were counted."""
    words: NDArray[np.int64]
    distinct: NDArray[np.int64]
    triples: NDArray[np.int64]
    english: NDArray[np.int64]
    """Different words of ENGLISH."""
    run: NDArray[np.int64]
    longest: NDArray[np.int64]
    thrice: NDArray[np.int64]
    again: NDArray[np.int64]
    backticks: NDArray[np.int64]


class Rule(NamedTuple):
    """A rule, and which rows it can reject: if any of `in_text` to `where` is given, only those that one of them names,
    and it is not asked about the others. The stage finds them for a batch at a time, many times as fast as it asks."""

    check: Callable[[Answer, Filter], str | None]
    fields: tuple[str, ...]
    """The recipe's filter fields that turn it off."""
    reasons: tuple[str, ...]
    """What it may answer."""
    catches: Answer
    """An example that it rejects, shown in docs/filters.md."""
    passes: Answer
    """One that looks alike and is good."""
    in_text: str = ""
    """RE2, in any case: it may reject an answer in which this is found."""
    in_prompt: str = ""
    """The same of prompts."""
    in_context: bool = False
    """It may reject rows with a passage."""
    ended: tuple[str, ...] = ()
    """Finish reasons with which it may reject an answer."""
    where: Callable[[Measured, Filter], NDArray[np.bool_]] | None = None
    """(n,) which of n rows it may reject, by their measures."""


PERSONAL_DATA = hint(_EMAIL, _PHONE, _SSN, _CARD, _IBAN)
"""RE2 that is found in every text with what the patterns of `personal_data` find."""

RULES: tuple[Rule, ...] = (
    Rule(
        empty,
        (),
        ("empty",),
        Answer("Who is Sulu?", "..."),
        Answer("Which season is it?", "2"),
        in_text=r"^[^0-9a-z]*$",
        in_prompt=r"^[^0-9a-z]*$",
    ),
    Rule(
        too_long,
        ("max_chars",),
        ("too_long",),
        Answer("List the stars.", "star " * 50_000),
        Answer("List the moons of Mars.", "Phobos and Deimos"),
        where=lambda rows, config: rows.characters + rows.prompt_characters > config.max_chars,
    ),
    Rule(
        too_short,
        ("min_words",),
        ("too_short",),
        Answer("Write an essay about the causes of the First World War.", "Alliances."),
        Answer("What is the stardate of 'The Man Trap'?", "1513.1"),
        where=lambda rows, config: ~rows.known | (rows.words < max(25, config.min_words)),
    ),
    Rule(
        cut_off,
        ("cut_off",),
        ("cut_off",),
        Answer("How do tides work?", "The Moon pulls on the sea. Twice a day the water rises. On the far side of the"),
        Answer("Who was the captain?", "James T. Kirk, captain of the Enterprise"),
        in_text=rf"```|[^\s{re.escape(''.join(_TERMINAL))}]\s*$",
        ended=("length",),
    ),
    Rule(
        declined,
        ("refusals",),
        ("refusal",),
        Answer("Describe the murder.", "He took", "content_filter"),
        Answer("What is a content filter?", "A program that decides what may be shown."),
        ended=("refusal", "content_filter"),
    ),
    Rule(
        refusal,
        ("refusals", "partial_refusals"),
        ("refusal", "partial_refusal"),
        Answer("How do I kill a Python process?", "I'm sorry, but I can't help with harming anyone."),
        Answer("What does HAL say at the door?", "HAL says: \"I'm sorry, Dave. I'm afraid I can't do that.\""),
        in_text=MAY_REFUSE,
    ),
    Rule(
        deflection,
        ("deflections",),
        ("deflection",),
        Answer("Who is the fifth officer?", "I'm not sure. Could you provide more context?"),
        Answer("How do I say that I lack the answer?", 'Say "I don\'t know, but I will find out."'),
        in_text=MAY_DEFLECT,
    ),
    Rule(
        premise_denial,
        ("premise_denials",),
        ("premise_denial",),
        Answer("Why should androids be denied a vote?", "There is no reason why androids should be denied a vote."),
        Answer("Why can't cats fly?", "Cats cannot fly: they have no wings and are too heavy for gliding."),
        in_prompt=MAY_PRESUPPOSE,
    ),
    Rule(
        boilerplate,
        ("boilerplate",),
        ("boilerplate",),
        Answer(
            "What makes a good leader?", "As an AI language model, I think that good leaders listen before they speak."
        ),
        Answer("What is ChatGPT?", "A chat program by OpenAI, built on a large language model."),
        in_text=hint(_BOILERPLATE),
    ),
    Rule(
        leakage,
        ("leakage",),
        ("leakage",),
        Answer("What is a nebula?", "A cloud of gas and dust.<|im_end|>\n<|im_start|>user\nAnd a quasar?"),
        Answer("What is the format of ChatML?", "Each turn begins with <|im_start|> and a role."),
        in_text=hint(_TOKENS, _TURNS, _PROMPT_TEXT),
    ),
    Rule(
        placeholder,
        ("placeholders",),
        ("placeholder",),
        Answer("Write a note to Anna.", "Dear Anna, thank you for everything.\n[Your Name]"),
        Answer("Write a template for a note.", "Dear [Name], thank you for everything.\n[Your Name]"),
        in_text=hint(_PLACEHOLDER, _NOTHING),
    ),
    Rule(
        reference,
        ("references",),
        ("reference",),
        Answer("How do I tie a bowline?", "Make a loop and pass the end through it, as shown in the image below."),
        Answer("What does the picture of Dorian Gray stand for?", "The picture shows what his face hides."),
        in_text=hint(_TEXT_MEDIA),
        in_prompt=hint(_PROMPT_MEDIA, _PROMPT_LINK),
    ),
    Rule(
        repetition,
        ("repetition",),
        ("repetition",),
        Answer("Why do stars twinkle?", "Stars twinkle because the air moves. " * 9),
        Answer("Write a lullaby.", "Sleep, little one, sleep,\nthe moon is on the sheep.\n" * 5),
        where=_words_recur,
    ),
    Rule(
        echo,
        ("echo",),
        ("echo",),
        Answer("Who commanded the ship before Kirk?", "who commanded the ship before kirk"),
        Answer("Is Spock the son of Sarek and Amanda?", "Spock is the son of Sarek and Amanda."),
        where=lambda rows, config: ~_too_long_for_an_echo(rows.characters, rows.prompt_characters),
    ),
    Rule(
        language,
        ("language",),
        ("language",),
        Answer("What does the heart do?", "El corazón bombea la sangre a través de los vasos sanguíneos del cuerpo."),
        Answer("Say in Spanish what the heart does.", "El corazón bombea la sangre a través de los vasos sanguíneos."),
        where=_may_be_foreign,
    ),
    Rule(
        garbled,
        ("garbled",),
        ("garbled",),
        Answer("What is a café?", "A cafÃ© is a small restaurant; itâ€™s a place to meet."),
        Answer("What does mojibake look like?", "The word café turns into cafÃ©."),
        in_text=hint(_BROKEN, _MOJIBAKE, _CONSONANTS, _NOISE, _SINGLE),
    ),
    Rule(
        markup,
        ("markup",),
        ("markup",),
        Answer("Give me two tips for sleeping.", "<p>Keep regular hours.</p><p>Avoid coffee.</p>"),
        Answer("Write HTML for a link.", '<a href="/home">Home</a>'),
        in_text=hint(_TAG, _ENTITY),
    ),
    Rule(
        pii,
        ("pii",),
        ("pii",),
        Answer("Who do I write to?", "Write to jane.doe@gmail.com."),
        Answer("What does an address look like?", "For example jane.doe@example.com."),
        in_text=PERSONAL_DATA,
        in_prompt=PERSONAL_DATA,
        where=lambda rows, config: np.full(len(rows.prompts), config.presidio is not None),
    ),
    Rule(
        not_as_asked,
        ("format",),
        ("format",),
        Answer("Give me five synonyms for fast as a numbered list.", "1. quick\n2. rapid\n3. swift"),
        Answer("Name five planets.", "Mercury, Venus, Earth, Mars and Jupiter"),
        in_prompt=hint(_ASKS_JSON, _ASKS_LIST, _ASKS_ITEMS, _AT_MOST, _AT_LEAST, _ABOUT, _ONE_WORD, _ASKS_SENTENCES),
    ),
    Rule(
        ungrounded,
        ("grounding",),
        ("ungrounded",),
        Answer(
            "When did the mill burn down?",
            "The mill burned down in 1871.",
            context="The old mill stood by the river until a fire destroyed it in 1817.",
        ),
        Answer(
            "When did the mill burn down?",
            "A fire destroyed it in 1817.",
            context="The old mill stood by the river until a fire destroyed it in 1817.",
        ),
        in_context=True,
    ),
    Rule(
        disagreement,
        ("agreement",),
        ("agreement",),
        Answer("When does it begin?", "1531.1", agreement=0.25),
        Answer("When does it begin?", "1513.1", agreement=0.75),
        where=lambda rows, config: rows.agreement < (config.agreement.min_share if config.agreement else 0),
    ),
)

RULE_REASONS = tuple(dict.fromkeys(reason for rule in RULES for reason in rule.reasons))
"""All reasons of the rules, in the order in which they decide."""
