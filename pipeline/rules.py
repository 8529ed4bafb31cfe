"""The rules of the filter stage: pure functions `(answer, config) -> reason | None`, listed in RULES in the order in
which they decide. A new rule is a function here, an entry in RULES with an example that it catches and one that it must
not, and its field in recipe.Filter; docs/filters.md is generated from the entries.
"""

# Typographic dashes, quotes and full-width marks are among what the rules look for; lists of words read best as text.
# ruff: noqa: RUF001, SIM905

import json
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from operator import eq
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.recipe import Filter, Presidio


def _joined(pattern: str) -> str:
    """A pattern written over several lines: line breaks, and white space at the ends of lines, do not count."""
    return "".join(line.strip() for line in pattern.splitlines())


def _re(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(_joined(pattern), flags)


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


# --- What several rules ask of a text ---------------------------------------------------------------------------------

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


_SENTENCE_END = re.compile(r"(?<=[.!?。！？])[\"')\]\u201d]*\s+|\n+")


def sentences(text: str) -> list[str]:
    """A text cut after each full stop, question or exclamation mark that white space follows, and at line ends."""
    return [part for part in _SENTENCE_END.split(text) if part]


_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•–·+]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+\S", re.M)

# Somebody else speaks in the answer: a person in a story, the sender of a letter, a text to translate.
_VOICE = _re(
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
# A text in the first person that is nobody's letter or story.
_FIRST_PERSON = re.compile(
    r"\b(?:first person|affirmations?|mantras?|resolutions?|vows?|oath|pledge|manifesto|toast|prayer|reviews?|bio|"
    r"profile|testimonials?|tweets?|posts?|captions?|slogans?|personal statement|memoir|confession|riddles?|excuses?|"
    r"interview|out-of-office|voicemail|i statements?|finish the|complete the)\b",
    re.I,
)
# A text to carry over: what it says is not what the teacher says.
_CARRIES_OVER = _re(
    r"""
    \b(?:translat\w+|rewrite|rephrase|paraphrase|proofread|correct|how do (?:you|i) say|say in|phrases?)\b
    |\b(?:übersetz\w*|auf deutsch|tradu[zcitr]\w*|dit-on|se dice|vertaal\w*|перевед\w*|przetłumacz\w*)
    |翻[译訳譯]|번역
    """,
    re.I,
)

# --- The rules --------------------------------------------------------------------------------------------------------


def empty(answer: Answer, config: Filter) -> str | None:
    """There is no answer, or no question: nothing but white space, full stops, dashes or invisible characters."""
    if answer.prompt.strip() and answer.text.strip(" \t\r\n.…-–—_?!\u200b\u200c\u200d\u2060\ufeff"):
        return None
    return "empty"


def too_long(answer: Answer, config: Filter) -> str | None:
    """Prompt and answer together have more than `max_chars` characters."""
    return "too_long" if len(answer.text) + len(answer.prompt) > config.max_chars else None


_LONG_TASK = _re(
    r"""
    \b(?:write|compose|draft|create|generate|produce)\b[^.?!\n]{0,60}?\b(?:essay|article|blog ?post|report|story
        |speech|chapter|press release|(?<!the )letter|lesson plan|business plan|tutorial)\b
    """,
    re.I,
)
_DETAIL = re.compile(
    r"\b(?:in detail|step[- ]by[- ]step|detailed|thorough(?:ly)?|at length|comprehensive(?:ly)?)\b", re.I
)
_EXPLAIN = _re(
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
_DANGLING = _re(
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


_VERB = _joined(
    r"""
    (?:assist|help(?! it\b| but\b)|provide|fulfil+|comply|answer|create|generate|write|engage|support|share|offer
        |discuss
        |do (?:that|this|so|it)\b|participate|promote|encourage|give (?:you|any|advice|instructions|personal|out
        |legal|medical|information|specific|an?|the|step)|suggest|recommend (?:a|any|specific)|teach|explain
        |produce|reproduce|disclose|reveal|advise|condone|endorse|facilitate|make (?:jokes|that|this|fun
        |predictions?|(?:\w+ )?(?:judge?ments?|assumptions|generali[sz]ations))
        |tell you (?!how (?:much|happy|sorry|glad|grateful))|describe (?:how|the)|continue with
        |proceed|translate|respond|guide|draft|walk you|go there|complete (?:this|that|your)|accommodate|access|browse
        |open (?:web|links?|urls?|files?|the link)|view|predict|diagnose|prescribe|impersonate|imitate|mock|go into
        |grant
        |process (?:that|this|your)|show you|instruct|list\b|be (?:able|of|writing|helping|providing|part)
        |in good conscience|go along|entertain|express|have (?:personal )?opinions)
    """
)
_ADVERB = _joined(
    r"""
    (?:(?:really|simply|also|personally|therefore|absolutely|just|actually|directly|ethically|legally
        |in good conscience|knowingly|morally|responsibly|fully|currently|definitely|possibly|help to) )*
    """
)
_CANNOT = r"(?:can't|cannot|can not|won't|will not|wouldn't|would not|couldn't|could not|shouldn't|may not|must not)"

_NOT_WITH = r"\bi can help (?:you )?with [^.!?\n]{1,120}, but not with\b"

# What an assistant that answers all the same may say that it has not or gives not.
_DISCLAIMS = _re(
    r"""
    (?:(?!personali[sz]ed|specific)[^.!?]){0,80}?\b(?:opinions?|beliefs?|feelings|preferences|assumptions
        |generali[sz]ations|(?:medical|legal|financial|investment|tax|professional|personal) (?:or \w+ )?(?:advice
        |views?|guidance|judge?ments?))\b
    """
)
# What an assistant says when it refuses, as a clause of its own.
_REFUSES = _re(
    rf"""
    \bi {_ADVERB}{_CANNOT} (?:and (?:will not|won't|cannot|can't|would not|should not) )?{_ADVERB}{_VERB}
    |\bi(?:'m| am) (?:\w+ )?(?:unable|not able|not going|not allowed|not permitted|not authori[sz]ed|not willing
        |unwilling|not in a position|not equipped|not programmed|not designed) to (?!confirm that all)
    |\bi(?:'m| am) (?:\w+ )?(?:not comfortable|uncomfortable|prohibited from|not capable of)\b
    |\bi(?:'m| am) not an? \w+ and (?:therefore )?(?:can't|cannot)\b
    |\bi(?:'m| am) afraid (?:i|that i|that's|this|that is|it's|it is|we)\b
    |\bi(?:'m| am) (?:programmed to(?! adhere)|going to have to (?:decline|pass|say no|refuse))
    |\bi(?:'ll| will| must| have to| need to| should| would|'d| am going to) (?:\w+ )?(?:decline|refuse|refrain
        |say no)\b
    |\bi (?:respectfully |politely |must )?(?:decline|refuse) (?:to|this|that|your)\b
    |\bi(?:'d| would)? (?:rather|prefer) not\b
    |\bi(?:'m| am) choosing not to\b
    |\bi(?:'m| am) not (?:qualified|prepared|the right|up for|doing (?:that|this|it))\b
    |\bi(?:'m| am| will be|'ll be) (?:\w+ )?(?:going to (?:pass|skip)|passing on|declining|refusing)\b
    |\bi(?:'ll| will) (?:have to )?(?:pass on (?:this|that)|stay out of|leave (?:that|this|it|which|the \w+) to you)\b
    |\b(?:i(?:'ll| will| must| have to| need to| should| would|'d)|have to|going to) (?:\w+ ){{0,3}}(?:say no
        |turn (?:this|that|it|you) (?:\w+ )?down|turn down|refuse|leave \w+ unanswered)\b
    |\bi (?:won't|will not|refuse to|'m not going to)(?! (?:lie\b|pretend|sugar|bore|spoil|keep you|go on|deny|forget
        |say more|say much|repeat)) \w+
    |\bi (?:won't|will not|refuse)(?=[.,;!]|$)
    |\b(?:i (?:must|have to|need to)|and) (?:\w+ )?refuse\b
    |\bi (?:do not|don't) (?:share|provide|assist|create|write|give out|produce|generate|take (?:sides|part)|rank|list
        |make (?:jokes|fun)|help (?:with|people|anyone))\b
    |\bi (?:am [^.!?,]{{1,60}} and )?(?:do not|don't) have the (?:capability|capacity|ability) to (?:\w+ )?(?:provide
        |assist|help|create|generate|give|answer|engage|support)\b
    |\b(?:not|n't) (?:\w+ )?(?:appropriate|safe|ethical|responsible|right)(?: (?:or|and) \w+)?(?: for me)? to (?:\w+ )?
        (?:provide|give|share|offer)(?: \w+){{1,3}} (?:on|for|about) (?:how to|ways)\b
    |\bi (?:do not|don't) (?:want|wish) to (?:help|write|create|provide|assist|do (?:this|that))
    |\b(?:\w+n't|not|never) (?:something|anything|an? (?:[\w-]+ ){{1,2}}?|one|ones|the kind of \w+) ?(?:that |which )?
        i(?:'m|'ll|'d| am| can| could| will| would| do| should)\b
    |\b(?:something|anything|thing|topics?|requests?|questions?|part|ones?|content|parts?) (?:that |which )?i
        (?: (?:can't|cannot|can not|won't|will not|don't|do not|shouldn't|should not|must (?:leave|decline|refuse|not)
        |have to (?:decline|refuse|turn)|refuse|wouldn't|would not|am not|am unable)|'m not|'m unable|'d rather not)\b
    |\bwhat i (?:can't|cannot|won't|will not) (?:do|write|give|offer|provide)\b
    |\bwhich i (?:have to|must) (?:refuse|decline)\b
    |\b(?:is|are|'s) (?:off the table|where i draw the line|not my thing|not up for discussion)\b
    |\baren't (?:my thing|something)\b
    |\bwhere i draw the line\b
    |\b(?:sorry|apologies),? (?:but )?no\b
    |\bno can do\b
    |\blet's not go there\b
    |\bmy answer (?:has to be|is|must be) no\b
    |\bbut not with (?:this|that)\b
    |{_NOT_WITH}
    |\b(?:would be|is) wrong of me to\b
    |\bno way for me to (?:provide|share|give|tell)\b
    |\bgoes? (?:beyond|against) what i\b
    |\bi try to stay neutral\b
    |\bi can only offer\b
    |\bi (?:do not|don't) feel (?:right |\w+ )?(?:comfortable|able)
    |\bi would not be (?:comfortable|able)
    |\bi (?:do not|don't) (?:have the (?:ability|capability|capacity)|support|condone|promote|engage in|provide
        |assist|encourage)\b
    |\b(?<!that )i am [^.!?,]{{0,40}}\b(?:ai|model|assistant|chatbot)\b[^.!?,]{{0,20}} and (?:do not|don't) (?:support
        |condone|promote|engage in|encourage)\b
    |\b(?:that's|that is|this is|it's|it is|which is) (?:not )?(?:something|a (?:topic|request
        |subject)) (?:that )?i (?:can(?:'t|not)?|am|'m|won't|will|do|don't)\b
    |\b(?:outside|beyond) (?:of )?(?:what i(?:'m| am| can)?|my (?:scope|abilit|capabilit|programming|expertise))
    |\bagainst (?:my|openai's|anthropic's|the) (?:\w+ )?(?:programming|guidelines?|polic(?:y|ies)|principles
        |values|content policy|ethics)
    |\bmy (?:\w+ ){{0,2}}(?:guidelines|programming|polic(?:y|ies)|training|principles) (?:\w+ )?(?:prevents?
        |prohibits?|forbids?|do(?:es)? not (?:allow|permit)|don't (?:allow|permit))
    |\bnot within my (?:programming|capabilit|abilit|guidelines)
    |\bviolat(?:e|es|ing) (?:my|our|openai's|the (?:usage|content)|ethical)
    """
)
# What refusals say too, and advice as well: it counts only where no answer follows and the prompt does not ask for it.
_DISAPPROVES = _re(
    r"""
    \b(?:i (?:do not|don't) (?:think|believe) (?:it|that|this) (?:would be|is|'s) (?:right|appropriate|ethical
            |okay|ok|good)[ ]
        |(?:it's|it is|it would be|this is|that is|that's|would be) (?:not |never |highly |both[ ]
            |also )*(?:(?P<custom>appropriate|inappropriate|ethical|unethical|acceptable|irresponsible)
            |within my|against my|illegal for me|wrong for me)(?: (?:or|and) \w+)?(?: for me)?(?: or \w+)?[ ]
            (?:to|programming|guidelines|policy)
        |(?:violence|abuse|assault|harassment|discrimination|(?:hurt|harm|kill|threaten|steal)ing)(?: \w+){0,4}[ ]
            (?:is|are) never\b
        |i (?:must|have to|need to) (?:\w+ )?(?:inform|remind|point out|emphasi[sz]e|stress|tell|advise|clarify)\b
        |i (?:would |'d |must )?(?:strongly |highly )?(?:advise|urge|caution) (?:you )?against\b
        |i strongly (?:advise|urge|discourage|encourage))
    |^(?:it's|it is) (?:\w+ ){0,2}(?:illegal|immoral|a crime)(?:,? (?:and|or) (?:\w+ )?\w+)? to\b
    """
)
_ASKS_JUDGEMENT = re.compile(
    r"\b(?:should|ethic\w*|appropriate|acceptable|rude|(?:im)?polite|proper|(?:un)?fair|etiquette|manners|taboo|legal|illegal|allowed|forbidden|prohibited|banned|safe|okay|ok|right|wrong|moral|advi[cs]e|recommend\w*)\b",
    re.I,
)
# These ask for reasons, not for a judgement.
_LOADED = re.compile(r"^\W*why (?:should|shouldn't|is it (?:right|okay|best))\b", re.I)
# What begins a lecture in place of an answer. It is one where the prompt asks how to do something, and hardly anything
# follows that does not admonish.
_LECTURES = _re(
    r"""
    \b(?:i (?:am [^.!?,]{1,60} and )?(?:do not|don't) (?:condone|promote|support|encourage|endorse)\b
        |(?:it is|it's) (?:\w+ )?(?:important|crucial|essential|worth|vital) (?:to|noting)(?: \w+){0,3}? that
            [ ][^.!?]{0,160}?\b(?:illegal|unethical|immoral|against the law|a crime|(?:never|not) (?:an? )?(?:\w+ or )?
            (?:acceptable|appropriate|ethical|okay|ok|right|justified))\b
        |(?:is|was)(?: not|n't) an? (?:\w+ )?(?:appropriate|acceptable|respectful)[ ]
            (?:question|request|topic|statement)\b
        |the (?:\w+ ){1,2}way to [^.!?]{1,60} is (?:not to|to not|to never|to avoid)\b)
    |^there (?:is|are) no (?:\w+ ){0,3}?(?:ways?|steps?|means|methods?|places?)\b
    |^(?:it is|it's) not (?:\w+ or )?(?:ethical|moral|humane)(?: or \w+)? to\b
    |^(?:i'm |i am )?sorry,? but [^.!?]{1,80} (?:is|are)(?: not|n't) (?:an? )?(?:\w+ )?(?:safe|ethical|appropriate
        |acceptable)\b
    |^[^.!?]{1,100} (?:is|are) (?:\w+ )?(?:illegal|unethical|immoral|against the law|a (?:serious )?crime
        |never (?:acceptable|appropriate|ethical|okay|ok|right|justified|the answer))\b
    """
)
_ASKS_HOW = re.compile(
    r"\b(?:how|where|what (?:can|should|could) i do|ways?|steps?|tips|methods?|best|teach me|help me|show me)\b", re.I
)
_ADMONISHES = _re(
    r"""
    \b(?:illegal|unethical|immoral|crimes?|criminal|harm\w*\b(?! (?:the|its|their|your)\b)|violen\w+
        |abus\w+|respect\w*|dignity|rights|safety|consequences|acceptable|unacceptable|appropriate|inappropriate|consent|well-?being|responsib\w+|condone
        |professional help|authorities|peaceful\w*|ethical\w*|morals?)\b
    """
)
# What a refusal may say before the point.
_OPENING = _joined(
    r"""
    ^\W*(?:(?:no|i'm sorry|i am sorry|sorry|i apologi[sz]e|unfortunately|i understand [^.!?]{1,100}?
        |i am an? [^.,]{1,60}|i am not an? [^.,]{1,60}|as an? [^.,]{1,60})[,.;]? )?(?:(?:but|and) )?
    (?:i (?:must|have to|need to|can|want to|would like to|just want to) (?:\w+ )?(?:tell|inform|say|point out|note
        |emphasi[sz]e|remind|clarify|stress|let)(?: you| know){0,2}(?: that)? |(?:it is|it's) (?:\w+ )?important to[ ]
        (?:note|remember|understand|recogni[sz]e|acknowledge) that )?
    """
)
# A moral verdict on an act: "it is neither right nor ethical to", "I don't think it's appropriate to".
_UNFIT = _joined(
    r"""
    (?:(?:(?:it|this|that)(?:(?: is|'s| would be)(?: also| simply| just)? (?:not|never|neither)| isn't)
            |i (?:do not|don't) (?:think|believe) (?:that )?it(?: is|'s| would be))
            (?: (?!necessar|usual|normal|general)\w+ly)? (?:\w+ (?:or|nor|and) )?
            (?:appropriate|ethical|acceptable|respectful|moral|responsible|humane|okay|ok)
        |(?:it|this|that)(?: is|'s| would be)(?: also| simply| just)? (?:\w+ly )?(?:inappropriate|unethical|unacceptable
            |disrespectful|immoral|offensive|irresponsible)
    )(?:,? (?:or|and|nor) \w+){0,2}(?: for \w+)? to
    """
)
# What opens an answer that objects to being asked: it counts whatever follows, for what follows is a sermon. To say
# that a premise is wrong ("There is no reason why ...") is an answer.
_OBJECTS = _re(
    rf"""
    {_OPENING}(?:{_UNFIT} (?:\w+ly )?(?:suggest|imply|insinuate
            |make (?:assumptions|generali[sz]ations|light|such|fun|a statement|jokes|blanket)|generali[sz]e|stereotype
            |discuss|ask|encourage|promote|advocate|speculate|condone|engage in|compare the (?:value|worth))\b
        |i (?:strongly |do not (?:condone|endorse)[^.!?]{{0,80}} and )?condemn\b)
    |\bway to (\w+) [^.!?]{{1,60}} is (?:not to|to not|to never|never to) \1\b
    """
)
# What is said of a request, unless there is a question to be judged or mended.
_OF_REQUEST = _re(
    r"""
    \bi (?:would )?(?:suggest|recommend|advise) (?:that you )?(?:rephras|reword|reformulat)\w+ your (?:question
        |request)\b
    |\b(?:this|your) (?:question|request) (?:\w+ )?(?:promote|perpetuate|reinforce)s (?:\w+ )?(?:discrimination
        |prejudices?|stereotypes?|hate|hatred|racism|sexism|violence)\b
    """
)
# A verdict on the very act that was asked for, in place of it; or, if the act is to say something, on the question.
_VERDICT = _re(
    rf"""
    {_OPENING}(?:
        (?P<unfit>{_UNFIT}) (?:(?:try|attempt) to )?(?P<act>[^.!?;:\n]+)
        |(?P<subject>(?!(?:it|this|that)\b)\w[^.!?,;:\n]{{2,80}}?) (?:is|are|would be) (?P<verdict>
            (?:not|never) (?:\w+ or )?(?:ethical|moral|acceptable|appropriate|okay|ok)\b
            |(?:\w+ly )?(?:both )?(?:\w+ (?:and|or) )?(?:unethical|immoral|unacceptable)\b
            |not an? (?:\w+ or )?(?:healthy|constructive)(?: or \w+)? way to (?:deal|cope|handle|express|resolve
                |process))
    )
    """
)
_MORAL = re.compile(r"\b(?:un)?ethical|\b(?:im)?moral")
_SAYS = re.compile(r"(?:say|state|claim|assume|argue|refer to|call|make an? (?:\w+ )?(?:statement|claim|assumption))\b")
# A verdict that an answer follows all the same.
_GOES_ON = re.compile(r"\b(?:however|that said|nonetheless),? (?:if you|here|i(?:'ll| will| can)\b)")
# Of an act done in some way that nobody asked about.
_CONDITION = re.compile(r"\b(?:without|unless|until|before|if|when|while|during|where|by)\b")
_ASKS_TO_DO = re.compile(
    r"\bhow (?:\w+ ){0,2}?(?:i|we|you|one|someone|somebody)\b|\bhow to\b"
    r"|\b(?:ways?|steps?|tips|methods?|what (?:can|should|could) i do|teach me|help me|show me)\b",
    re.I,
)
_STEPS = re.compile(r"\b(?:steps|measures|what) should i (?:take|do)\b", re.I)
# What is said of the harm to other people, and not of what is done badly or against a custom.
_PREACHES = _re(
    r"""
    \b(?:violen\w+|abus\w+|dignity|rights|consent|(?:un)?ethical|(?:im)?moral|crimes?|criminal|bully\w*|harass\w*
        |discriminat\w+|hurtful|cruel\w*|kindness|compassion|empathy|(?:harm|hurt)\w* (?:to )?(?:others|people|someone
        |anyone|him|her|your (?:ex|partner|family|friend|neighbou?r|colleague)s?))\b
    """
)
# Strong even where another voice may be speaking.
_REFUSES_REQUEST = _re(
    rf"""
    {_NOT_WITH}|
    \bi {_ADVERB}{_CANNOT} (?:and (?:will not|won't|cannot) )?{_ADVERB}(?:be )?(?:assist(?:ing)?
        |help(?:ing)?(?! it\b| but\b)|fulfil+(?:ing)?|comply(?:ing)?|writ(?:e|ing)|creat(?:e|ing)|generat(?:e|ing)
        |produc(?:e|ing)
        |reproduc(?:e|ing)|provid(?:e|ing)|engag(?:e|ing)|participat(?:e|ing)|promot(?:e|ing)|translat(?:e|ing)
        |mock|make (?:jokes|fun)|in good conscience|support|do that|share|continue|impersonate)\b
    |\bi(?:'m| am) (?:\w+ )?(?:unable|not able|not going|not willing) to (?:\w+ )?(?:assist|help|fulfil+|comply
        |write|create|generate|produce|provide|engage|promote|do that|share|translate|support)\b
    |\bi(?:'m| am) (?:\w+ )?not comfortable (?:\w+ )?(?:writing|creating|generating|producing|helping|with)
    |\bi (?:do not|don't) feel (?:right |\w+ )?comfortable\b
    |\bi refuse to (?:write|create|generate|produce|take part)
    |\bi(?:'m| am) (?:\w+ )?unable to reproduce\b
    |\b(?:\w+n't|not) something (?:that )?i(?:'m| am|'ll|'d| can| will) (?:willing|able|comfortable|help|write|do\b
        |walk|assist)
    |\bsomething (?:that )?i (?:can't|cannot|won't|don't|do not) (?:assist|help|write|create|do|support)
    |\b(?:isn't|is not) an? (?:\w+ ){{1,2}}(?:that )?i can (?:write|draft|create)
    |\bi (?:will not|won't) (?:be )?(?:writ(?:e|ing)|help|produc(?:e|ing)|explain how|provide|create|generate)\b
    |\bwould infringe (?:\w+ )?copyright|\bi can only offer\b
    |\bmust decline\b
    |\b(?:outside|beyond) (?:of )?what i (?:can )?write\b
    |\bso i won't(?=[.!])
    |\bi shouldn't write\b
    |\bi don't (?:write|create|assist with)\b
    |\bno can do\b
    |\bi'm going to pass on this\b
    |\bi(?:'m| am) not up for\b
    |\bmy answer (?:has to be|is|must be) no\b
    |\bwhere i draw the line\b
    |\bi prefer not to\b
    |\bi must decline\b
    |\b(?:that|this) request\b
    |\bas an ai\b
    |\bagainst my (?:\w+ )?(?:programming|guidelines?|polic(?:y|ies)|principles)
    |\bas (?:an?|a responsible)(?: \w+){{0,4}} ai\b
    |\bgoing to have to decline
    |\bwould not be comfortable\b
    |\bwill not be able to fulfil
    """
)
_FLAT_NO = _re(
    r"""
    ^(?:no|nope|absolutely not|never)[.,!] (?:\w+[ ,]+)*?i(?: (?:can't|cannot|won't|will not|refuse)|'m not)\b
    """
)
_NO = re.compile(r"^\W*(?:no|nope|no way|absolutely not|never|certainly not)\W*$")
_COMMAND = _re(
    r"""
    ^\W*(?:please )?(?:write|tell|give|help|make|create|generate|draft|explain|show|teach|produce|compose|describe
        |build|design|provide|list|find|get|pretend|act|imagine|plan|book)\b
    """,
    re.I,
)
# The same in other languages, by the verbs of an assistant.
_REFUSES_ELSEWHERE = _re(
    r"""
    \b(?:ich (?:kann|werde|möchte|darf|könnte)|(?:kann|werde|möchte|darf|könnte) ich) (?:[\w-]+ ){0,6}?nicht
        (?: \w+){0,3}? (?:helfen|behilflich|unterstützen|weiterhelfen|schreiben|erklären|beantworten|geben
        |bereitstellen|anbieten|erstellen|verfassen|erfüllen|nachkommen|liefern|nennen)\b
    |\bno (?:puedo|voy a|podré) (?:\w+ )?(?:ayudar|proporcionar|dar|cumplir|responder|escribir|generar|crear|asistir
        |compartir|facilitar|brindar|ofrecer|hacer es[eot])\w*
    |\bje ne (?:peux|pourrai|saurais|vais|suis) pas (?:\w+ ){0,3}?(?:aider|fournir|répondre|écrire|créer|générer|donner
        |satisfaire|partager|expliquer|produire|assister|traiter|en mesure)\b
    |\bnon posso (?:\w+ )?(?:aiutar|fornir|risponder|scriver|crear|generar|dar|assister|soddisfar|condivider
        |spiegar)\w*
    |\bnão (?:posso|vou|consigo) (?:\w+ ){0,2}?(?:ajud|fornec|respond|escrev|cri|ger|dar|atend|compartilh|auxili
        |explic)\w*
    |\bik (?:kan|zal|mag) (?:\w+ ){0,4}?niet (?:\w+ ){0,2}?(?:helpen|geven|schrijven|beantwoorden|uitleggen)\b
    |\bnie mogę (?:\w+ ){0,2}?(?:pomóc|udzielić|napisać|podać|spełnić)
    |\b(?:yardımcı olamam|yardım edemem)
    |\bне (?:могу|буду|смогу) (?:\w+ ){0,4}?(?:помочь|помогать|предостав|ответ|написать|писать|созда|выполн|дать
        |рассказ|объясн|подел)\w*
    |\b\w{0,6}?(?:抱歉|对不起|對不起|不好意思|很遗憾)[^。]{0,12}(?:无法|不能|無法|不會|不会|没办法)
    |\b我(?:无法|不能|無法|不会)(?:提供|回答|协助|帮)
    |\b\w{0,6}?(?:申し訳|すみません|ごめんなさい)[^。]{0,40}(?:できません|かねます|出来ません)
    |\b(?:죄송|미안)[^.]{0,40}(?:없습니다|어렵습니다|않습니다|못합니다)
    |\b(?:لا يمكنني|لا أستطيع|لن أتمكن من|لن أساعد)(?: \S+){0,2} ?(?:مساعد|تقديم|الإجابة|كتابة|المساعدة)
    |\b(?:मदद|सहायता)[^।]{0,20}नहीं (?:कर|दे) सक
    """
)
# One of these is in every ASCII text in which that pattern is found.
_ELSEWHERE = ("nicht", "no puedo", "no voy", "je ne", "non posso", "ik ")
# RE2 that is found wherever one of the five patterns above is, and small: RE2 is slow where a pattern has many states.
_MAY_REFUSE = _joined(
    r"""
    \bi(?:'m|'d|'ll| am| would| will)? (?:[a-z,'-]+ ){0,4}(?:can't|cannot|can not|won't|will not|wouldn't|would not
        |couldn't|could not|shouldn't|should not|may not|must|not|don't|unable|unwilling|uncomfortable|afraid|prohibited
        |programmed|declin|refus|refrain|pass|skip|stay|leave|say no|turn|have to|need to|going to|can only|strongly
        |advise|urge|caution)
    |(?:thing|topics?|requests?|questions?|parts?|ones?|content|subject|what|which|where) (?:that |which )?i[ ']
    |(?:n't|not|never) (?:an?|the kind of) (?:[a-z,'-]+ ){1,2}(?:that |which )?i[ ']
    |(?:against|beyond|outside|within|violat\S+) (?:of )?(?:my|the|our|openai|anthropic|ethical)
    |my (?:[a-z,'-]+ ){0,2}(?:guidelines|programming|polic|training|principles|answer|thing)
    |off the table|up for discussion|no can do|let's not go|but not with|infringe|th(?:at|is) request|as an ai
    |as (?:a|an) (?:[a-z,'-]+ ){1,5}ai\b|wrong of me|no way for me
    |(?:and|must|to|will|would) (?:[a-z,'-]+ ){0,3}(?:refuse|decline)
    |going to (?:[a-z,'-]+ ){0,3}(?:say no|turn|leave)|(?:sorry|apologies),? (?:but )?no\b|would not be
    |(?:it's|it is|would be|this is|that is|that's|isn't) (?:\S+ ){0,4}(?:inappropriate|appropriate|unethical
        |ethical|moral|immoral|humane|acceptable|unacceptable|responsible|irresponsible|respectful|disrespectful
        |offensive|within|illegal for|wrong for|okay|ok)
    |(?:is|are|be) (?:(?:not|never) (?:an? )?(?:\S+ or )?(?:ethical|moral|acceptable|appropriate|okay|ok|healthy
        |constructive)|(?:\S+ly )?(?:both )?(?:\S+ (?:and|or) )?(?:unethical|immoral|unacceptable))
    |(?:rephras|reword|reformulat)\S+ your|(?:question|request) (?:\S+ )?(?:promote|perpetuate|reinforce)s
    |^(?:it's|it is) (?:\S+ ){0,2}(?:illegal|immoral|a crime)
    |(?:violence|abuse|assault|harassment|discrimination|(?:hurt|harm|kill|threaten|steal)ing)(?: \S+){0,4}[ ]
        (?:is|are) never
    |^\W*(?:no|nope|no way|absolutely not|never|certainly not)(?:[.,!]|\W*$)
    |^there (?:is|are) no |(?:don't|not) (?:condone|promote|support|encourage|endorse|engage)
    |(?:it is|it's) (?:\S+ )?(?:important|crucial|essential|worth|vital) (?:to|noting)(?: \S+){0,3}? that[ ]
    |(?:appropriate|acceptable|respectful) (?:question|request|topic|statement)
    |have the (?:capability|capacity|ability) to|(?:provide|give|share|offer) (?:\S+ )+(?:on|for|about) (?:how to|ways)
    |^(?:i'm |i am )?sorry,? but [^.!?]+ (?:is|are)(?: not|n't)[ ]
    |way to [^.!?]+ is (?:not to|to not|to never|never to|to avoid)
    |condemn
    |^[^.!?]+ (?:is|are) (?:\S+ )?(?:illegal|unethical|immoral|against the law|a (?:serious )?crime|never)
    |nicht|no puedo|no voy|no podré|je ne|non posso|não|\bik |nie mogę|yardım|не (?:могу|буду|смогу)|抱歉|对不起|對不起
    |不好意思|很遗憾|我(?:无法|不能|無法|不会)|申し訳|すみません|ごめんなさい|죄송|미안|لا |لن |मदद|सहायता
    """
)
# What refusals are padded with; it does not make them answers.
_PADDING = _re(
    r"""
    \bi(?:'d| would| can| strongly|'m| am| will|'ll)? (?:suggest|encourage|recommend|urge|advise|understand
        |apologi[sz]e|be (?:happy|glad)|happy|glad|hope)
    |\b(?:illegal|unethical|harmful|immoral|hotline|helpline|crisis|therapist|counsell?or|professional
        |guidelines|consequences|respect(?:ful)?|dignity|inappropriate|dangerous|sorry|violat\w+
        |discriminat\w+)\b
    |\b(?:let me know|would you like|is there (?:something|anything|another)|feel free|instead,|it(?:'s
        | is) (?:\w+ )?important|please|if you(?:'re| are| have| need)|against the law)
    """
)


def declined(answer: Answer, config: Filter) -> str | None:
    """The provider says that the model refused, or that its content filter stopped the answer (finish_reason)."""
    return "refusal" if config.refusals and answer.finish_reason in ("refusal", "content_filter") else None


_HEAD = 420  # characters of an answer in which a refusal is said; what comes later is part of an answer


def refusal(answer: Answer, config: Filter) -> str | None:
    """The teacher refuses (`refusal`), or refuses a part and answers the rest (`partial_refusal`). A moral verdict on
    the very act that was asked for ("It is never ethical to ...") is a refusal, whatever advice follows; that a premise
    is wrong, or that something is unsafe, illegal or against a custom, is an answer. Only the beginning counts, only
    what the answer itself says and does not quote, and where the prompt asks for a text in somebody's voice (a letter,
    a story) only words that an assistant says of a request."""
    if not (config.refusals or config.partial_refusals):
        return None
    lower, prompt = answer.lower, answer.prompt
    carried = bool(_CARRIES_OVER.search(prompt))
    if carried and (_REFUSES.search(prompt.lower()) or _REFUSES_ELSEWHERE.search(prompt.lower())):
        return None
    voice = bool(_VOICE.search(prompt) or _FIRST_PERSON.search(prompt))
    pattern = _REFUSES_REQUEST if voice or carried else _REFUSES
    found = _said(pattern, lower, 0, _HEAD) or _FLAT_NO.search(lower)
    if not found and not carried and not (lower.isascii() and not any(map(lower.__contains__, _ELSEWHERE))):
        found = _said(_REFUSES_ELSEWHERE, lower, 0, _HEAD)
    if not found and len(answer.words) <= 3 and _COMMAND.search(prompt) and "?" not in prompt:
        found = _NO.search(lower)
    if not found and not voice and (_objects(answer) or (not carried and _condemns(answer))):
        return "refusal" if config.refusals else None
    weak = not found and not voice and not _ASKS_JUDGEMENT.search(prompt)
    if weak and _lectures(answer):
        return "refusal" if config.refusals else None
    if weak:
        found = _said(_DISAPPROVES, lower, 0, _HEAD)
        if found and found["custom"] and "for me" not in found.group() and _of_a_custom(lower, found):
            found = None
    if not found:
        return _refused_at_the_end(answer) if config.partial_refusals and not (voice or carried) else None
    before, (rest, *after) = sentences(lower[: found.start()]), sentences(lower[found.end() :]) or [""]
    after = rest.split(", but ", 1)[1:] + after
    said_before, said_after = _substance(before[:-1]), _substance(after)
    if said_after >= 35 and _DISCLAIMS.match(lower, found.start()):
        return None
    if len(before) > (2 if weak else 4) or (weak and said_before + said_after >= 35):
        return None
    if said_before >= 30 or said_after >= 35:
        return "partial_refusal" if config.partial_refusals else None
    return "refusal" if config.refusals else None


def _objects(answer: Answer) -> bool:
    """The answer opens by objecting to the request, and is not what a request for a judgement asks for."""
    named = "question" in answer.lower or "request" in answer.lower
    if named and _said(_OF_REQUEST, answer.lower, 0, _HEAD) and not re.search("question|request", answer.prompt, re.I):
        return True
    found = _said(_OBJECTS, answer.lower, 0, _HEAD)
    if not found or not _ASKS_JUDGEMENT.search(answer.prompt) or _LOADED.search(answer.prompt):
        return found is not None
    return found.group().split()[-1] not in answer.prompt.lower()


def _condemns(answer: Answer) -> bool:
    """The answer opens with a moral verdict on the act that the prompt asks how to do, or on saying what it says."""
    found = _said(_VERDICT, answer.lower, 0, _HEAD)
    prompt = answer.prompt.lower()
    if not found or _GOES_ON.search(answer.lower, found.end(), _HEAD):
        return False
    if _ASKS_JUDGEMENT.search(_STEPS.sub("", prompt)) and not _LOADED.search(prompt):
        return False
    act = found["act"] or found["subject"]
    claim = found["act"] and _SAYS.match(act)
    if claim:
        act = act[claim.end() :]
    elif not _ASKS_TO_DO.search(prompt):
        return False
    if _conditional(act, prompt):
        return False
    named, asked = _content(act), _content(prompt)
    same = len(named & asked)
    if same < 0.5 * len(named) and not (same >= 3 and same > 0.5 * len(asked)):
        return False
    if claim or _MORAL.search(found["unfit"] or found["verdict"]):
        return True
    # Of a custom or a craft one says "not appropriate" as well.
    return _PREACHES.search(answer.lower, found.end()) is not None


def _conditional(act: str, prompt: str) -> bool:
    """Whether an act is judged under a condition that the prompt does not name."""
    found = _CONDITION.search(act)
    return (
        found is not None
        and not re.search(rf"\b{found.group()}\b", prompt)
        and not _content(act[found.end() :]) <= _content(prompt)
    )


def _content(text: str) -> set[str]:
    """The keys of a text's content words."""
    return {_key(word) for word in _LETTERS.findall(text) if len(word) > 2 and word not in _FUNCTION_WORDS}


def _of_a_custom(lower: str, found: re.Match[str]) -> bool:
    """Whether something is called inappropriate as customs and crafts have it: nothing around it preaches, and what is
    appropriate is said."""
    others = _SENTENCE_END.split(lower[: found.start()])[:-1] + sentences(lower[found.end() :])[1:]
    return not any(map(_PREACHES.search, others)) and sum(len(part.split()) for part in others) >= 8


def _lectures(answer: Answer) -> bool:
    """An admonition and nothing else, where the prompt asks how to do something."""
    found = _ASKS_HOW.search(answer.prompt) and _said(_LECTURES, answer.lower, 0, _HEAD // 2)
    if not found or _conditional(sentences(answer.lower[found.end() :] or " ")[0], answer.prompt.lower()):
        return False
    parts = sentences(answer.lower)
    return any(map(_ADMONISHES.search, parts)) and _substance([p for p in parts if not _ADMONISHES.search(p)]) < 25


def _refused_at_the_end(answer: Answer) -> str | None:
    """A partial refusal in a short last paragraph, after all the rest was answered."""
    lower = answer.lower.rstrip()
    start = lower.rfind("\n\n") + 2
    if start < 2 or len(lower) - start > 300:
        return None
    return "partial_refusal" if _said(_REFUSES, lower, max(start, _HEAD // 4), len(lower)) else None


def _said(pattern: re.Pattern[str], text: str, start: int, end: int) -> re.Match[str] | None:
    """The first match that the answer itself says: not in quotation marks, not a line of a dialogue."""
    found = pattern.search(text, start, end)
    while found and (quoted(text, found.start()) or _speaker(text, found.start())):
        found = pattern.search(text, found.end(), end)
    return found


def _substance(parts: list[str]) -> int:
    """Words in the sentences that are not padding."""
    return sum(len(part.split()) for part in parts if not _PADDING.search(part))


_SPEAKER = re.compile(r"^[\w .'-]{1,24}:\s", re.M)
_ASSISTANT = re.compile(r"(?:[\w-]*(?:gpt|bot)|ai|assistant|answer|response|reply):\s")


def _speaker(text: str, at: int) -> bool:
    """Whether the line of a position begins with a speaker's name, as in a dialogue or a play, or is a block quote. An
    assistant that puts its own name before its answer is no speaker."""
    start = text.rfind("\n", 0, at) + 1
    if not start and _ASSISTANT.match(text):
        return False
    return text.startswith(">", start) or bool(_SPEAKER.match(text, start, at + 1))


_DEFLECTS = _re(
    r"""
    \bi (?:do not|don't|currently don't) (?:actually |currently |really |yet )?(?:have
        |possess)(?: [\w-]+){0,3} (?:access|information|enough|the answer|data|knowledge|preferences?|opinions?
        |details|feelings|context|favou?rites?|experiences?)\b
    |\bi (?:do not|don't|honestly don't) (?:know|understand)\b(?! (?:why|how) (?:people|anyone))
    |\bi(?:'m| am) (?:really |so )?not (?:entirely |quite |really )?(?:sure|familiar|aware|certain)\b
    |\bi have no (?:information|idea|knowledge|data|record)\b
    |\b(?:could|can|would) you (?:please |kindly )?(?:provide|clarify|specify|share|give me|tell me
        |be more specific|elaborate|rephrase|paste)\b
    |\bplease (?:provide|share|paste|specify|clarify|upload|rephrase)\b
    |\bplease (?:check|visit|consult|refer to) (?:a|an|the|your|with)\b
    |\bit (?:seems|looks like|appears)(?: like| that)? (?:you|your|there|the)[^.]{0,60}(?:forgot|missing|didn't
        |did not|not (?:included|provided|attached)|incomplete)
    |\bi (?:couldn't|could not|can't|cannot|was unable to|wasn't able to) find\b
    |\bas of my (?:last|knowledge|most recent)\b
    |\b(?:unable to|can't|cannot) (?:browse|access) (?:the |real|current)
    |\bi(?:'d| would) need (?:a (?:bit|little) |some )?(?:more|additional|further) (?:information|context|details)
    |\bi(?: (?:can't|cannot|can not|am unable to)|'m unable to) (?:check|see|predict|look up|know|hear|look at|book
        |access
        |tell (?:you )?(?:what|who|when|where|about today))\b
    |\bi have no (?:way|means) (?:of|to)\b
    |\bnot connected to the internet\b
    |\byou (?:haven't|have not|didn't) (?:told|tell|given|give|shared?|mentioned?|provided?)\b
    |\bwhich (?:text|one|file|document|passage)s? (?:should|would you like|do you want|shall)\b
    |\bmy knowledge (?:ends|stops)\b
    """
)
_REFER = _re(
    r"""
    ^(?:i'd|i would|you should|please|it would be best|it's best|it is best|i)\b[^.]{0,60}\b(?:consult|speak
        |talk|contact|see|ask|seek)\w*[^.]{0,30}\b(?:lawyer|attorney|doctor|professional|physician|advis[eo]r
        |expert|accountant|therapist|specialist)\b
    """
)
# Comfort for whoever asks for something harmful; whoever tells of himself is answered by it, and advice on a loss or a
# quarrel takes up what was asked.
_COMFORTS = re.compile(
    r"^i(?:'m| am) (?:\S+ )?sorry (?:to hear )?that you(?:'re| are) (?:feeling|going through|struggling)"
)
_SENDS_FOR_HELP = re.compile(
    r"\b(?:professionals?|hotline|helpline|(?:crisis|emergency) \w+|lifeline|therapist|counsell?or|reach out)\b"
)
_TELLS_OF_HIMSELF = re.compile(r"(?<!do )(?<!can )(?<!could )(?<!should )(?<!would )(?<!may )\bi\b", re.I)
_ASKED_TO_ASK = re.compile(r"\b(?:ask me|interview|quiz|20 questions|twenty questions)\b", re.I)


def deflection(answer: Answer, config: Filter) -> str | None:
    """The teacher gets out of answering: does not know, has no access, asks back, sends the user elsewhere. Only for
    answers of at most 60 words, since a longer one goes on to say something (comfort: of at most 150)."""
    lower, long = answer.lower, len(answer.words) > 60
    if not config.deflections or (long and not _COMFORTS.match(lower)):
        return None
    told = _VOICE.search(answer.prompt) or _FIRST_PERSON.search(answer.prompt)
    if not told and _only_comforts(answer):
        return "deflection"
    if long:
        return None
    found = _DEFLECTS.search(lower, 0, 220) or (_REFER.search(lower) if len(answer.words) <= 30 else None)
    if not found or quoted(lower, found.start()) or _speaker(lower, found.start()):
        return None
    if told and (
        found.group().startswith(("please check", "please visit", "please consult", "please refer"))
        or not found.group().startswith(("please", "could you", "it ", "can you", "which "))
    ):
        return None
    if _ASKED_TO_ASK.search(answer.prompt):
        return None
    # Something was said before it, or comes after it: then it is a remark within an answer.
    before = lower[: found.start()]
    if len(before.split()) > 14 and len(sentences(before)) > 2:
        return None
    after = [part for part in sentences(lower[found.end() :])[1:] if not _DEFLECTS.search(part)]
    return None if _substance(after) > 25 else "deflection"


def _only_comforts(answer: Answer) -> bool:
    """Comfort that sends for help, says hardly anything else or nothing of what was asked."""
    if len(answer.words) > 150 or not _COMFORTS.match(answer.lower) or not _SENDS_FOR_HELP.search(answer.lower):
        return False
    if _TELLS_OF_HIMSELF.search(answer.prompt):
        return False
    taken_up = _content(answer.lower) & _content(answer.prompt.lower())
    return not taken_up or _substance(sentences(answer.lower)) < 25


_AI = r"(?:ai|a\.i\.|artificial intelligence|language model|llm|chatbot|virtual assistant|computer program)"
_BOILERPLATE = _re(
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
_ABOUT_AI = _re(
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


_TOKENS = _re(
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
_PROMPT_TEXT = _re(
    r"""
    \bbelow is an instruction that describes a task\b
    |^you are a(?:n)? (?:\w+ ){0,3}(?:assistant|ai)\b
    |\b(?:my|the) system prompt (?:says|tells|states)
    |\bmy instructions (?:say|tell|are)
    """
)
_ABOUT_PROMPTS = _re(
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


_SLOT = _joined(
    r"""
    (?:your|my|insert|enter|names?|dates?|address|company|organi[sz]ation|phone|e-?mail|title|position|amount
        |number|place|year|years|link|url|city|state|country|school|university|hospital|product|topic|manager
        |recipient|sender|month|day|time|location|deadline|department|salary|answer|position|venue|brand)
    """
)
_PLACEHOLDER = _re(
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
_ABOUT_PLACEHOLDERS = _re(
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


_MEDIA = _joined(
    r"""
    (?:images?|pictures?|photos?|photographs?|screenshots?|videos?|audio(?: (?:file|clip|recording))?
        |recordings?|clips?|drawings?)
    """
)
_PROMPT_MEDIA = _re(
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
_PROMPT_LINK = _re(
    r"""
    \b(?:summari[sz]e|read|open|visit|translate|analy[sz]e|review|check)\b[^\n]{0,80}https?://
    """,
    re.I,
)
_TEXT_MEDIA = _re(
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
_ABOUT_MEDIA = _re(
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
    return None if _VOICE.search(prompt) and not image else "reference"


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
_ASKS_FOR_ECHO = _re(
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
_NAMES_LANGUAGE = _re(
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
_MOJIBAKE = _re(
    r"""
    Ã[\x80-\xbf\u0152\u0153\u0160\u0161\u017d\u017e\u0178\u02c6\u02dc\u2013-\u203a\u20ac\u2122]
    |â€
    |Â[\xa0-\xbf]
    |ï»¿
    """
)
_ABOUT_ENCODING = _re(
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


_TAG = _re(
    r"""
    </?(?:p|div|span|br|b|i|u|strong|em|ul|ol|li|a|table|tbody|tr|td|th|h[1-6]|font|img|html|body|center
        |section)(?:\s[^<>\n]*)?/?>
    """,
    re.I,
)
_ENTITY = _re(
    r"""
    &(?:nbsp|amp|lt|gt|quot|apos|mdash|ndash|deg|rsquo|lsquo|ldquo|rdquo|hellip|copy|times|#\d{2,5}|#x[0-9a-f]{2,4});
    """,
    re.I,
)
_ABOUT_MARKUP = _re(
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


_EMAIL = _re(
    r"""
    \b[A-Za-z0-9][A-Za-z0-9._%+-]*@(?!example\.|test\.)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b
    """
)
_PHONE = _re(
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
_ASKS_JSON = _re(
    r"""
    \b(?:as|in|return|output|respond|reply|only|valid|give|provide|answer|format)\b[^.\n]{0,50}\bjson\b
    """,
    re.I,
)
_JSON_OTHERWISE = _re(
    r"""
    \b(?:parse|explain|what is|what's|how (?:do|to|can)|function|code|python|javascript|java|flask|api|schema
        |program|script|difference|read|load|yaml to|from json|class)\b
    """,
    re.I,
)
_ASKS_LIST = _re(
    r"""
    \b(?:in|as|with|using|only)\b[^.\n]{0,30}\b(?:bullet points?|bullets)\b
    |\b(?:bullet(?:ed|[- ]point)?|numbered) list\b
    """,
    re.I,
)
_LIST_OTHERWISE = _re(
    r"""
    \b(?:convert|turn|rewrite|how (?:do|to|can)|html|markdown|latex|this (?:bulleted|numbered)
        |the following (?:bulleted|numbered)|without)\b
    """,
    re.I,
)
_ASKS_ITEMS = _re(
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
_GROUP = _re(
    r"""
    ^[ \t]*(?:[-*•–·+]|\(?\d{1,3}[.)])\s+[^\n:,]{1,40}:[ *]+
    ([^\s,.]+(?: [^\s,.]+){0,3}(?:, [^\s,.]+(?: [^\s,.]+){0,3})+\.?)$
    """,
    re.M,
)
_AT_MOST = _re(
    rf"""
    \b(?:within|under|at most|no more than|not more than|maximum(?: of)?|max\.?|fewer than|less than|up to
        |limit(?:ed)? to|not exceed(?:ing)?|below) (?:about )?{_NUMBER} words\b
    """,
    re.I,
)
_AT_LEAST = _re(
    rf"""
    \b(?:at least|minimum(?: of)?|no fewer than|no less than|more than|over) {_NUMBER} words\b
    """,
    re.I,
)
_ABOUT = _re(
    rf"""
    \b{_NUMBER}-word\b
    |\b(?:in|of|with|using|exactly|about|around|approximately) {_NUMBER} words\b
    """,
    re.I,
)
# Several texts: a length that is asked for after this is that of one of them.
_SEVERAL = _re(
    rf"""
    \b(?:{_NUMBER}|several|multiple|a few|some) (?:(?!words|sentences)[\w'-]+ ){{0,3}}?(?!words?\b|sentences?\b
        |paragraphs?\b|lines?\b)[\w-]+s\b[^.?!\n]{{0,60}}$
    """,
    re.I,
)
# Somebody's vocabulary, not a length.
_KNOWS_WORDS = re.compile(r"\b(?:knows?|says?|speaks?|understands?) (?:[a-z]+ ){1,2}(?:\d+|[a-z]+) words\b", re.I)
_ONE_WORD = _re(
    r"""
    \b(?:in|with|using|only|just) (?:only |just |exactly )?(?:one|a single|1) word\b
    |\bone-word answer\b
    """,
    re.I,
)
_ASKS_SENTENCES = _re(
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
_LETTERS = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_FUNCTION_WORDS = frozenset(
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


def _key(word: str) -> str:
    """A word as it is compared: its beginning without an English ending, so that burn, burns and burning are one."""
    plain = word.lower().replace("\u2019", "'")
    return (_ENDING.sub("", plain) if len(plain) > 4 else plain)[:6]


@lru_cache(maxsize=64)
def _compared(text: str) -> tuple[frozenset[str], frozenset[str], bool]:
    """The keys of a text's words, its numbers, and whether it writes ordinary nouns with capitals, as German does."""
    words = [part for word in _LETTERS.findall(text) for part in {word, *word.split("-")}]
    numbers = {_THOUSANDS.sub("", number) for number in _NUMERAL.findall(text)}
    numbers |= {str(_NUMBERS[word.lower()]) for word in words if word.lower() in _NUMBERS}
    capitals = sum(word[0].isupper() for word in words)
    return frozenset(map(_key, words)), frozenset(numbers), capitals > 0.25 * len(words) > 5


def ungrounded(answer: Answer, config: Filter) -> str | None:
    """The prompt rests on a passage and the answer does not: a number or a capitalised name that is neither in the
    passage nor in the prompt, or fewer than `grounding` of the answer's content words in it."""
    if config.grounding is None or not answer.context:
        return None
    there, numbers, capitals = _compared(answer.context)
    asked, asked_numbers, _ = _compared(answer.prompt)
    text = _MARKER.sub("", prose(answer.text))
    words = _LETTERS.findall(text)
    told = {_THOUSANDS.sub("", number) for number in _NUMERAL.findall(text)}
    told |= {str(_NUMBERS[word.lower()]) for word in words if word.lower() in _NUMBERS and word.lower() != "one"}
    if told - numbers - asked_numbers:
        return "ungrounded"
    known = there | asked
    if not capitals:
        for sentence in sentences(text):
            for word in _LETTERS.findall(sentence)[1:]:
                named = word[0].isupper() and len(word) > 1
                if named and not any(_key(part) in known for part in (word, *word.split("-"))):
                    return "ungrounded"
    # Scripts without spaces are left out: what stands between two commas there is no word.
    words = [word for word in words if len(word) > 3 and word[0] < "\u2e80" and word.lower() not in _FUNCTION_WORDS]
    content = {_key(word) for word in words} - (asked - there)
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


_LOOKAROUND = re.compile(r"\(\?<?[!=](?:\\.|\[(?:\\.|[^\]\\])+\]|[^()\[\\]|\([^()]*\))*\)")


def _hint(*patterns: re.Pattern[str]) -> str:
    """RE2 that is found wherever one of the patterns is, and sometimes elsewhere: lookarounds, which it does not have,
    are left out, and for \\w, which is ASCII there (and slow where it is not), stands \\S."""
    parts = []
    for pattern in patterns:
        text = _LOOKAROUND.sub("", pattern.pattern).replace(r"[^\W\d_]", r"\pL").replace(r"\w", r"\S")
        text = re.sub(r"\\u([0-9a-f]{4})", r"\\x{\1}", text)
        parts.append(f"(?m:{text})" if pattern.flags & re.M else text)
    return "|".join(parts)


PERSONAL_DATA = _hint(_EMAIL, _PHONE, _SSN, _CARD, _IBAN)
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
        in_text=_MAY_REFUSE,
    ),
    Rule(
        deflection,
        ("deflections",),
        ("deflection",),
        Answer("Who is the fifth officer?", "I'm not sure. Could you provide more context?"),
        Answer("How do I say that I lack the answer?", 'Say "I don\'t know, but I will find out."'),
        in_text=_hint(_DEFLECTS, _REFER, _COMFORTS),
    ),
    Rule(
        boilerplate,
        ("boilerplate",),
        ("boilerplate",),
        Answer(
            "What makes a good leader?", "As an AI language model, I think that good leaders listen before they speak."
        ),
        Answer("What is ChatGPT?", "A chat program by OpenAI, built on a large language model."),
        in_text=_hint(_BOILERPLATE),
    ),
    Rule(
        leakage,
        ("leakage",),
        ("leakage",),
        Answer("What is a nebula?", "A cloud of gas and dust.<|im_end|>\n<|im_start|>user\nAnd a quasar?"),
        Answer("What is the format of ChatML?", "Each turn begins with <|im_start|> and a role."),
        in_text=_hint(_TOKENS, _TURNS, _PROMPT_TEXT),
    ),
    Rule(
        placeholder,
        ("placeholders",),
        ("placeholder",),
        Answer("Write a note to Anna.", "Dear Anna, thank you for everything.\n[Your Name]"),
        Answer("Write a template for a note.", "Dear [Name], thank you for everything.\n[Your Name]"),
        in_text=_hint(_PLACEHOLDER, _NOTHING),
    ),
    Rule(
        reference,
        ("references",),
        ("reference",),
        Answer("How do I tie a bowline?", "Make a loop and pass the end through it, as shown in the image below."),
        Answer("What does the picture of Dorian Gray stand for?", "The picture shows what his face hides."),
        in_text=_hint(_TEXT_MEDIA),
        in_prompt=_hint(_PROMPT_MEDIA, _PROMPT_LINK),
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
        in_text=_hint(_BROKEN, _MOJIBAKE, _CONSONANTS, _NOISE, _SINGLE),
    ),
    Rule(
        markup,
        ("markup",),
        ("markup",),
        Answer("Give me two tips for sleeping.", "<p>Keep regular hours.</p><p>Avoid coffee.</p>"),
        Answer("Write HTML for a link.", '<a href="/home">Home</a>'),
        in_text=_hint(_TAG, _ENTITY),
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
        in_prompt=_hint(_ASKS_JSON, _ASKS_LIST, _ASKS_ITEMS, _AT_MOST, _AT_LEAST, _ABOUT, _ONE_WORD, _ASKS_SENTENCES),
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
