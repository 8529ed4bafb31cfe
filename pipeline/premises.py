"""Answers that deny what a question takes for granted: one of the rules listed in rules.RULES, off by default.

What a question such as "Why did X do Y?" presupposes and a good answer denies if it is false: Kim et al., 2021,
https://arxiv.org/abs/2101.00391.
"""

import re

from pipeline.answers import Answer, compiled, content, hint, quoted, sentences
from pipeline.recipe import Filter

# Questions that state something in passing: for reasons, for what is good of it, for how or when it came about.
_PRESUPPOSES = compiled(
    r"""
    \b(?:why\b|how come\b|what (?:makes|made|causes|caused)\b|reasons? (?:why|for|that)\b
        |what(?: is| are| was| were|'s) (?:\w+ ){0,3}?(?:benefits?|advantages?|reasons?|good|great|upsides?|merits)\b
        |(?:how|when|where) (?:is|are|was|were|did|does|do|has|have|had|can|could|will|would|should)\b
            (?! (?:i|we|you|one)\b))
    """,
    re.I,
)
MAY_PRESUPPOSE = hint(_PRESUPPOSES)
"""RE2 that is found in every prompt to which `premise_denial` rejects an answer."""

_NOT = re.compile(r"\b(?:not|cannot|never|no|none|nobody|nothing|neither)\b|n't\b")
# These deny too: whoever is not barred is allowed.
_WITHOUT_NOT = compiled(
    r"""
    \b(?:den(?:y|ied|ying)|bar(?:red|ring)?|bann?(?:ed|ing)?|prohibit\w*|forb\w+|exclu\w+|refus\w+|prevent\w*
        |restrict\w*|disallow\w*|disqualif\w+|depriv\w+|avoid\w*|illegal|wrong|bad|dangerous|unsafe|unhealthy|harmful
        |impossible|unable|rude|distrust\w*|mistrust\w*)\b
    """
)
# What may stand before the point.
_LEAD = compiled(
    r"""
    ^\W*(?:(?:as|being) an? [^.,]{1,60}, |as an? [^.,]{1,60}? (?=i )|no, |(?:actually|in fact|in reality|well|sorry
        |i'm sorry|i am sorry|i apologi[sz]e|unfortunately|however|that said),? (?:but )?
        |(?:it is|it's) (?:also )?(?:\w+ )?(?:important|worth|crucial|essential) (?:to )?(?:not(?:e|ing)|remember\w*
            |understand\w*|recogni[sz]\w+|acknowledg\w+) that[ ]
        |i (?:must|can|have to|need to|want to|would like to|should) (?:\w+ )?(?:tell|inform|say|point out|note
            |emphasi[sz]e|remind|clarify|stress|share)(?: you)?(?: that)?[ ]
        |i (?:do not|don't) (?:hold|have) [^.,!?]{0,60}\b(?:opinions?|beliefs?|views|feelings)\b[^.,!?]{0,20}[.,][ ]
            (?:but )?)
    """
)
_DISAGREES = compiled(
    r"""
    \bi (?:\w+ ){0,3}?disagree\b|\bi (?:do not|don't|cannot|can't) (?:\w+ )?agree\b
    |\bcontrary to (?:popular|common|widespread|what)\b
    |\b(?:challenge|question|reject|dispute) (?:the|this|that|your) (?:\w+ )?(?:premise|assumption|idea|notion|claim)
    |\b(?:that|this|the|your) (?:question|statement|claim|premise|assumption|idea|notion|assertion|belief|sentiment
        |stereotype)\b[^.!?]{0,120}? (?:is|are|was|rests on|seems)(?: \w+ly)? (?:not|n't|false|incorrect|untrue|wrong
        |inaccurate|an? (?:\w+ )?(?:myth|misconception|stereotype)|flawed|mistaken|misleading|unfounded|baseless)\b
    |^(?:that|this|it)(?: is|'s)(?: \w+ly)? (?:an? (?:\w+,? ){0,2}(?:myth|misconception|misunderstanding|stereotype)
        |(?:false|untrue|incorrect)\b|not (?:\w+ly )?(?:true|correct|so|the case)\b)
    """
)
# The same, if it is about what was asked.
_DISBELIEVES = compiled(
    r"""
    ^(?:that|this|it)(?:(?: is|'s)(?: \w+ly)? (?:not|never)|(?: is)?n't) (?:\w+ly )?(?:\w+,? (?:or|and|nor) )?(?:true
        |accurate|correct|fair|right|the case|respectful|appropriate|best|justified|ethical)(?: (?:or|and) \w+)?[ ]
        (?:to (?:say|claim|suggest|state|assume|call|think|describe|imply|speak of)|that)\b
    |^i (?:do not|don't) (?:\w+ )?(?:believe|think)\b
    """
)
_NO_MORE = compiled(
    r"""
    ^(?:(?:it|he|she|they|this|that|there|[\w' -]{2,40}) (?:(?:is|are|was|were|do|does|did|ca|should|has|have|had|wo
        |would)(?:n't| not)|cannot|never (?:is|are|was|were|do|does|did|has|have|had))(?: any)?
        |there (?:is|are|was|were) (?:none|no (?:\w+ )?(?:reasons?|benefits?|advantages?)))\W*$
    """
)
# Of what is denied here there may be enough left to answer.
_HEDGE = re.compile(
    r"\b(?:only|solely|just|merely|always|all|every|entirely|exactly|overnight|at once|in a day|alone|"
    r"by (?:accident|chance)|yet|fully|both|immediately|until|so much|much|not sure|"
    r"(?:single|one|simple|easy|clear|definitive|universal|particular|specific|official|known|agreed|certain)"
    r"(?: \w+){0,2} (?:reasons?|answers?|explanations?|causes?|consensus|evidence))\b"
)
_REASON = re.compile(
    r"\b(?:because|due to|since|owing to|thanks to|(?:as|for) (?:it|they|he|she|we|you)|as (?:the|its|their))\b"
)
_CORRECTS = re.compile(r"\bbut\b|, (?:it|they|he|she) |, (?:al)?though\b|\brather\b|\binstead\b")
# What comes after these is no part of what is denied.
_CLAUSE_END = re.compile(rf"[;:\u2014(]|, (?:which|who|so|and|as|for)\b|{_REASON.pattern}")
_OUGHT = re.compile(r"\b(?:should|ought|must|reasons?|grounds|basis|evidence|justif\w+)\b")
_AFFIRMS = re.compile(
    r"^([^.!?,]{2,60}?) (?:can|could|do|does|did|is|are|was|were|has|have|should|may)"
    r"(?: (?:certainly|indeed|also|actually|definitely|absolutely|in fact|very well))? ((?:\S+ ?){1,3})"
)


def premise_denial(answer: Answer, config: Filter) -> str | None:
    """The prompt takes something for granted ("Why should X be barred?", "What were the benefits of ...?") and the
    answer opens by denying it: it says the opposite, that there is no reason, or that it disagrees. Not where the
    prompt itself denies ("Why can't cats fly?" - "They cannot, because ..."), a reason is given in the same sentence,
    or only a detail is put right. To correct a false premise is mostly a good answer, so this is off by default."""
    if not config.premise_denials:
        return None
    asked = _asked(answer.prompt.lower().replace("\u2019", "'"))
    if not asked:
        return None
    said = answer.lower[:800].replace("**", "").strip()
    for _ in range(6):
        said = _LEAD.sub("", said, count=1)
    for number, sentence in enumerate(sentences(said)[:2]):
        if _denies(sentence, asked, least=0.6 if number else 0.5):
            return "premise_denial"
    return None


def _asked(prompt: str) -> str | None:
    """The last of a prompt's sentences that presupposes something, from the question word on."""
    for sentence in reversed(sentences(prompt)):
        found = _PRESUPPOSES.search(sentence)
        if found and not sentence.startswith("why not", found.start()) and not quoted(sentence, found.start()):
            return sentence[found.start() :]
    return None


def _denies(sentence: str, asked: str, least: float) -> bool:
    """Whether a sentence says the opposite of what a question presupposes, in at least a share of its words."""
    corrects = _CORRECTS.search(sentence)
    if _DISAGREES.search(sentence):
        return not corrects
    if _NO_MORE.search(sentence):
        return not _odd(asked)
    clause = _CLAUSE_END.split(sentence, maxsplit=1)[0]
    topic = content(asked)
    share = len(content(clause) & topic) / max(1, len(topic))
    if corrects or any(hedge not in asked for hedge in _HEDGE.findall(clause.replace("at all", ""))):
        return False
    if _odd(clause) == _odd(asked):
        return False
    if _DISBELIEVES.search(clause):
        return share >= 0.3
    if share < least:
        return False
    if "should" not in asked and _REASON.search(sentence):
        return False
    negation = _NOT.search(clause)
    if negation:
        if "should" in asked and not _OUGHT.search(clause):
            return False
        return bool(content(clause[negation.end() :]) & topic)
    # The question denies something, and the answer says that it is so.
    found = _AFFIRMS.search(clause) if _NOT.search(asked) else None
    return found is not None and content(found[1]) <= topic and bool(content(found[2]) & topic)


def _odd(text: str) -> bool:
    """Whether a text denies, counting that two negations cancel each other."""
    return (len(_NOT.findall(text)) + len(_WITHOUT_NOT.findall(text))) % 2 == 1
