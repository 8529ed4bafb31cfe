"""Prompts that a teacher writes, for the stage generate.

    self_instruct   new instructions in the manner of some that exist (Wang et al. 2023)
    evolve          harder or different versions of prompts that exist (Xu et al. 2024, WizardLM's Evol-Instruct)
    persona         what different people would ask about the same things (Ge et al. 2024, Persona Hub)
    documents       questions that a passage of a user's own files answers (Alberti et al. 2019)
    conversation    further user turns after a teacher's own answers
    magpie          what a chat model writes when it continues an empty user turn (Xu et al. 2025, Magpie)

Each yields candidates round by round and asks the next round only when more are wanted. What it asks depends on the
seed and on earlier answers alone, and answers come from the response store, so a resumed run asks nothing twice.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from pipeline.documents import Passage, tag_of
from pipeline.recipe import Generate
from pipeline.records import Message
from pipeline.templates import Template, fill

Ask = Callable[[list[list[Message]]], list[str | None]]
"""Conversations -> the teacher's answer to each, None where there is none that ended by itself."""

ROUNDS = 8
"""Rounds of asking before a method ends with fewer prompts than were wanted."""

EXAMPLES = 8
"""Prompts shown to the teacher in one request of self_instruct, as in the paper."""

A_REQUEST = 8
"""New prompts asked for in one request of self_instruct."""

A_PASSAGE = 3
"""Questions asked for in one request of documents; up to A_REQUEST where there are few passages."""

OPENING = "opening"
"""Role, with a number, of a text that a model is to go on with: the method magpie."""

PROMPT = 200
"""Characters of a prompt, for estimates."""

MIN_WORDS, MAX_WORDS = 3, 150
"""Words of a prompt that is not thrown away, as in the code of Self-Instruct."""

STOP_WORDS = (
    "a an and are as at be but by can do for from has have i if in is it its me my of on or she he so that the their "
    "them then there these they this to was we were what which who will with would you your not no yes"
)


class Seed(NamedTuple):
    """A prompt to start from."""

    messages: list[Message]
    facets: dict[str, str | None]


class Written(NamedTuple):
    """A prompt that came out."""

    messages: list[Message]
    template: str
    facets: dict[str, str | None]
    context: str | None = None  # the passage that an answer must rest on


def user(text: str) -> list[Message]:
    """A conversation of one user turn."""
    return [{"role": "user", "content": text}]


def instructions(answer: str) -> list[str]:
    """The items of a numbered or bulleted list, those on lines of their own."""
    found = (re.match(r"\s*(?:\d{1,3}[.):]|[-*])\s+(.*\S)", line) for line in answer.splitlines())
    return [unquoted(match[1]) for match in found if match]


def unquoted(text: str) -> str:
    """A text without the quotation marks or the label that models like to put around it."""
    text = re.sub(
        r"^\s*(?:#*\s*)?(?:new |rewritten )?(?:prompt|question|instruction)#*\s*:\s*", "", text, flags=re.I
    ).strip()
    for left, right in ('""', "''", "“”"):
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in text[1:-1]:
            text = text[1:-1].strip()
    return text


def unusable(text: str) -> str | None:
    """Why a text that a teacher wrote is no prompt, by the rules of Self-Instruct's code, or None."""
    count = len(text.split())
    if count < MIN_WORDS:
        return "too_short"
    if count > MAX_WORDS:
        return "too_long"
    return None if re.match(r"[\w\"'“(¿¡]", text) else "no_text"


def failed_evolution(parent: str, child: str) -> str | None:
    """Why an evolution failed, by the elimination rules of WizardLM, or None. The rule about answers that are short
    apologies is the filter stage's: there is no answer yet."""
    words, before = re.findall(r"\w+", child.lower()), re.findall(r"\w+", parent.lower())
    if words == before:
        return "evolution_without_gain"
    if not set(words) - set(STOP_WORDS.split()):
        return "evolution_of_stop_words"
    if re.search(
        r"given prompt|rewritten prompt|new version|here is a prompt|language model that is an expert", child, re.I
    ):
        return "evolution_copies_request"
    return None


_PASSAGE = r"(?:passage|text|document|article|excerpt|section|chapter|paragraph|page|author|writer|source|context)s?"
_NEEDS_PASSAGE = re.compile(
    rf"\b(?:according to|based on|as (?:stated|described|mentioned|explained|given) in) (?:the|this|these) {_PASSAGE}\b"
    r"|\b(?:the|this|that) (?:(?:given|above|following|provided) )?(?:passage|excerpt)s?\b"
    rf"|\b(?:in|from|of) (?:the|this) (?:given |above |following |provided )?{_PASSAGE}\s*[?.!,]?$"
    rf"|\b(?:does|do|did|is|are) (?:the|this|these) {_PASSAGE} (?:say|state|mention|describe|explain|list|suggest|call)"
    rf"|\b(?:the|this|these) {_PASSAGE} (?:say|state|mention|describe|explain|list|suggest|call)s?\b"
    r"|\b(?:mentioned|described|listed|stated|discussed|provided|shown|given) (?:above|here|below)\b",
    re.I,
)


def needs_passage(text: str) -> bool:
    """Whether a question speaks of the passage it was made from, so that nobody understands it without."""
    return bool(_NEEDS_PASSAGE.search(text))


def self_instruct(
    ask: Ask,
    template: Template,
    domain: str,
    topics: list[str],
    seeds: list[Seed],
    want: int,
    seed: int,
    left_out: Counter[str],
    novel: Callable[[str], bool] | None = None,
) -> Iterator[Written]:
    """New prompts, topic by topic; three of four examples are seeds, the others came out before. `novel` says whether a
    text is new, and is told of each once."""
    draw = random.Random(f"self_instruct {seed}")
    pool = [one.messages[-1]["content"] for one in seeds]
    made: list[str] = []
    for turn in range(ROUNDS):
        about = [draw.choice(topics) for _ in range(_size(want, A_REQUEST, turn))]
        requests = []
        for topic in about:
            own = draw.sample(made, min(len(made), EXAMPLES // 4))
            shown = own + draw.sample(pool, min(len(pool), EXAMPLES - len(own)))
            requests.append(user(fill(template, domain=domain, topic=topic, examples=shown, number=A_REQUEST)))
        before = len(made)
        for topic, answer in zip(about, ask(requests), strict=True):
            items = instructions(answer or "")
            if not items:
                left_out["no_list" if answer else "no_answer"] += 1
            for text in items:
                if why := unusable(text):
                    left_out[why] += 1
                    continue
                if novel and not novel(text):
                    left_out["near_duplicate"] += 1
                    continue
                made.append(text)
                yield Written(user(text), "self_instruct", {"topic": topic})
        if len(made) == before:
            return


def evolve(
    ask: Ask,
    operations: dict[str, Template],
    domain: str,
    seeds: Iterator[Seed],
    want: int,
    seed: int,
    left_out: Counter[str],
) -> Iterator[Written]:
    """Evolutions of the seeds, then of what came out, one operation each in turn."""
    draw = random.Random(f"evolve {seed}")
    parents: list[Seed] = []
    for turn in range(ROUNDS):
        size = _size(want, 1, turn)
        parents = parents[:size] + list(islice(seeds, size - len(parents[:size])))
        names = list(operations) * (len(parents) // len(operations) + 1)
        draw.shuffle(names)
        requests = [
            user(fill(operations[name], domain=domain, prompt=parent.messages[-1]["content"]))
            for name, parent in zip(names, parents, strict=False)
        ]
        children = []
        for name, parent, answer in zip(names, parents, ask(requests), strict=False):
            text = unquoted(answer or "")
            why = (failed_evolution(parent.messages[-1]["content"], text) or unusable(text)) if answer else "no_answer"
            if why:
                left_out[why] += 1
                continue
            children.append(Seed(user(text), parent.facets))
            yield Written(user(text), f"evolve/{name}", parent.facets)
        parents = children
        if not requests:
            return


def persona(
    ask: Ask,
    template: Template,
    domain: str,
    entities: list[tuple[str, str]],
    personas: list[str],
    want: int,
    seed: int,
    left_out: Counter[str],
) -> Iterator[Written]:
    """What each of `personas` would ask about the (entity, topic) pairs, all equally often."""
    draw = random.Random(f"persona {seed}")
    pairs = [(entity, topic, who) for entity, topic in entities for who in personas]
    draw.shuffle(pairs)
    done = 0
    for turn in range(ROUNDS):
        some = pairs[done : done + _size(want, 1, turn)]
        done += len(some)
        answers = ask([user(fill(template, domain=domain, entity=entity, persona=who)) for entity, _, who in some])
        for (entity, topic, who), answer in zip(some, answers, strict=True):
            text = unquoted(answer or "")
            why = unusable(text) if answer else "no_answer"
            if why:
                left_out[why] += 1
                continue
            yield Written(user(text), "persona", {"topic": topic, "entity": entity, "persona": who})
        if not some:
            return


def documents(
    ask: Ask,
    template: Template,
    domain: str,
    passages: list[Passage],
    open_book: bool,
    want: int,
    left_out: Counter[str],
) -> Iterator[Written]:
    """Questions about the passages in turn, some about each; where passages are fewer than requests, a passage is asked
    about again and its earlier questions are shown. `open_book`: whoever answers sees the passage."""
    each = min(A_REQUEST, max(A_PASSAGE, -(-want // max(1, len(passages)))))
    made: dict[int, list[str]] = {}
    done = 0
    for turn in range(ROUNDS):
        some = [number % len(passages) for number in range(done, done + min(_size(want, each, turn), len(passages)))]
        done += len(some)
        requests = []
        for number in some:
            text, source = passages[number]
            examples = made.get(number, [])
            shown = {"tag": tag_of(text), "passage": text, "source": source, "examples": examples, "number": each}
            requests.append(user(fill(template, domain=domain, open_book=open_book, **shown)))
        came = False
        for number, answer in zip(some, ask(requests), strict=True):
            items = instructions(answer or "")
            if not items:
                left_out["no_list" if answer else "no_answer"] += 1
            for item in items:
                why = unusable(item) or ("needs_passage" if not open_book and needs_passage(item) else None)
                if why:
                    left_out[why] += 1
                    continue
                came = True
                made.setdefault(number, []).append(item)
                text, source = passages[number]
                yield Written(user(item), "documents", {"topic": source}, text)
        if not came:
            return


def conversation(
    ask: Ask, template: Template, domain: str, seeds: Iterator[Seed], turns: int, want: int, left_out: Counter[str]
) -> Iterator[Written]:
    """Conversations of `turns` user turns that begin with the seeds; the teacher answers and plays the user."""
    for turn in range(ROUNDS):
        going = list(islice(seeds, _size(want, 1, turn)))
        if not going:
            return
        for _ in range(turns - 1):
            answered = []
            for one, answer in zip(going, ask([one.messages for one in going]), strict=True):
                if answer and answer.strip():
                    reply: Message = {"role": "assistant", "content": answer.strip()}
                    answered.append(one._replace(messages=[*one.messages, reply]))
                else:
                    left_out["no_answer"] += 1
            requests = [user(fill(template, domain=domain, messages=one.messages)) for one in answered]
            going = []
            for one, answer in zip(answered, ask(requests), strict=True):
                text = unquoted(re.sub(r"^\s*Person:\s*", "", answer or ""))
                if why := (unusable(text) if answer else "no_answer"):
                    left_out[why] += 1
                else:
                    going.append(one._replace(messages=one.messages + user(text)))
        for one in going:
            yield Written(one.messages, "conversation", one.facets)


def magpie(ask: Ask, opening: str, want: int, left_out: Counter[str]) -> Iterator[Written]:
    """User turns that a model makes up when it goes on from `opening`. They are numbered, and the number is a part of
    what is asked: each is drawn with a seed of its own, and the n-th one is the same whenever it is asked for."""
    done = 0
    for turn in range(ROUNDS):
        numbers = range(done, done + _size(want, 1, turn))
        done = numbers.stop
        for answer in ask([[{"role": f"{OPENING} {number}", "content": opening}] for number in numbers]):
            text = (answer or "").strip()
            why = "no_end" if answer is None else unusable(text)
            if why:
                left_out[why] += 1
                continue
            yield Written(user(text), "magpie", {})


def requests(method: str, want: int, config: Generate, answer: int) -> tuple[int, int]:
    """For a plan: the requests of a method's first round, and the characters that they show besides the template. A
    prompt is taken to have PROMPT characters, an answer `answer`. Where what comes back is unusable, each later round
    asks a quarter as much again."""
    if method == "self_instruct":
        asked = _size(want, A_REQUEST, 0)
        return asked, asked * EXAMPLES * PROMPT
    if method == "documents":
        assert config.documents
        asked = _size(want, A_PASSAGE, 0)
        return asked, asked * config.documents.characters
    if method == "conversation":
        before = [PROMPT + turn * (PROMPT + answer) for turn in range(config.conversation.turns - 1)]
        return 2 * len(before) * want, want * sum(2 * characters + answer for characters in before)
    return want, want * (PROMPT if method == "evolve" else 0)


def _size(want: int, each: int, turn: int) -> int:
    """Requests in a round: enough for all that is wanted, and in the later ones for a quarter of that."""
    return -(-want // each) if turn == 0 else -(-want // (4 * each))
