"""generate: domain prompts from templates, a fact base, a teacher or a file.

Methods, mixed by the shares in the recipe, each a function that yields candidates for as long as it has any:

    questions      the fact base's questions, asked without their answers
    facets         prompts/DOMAIN/facets/TASK/*.jinja filled in from the taxonomy in prompts/DOMAIN/domain.yaml
    self_instruct, evolve, persona, conversation, magpie
                   written by the recipe's teachers, see pipeline/written.py; their templates are in prompts/DOMAIN, or
                   else in prompts/_any

or, instead of methods, `file`: prompts that a user already has.

A candidate is taken if it is new, is not nearly the same as one taken before, and is not a held-out question or nearly
one. The same recipe and seed give the same prompts, and a larger `count` of one method begins with the same ones.
"""

import gc
import itertools
import math
import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from pipeline import asking, paths, written
from pipeline.artifacts import write_table
from pipeline.domain import Domain, read_domain
from pipeline.errors import RecipeError, UserError, nearest, where
from pipeline.facts import Fact, questions, read_facts
from pipeline.questions import Question, held_out
from pipeline.questions import sources as held_out_files
from pipeline.recipe import WRITTEN, Recipe
from pipeline.records import FACETS, PROMPTS, Message, Row, facets_of, make_id
from pipeline.rowfile import read_objects
from pipeline.templates import Template, fill, load
from pipeline.written import Ask

VERSION = 1
SECTIONS = ("generate", "writers")
READS: dict[str, str] = {}

COUNT = 1000
"""Prompts where the recipe gives no count."""

GRAM = 5
"""Words in a row by which prompts are compared with each other and with held-out questions."""

OVERLAP = 0.8
"""Share of a held-out question's grams from which a prompt counts as the same question."""

NEARLY = 0.8
"""Jaccard similarity of word 5-grams from which two prompts are nearly the same, as in the stage dedupe."""

BITS = 256
"""Bits of the bitmap that stands for a prompt's words in a quick comparison."""

SAMPLE = 2000
"""Rows on which distinct-n and the similarity to the nearest row are measured."""

TRIES = 1000
"""Repeated combinations in a row after which a template counts as used up."""

Gram = tuple[str, ...]

_WORD = re.compile(r"\w+")
_UNPRINTABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def words(text: str) -> tuple[str, ...]:
    """A text's words as they are compared: lower case, without punctuation."""
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return tuple(map(sys.intern, _WORD.findall(plain)))  # interned, for they are compared and kept a thousand times


def grams_of(text: str) -> list[Gram]:
    """The distinct word GRAM-grams of a text in their order; a text of fewer words is one gram, all of it."""
    found = words(text)
    return list(dict.fromkeys(zip(*(found[i:] for i in range(min(GRAM, len(found)))), strict=False)))


def clean(text: str) -> str:
    """Text that any file, tokenizer and terminal takes: lone surrogates and control characters other than tab and
    newline become U+FFFD, blank space around it is dropped."""
    return _UNPRINTABLE.sub("\ufffd", text).strip()


def prompt_row(
    domain: str, method: str, messages: list[Message], template: str | None = None, **facets: str | None
) -> Row:
    """A row of the table prompts."""
    return {
        "id": make_id("prompt", domain, messages),
        "domain": domain,
        "method": method,
        "template": template,
        "facets": facets_of(**facets),
        "messages": messages,
    }


def ask(domain: str, method: str, text: str, template: str | None = None, **facets: str | None) -> Row:
    """A row of the table prompts with one user turn."""
    return prompt_row(domain, method, [{"role": "user", "content": text}], template, **facets)


# --- questions -------------------------------------------------------------------------------------------------------


def from_questions(domain: str, facts: list[Fact], lead_ins: list[str], share: float, seed: int) -> Iterator[Row]:
    """The questions of the facts, one of each fact, then another of each, and so on: any number of them is spread
    evenly over the facts. `share` of them open with one of `lead_ins`."""
    draw = random.Random(f"questions {seed}")
    wordings: dict[str, list[tuple[Fact, str]]] = {}
    for fact, question in questions(facts, "ask"):
        wordings.setdefault(fact.id, []).append((fact, question))
    for of_fact in wordings.values():
        draw.shuffle(of_fact)
    order = list(wordings.values())
    draw.shuffle(order)
    for turn in itertools.zip_longest(*order):
        for fact, question in (pair for pair in turn if pair):
            lead_in = draw.choice(lead_ins) if lead_ins else ""
            text = f"{lead_in}{question}" if draw.random() < share else question
            yield ask(domain, "questions", clean(text), fact.relation, topic=fact.topic, entity=fact.subject)


# --- facets ----------------------------------------------------------------------------------------------------------


Deck = Iterator[tuple[str, str]]
"""An endless supply of (name, text), balanced at every moment: see `dealt`."""

GROUP_OF = {
    "topic": "topics",
    "task": "tasks",
    "persona": "personas",
    "difficulty": "difficulty",
    "style": "styles",
    "language": "languages",
}
"""Facet -> the group of domain.yaml that its values are from."""

FACET_OF = {facet: group for facet, group in GROUP_OF.items() if facet not in ("topic", "task")}
"""Variable of a template -> the group of domain.yaml that it is drawn from."""

Card = TypeVar("Card")


class Slot(NamedTuple):
    """One variable of a template and what it is drawn from."""

    variable: str
    facet: str | None  # the column of `facets` that records it
    deck: Deck
    size: int


class Form(NamedTuple):
    """A template together with the topic it is filled in for: what the method facets deals out."""

    template: Template
    name: str  # TASK/NAME
    task: str
    topic: str | None  # null for a template that has neither an entity nor {{ topic }}
    slots: list[Slot]
    room: int  # how many different combinations there are
    used: set[tuple[str, ...]]  # the combinations there have been


def dealt(cards: dict[Card, int], draw: random.Random) -> Iterator[Card]:
    """Cards in a seeded order, each as often as its weight says before any comes again. A card taken out of `cards` is
    not dealt any more; the supply ends when there are none."""
    while cards:
        hand = [card for card, weight in cards.items() for _ in range(weight)]
        draw.shuffle(hand)
        for card in hand:
            if card in cards:
                yield card


def read_forms(folder: Path) -> dict[str, dict[str, Template]]:
    """Task -> NAME -> template for each folder/TASK/NAME.jinja, in the order of the names."""
    for path in sorted(folder.glob("*.jinja")):
        raise RecipeError(f"{path}: lies in no task. Move it into {folder}/TASK/, named like a task of domain.yaml.")
    found: dict[str, dict[str, Template]] = {}
    for path in sorted(folder.glob("*/*.jinja")):
        found.setdefault(path.parent.name, {})[path.stem] = load(path)
    if not found:
        raise RecipeError(f"{folder}: has no templates. Add one as {folder}/TASK/NAME.jinja.")
    return found


def from_facets(
    name: str, taxonomy: Domain, templates: dict[str, dict[str, Template]], balanced: bool, seed: int
) -> Iterator[Row]:
    """Templates filled in from the taxonomy, no combination twice, until all are used up. Tasks, topics
    and everything a template names come as often as their weights say, or equally often if `balanced`.

    Raises RecipeError (FILE:LINE: NAME) for a template that names something the taxonomy does not have.
    """
    draw = random.Random(f"facets {seed}")
    forms = forms_of(taxonomy, templates, balanced, draw)
    weight = (lambda group, key: 1) if balanced else taxonomy.weight
    tasks: dict[str, int] = {}
    topics: dict[str, dict[str, int]] = {}  # task -> topic -> weight
    left: dict[tuple[str, str], dict[int, int]] = {}  # (task, topic) -> the forms not used up yet
    for number, form in enumerate(forms):
        tasks[form.task] = weight("tasks", form.task)
        topics.setdefault(form.task, {})[form.topic or ""] = weight("topics", form.topic or "")
        left.setdefault((form.task, form.topic or ""), {})[number] = 1
    given: Counter[str] = Counter()  # topic -> prompts so far
    next_form = {place: dealt(numbers, draw) for place, numbers in left.items()}

    for task in dealt(tasks, draw):
        # Not every task has templates for every topic; so it takes the one that is furthest behind among those it has.
        topic = min(topics[task], key=lambda topic: (given[topic] + 1) / topics[task][topic])
        given[topic] += 1
        number = next(next_form[task, topic])
        form = forms[number]
        cards = _combination(form)
        if cards is not None:
            values = {slot.variable: text for slot, (_, text) in zip(form.slots, cards, strict=True)}
            facets = {slot.facet: key for slot, (key, _) in zip(form.slots, cards, strict=True) if slot.facet}
            text = fill(form.template, task=taxonomy.tasks[task], topic=topic, **values)
            if not clean(text):
                raise RecipeError(f"{form.template.name}: comes out empty. Write a text, or remove the file.")
            yield ask(name, "facets", clean(text), f"{task}/{form.name}", task=task, topic=form.topic, **facets)
        if cards is None or len(form.used) == form.room:
            del left[task, topic][number]
            if not left[task, topic]:
                del topics[task][topic]
            if not topics[task]:
                del tasks[task]


def _combination(form: Form) -> list[tuple[str, str]] | None:
    """A new combination for the form's slots; None if TRIES in a row were not new, or x was the same as other_x."""
    for _ in range(TRIES):
        cards = [next(slot.deck) for slot in form.slots]
        keys = tuple(key for key, _ in cards)
        drawn = dict(zip((slot.variable for slot in form.slots), keys, strict=True))
        twins = any(drawn.get(f"other_{variable}") == key for variable, key in drawn.items())
        if keys not in form.used and not twins:
            form.used.add(keys)
            return cards
    return None


def forms_of(
    taxonomy: Domain, templates: dict[str, dict[str, Template]], balanced: bool, draw: random.Random
) -> list[Form]:
    """Every template with each topic that it can be about.

    A template is about its first entity, or the one that it begins with {# about: NAME #} for; that decides the topic,
    and its other entities are of the same topic where their kind lies under it. A template that has {{ topic }} and no
    entity can be about every topic, one that has neither is about none.
    """
    kinds = taxonomy.kinds()
    decks: dict[tuple[str, str], tuple[Deck, int]] = {}  # shared by all templates, so that the whole is balanced

    def deck(base: str, topic: str) -> tuple[Deck, int]:
        if (base, topic) not in decks:
            if base in kinds:
                under = [topic] if topic in kinds[base] else list(kinds[base])
                cards = {(entity, entity): 1 for t in under for entity in kinds[base][t]}
            else:
                group = getattr(taxonomy, FACET_OF[base])
                cards = {item: 1 if balanced else taxonomy.weight(FACET_OF[base], item[0]) for item in group.items()}
            decks[base, topic] = dealt(cards, draw), len(cards)
        return decks[base, topic]

    known = [*kinds, "topic", "task", *(base for base, group in FACET_OF.items() if getattr(taxonomy, group))]
    forms = []
    for task, of_task in templates.items():
        for name, template in of_task.items():
            if task not in taxonomy.tasks:
                place = where(template.name)
                raise RecipeError(f"{place}: '{task}' is not among domain.yaml's tasks.{nearest(task, taxonomy.tasks)}")
            bases = {variable: variable.removeprefix("other_") for variable in template.variables}
            for variable, line in template.variables.items():
                if bases[variable] not in known or variable in ("other_topic", "other_task"):
                    place = where(template.name, line, variable)
                    raise RecipeError(f"{place}: domain.yaml has nothing of this name.{nearest(variable, known)}")
            subject = template.about or next((v for v in template.variables if bases[v] in kinds), None)
            if subject and bases.get(subject) not in kinds:
                place = where(template.name, 1, "about")
                raise RecipeError(f"{place}: '{subject}' is not an entity of this template.{nearest(subject, bases)}")
            about: Iterable[str] = kinds[bases[subject]] if subject else taxonomy.topics if "topic" in bases else [""]
            for topic in about:
                slots, room = [], 1
                for variable, base in bases.items():
                    if base in ("topic", "task"):
                        continue
                    facet = "entity" if variable == subject else variable if variable in FACET_OF else None
                    slots.append(Slot(variable, facet, *deck(base, topic if base in kinds else "")))
                    room *= slots[-1].size - (variable != base and base in bases)
                if room:
                    forms.append(Form(template, name, task, topic or None, slots, room, set()))
    if not forms:
        raise RecipeError("no template can be filled in from this domain.yaml. Add entities to its topics.")
    return forms


# --- written by a teacher --------------------------------------------------------------------------------------------


def from_teacher(
    method: str, recipe: Recipe, inputs: dict[str, Path], ask_teacher: Ask, left_out: Counter[str]
) -> Iterator[Row]:
    """Prompts that the recipe's teachers write. What they start from are prompts of `facets`, or of `questions` in a
    domain without templates."""
    want = shares(recipe.generate.count or COUNT, dict(recipe.generate.methods.items()))[method]
    if method == "magpie":
        for one in from_model(recipe, want, left_out):
            if clean(one.messages[-1]["content"]):
                yield ask(recipe.domain, method, clean(one.messages[-1]["content"]), one.template)
        return
    taxonomy, seed, domain = read_domain(inputs["domain.yaml"]), recipe.seed, recipe.domain.replace("_", " ")
    rows = _candidates("facets" if "facets" in inputs else "questions", recipe, inputs)
    seeds = (written.Seed(row["messages"], row["facets"]) for row in rows)
    folder = inputs[method]
    made: Iterator[written.Written]
    if method == "self_instruct":
        topics, template = list(taxonomy.topics), load(folder)
        made = written.self_instruct(
            ask_teacher, template, domain, topics, list(itertools.islice(seeds, 500)), want, seed, left_out
        )
    elif method == "evolve":
        operations = {path.stem: load(path) for path in sorted(folder.glob("*.jinja"))}
        if not operations:
            raise RecipeError(
                f"{folder}: has no templates. Add one, or remove the folder to use those in prompts/_any."
            )
        made = written.evolve(ask_teacher, operations, domain, seeds, want, seed, left_out)
    elif method == "persona":
        entities = [(name, topic) for topic, names in taxonomy.kinds()["entity"].items() for name in names]
        personas = list(taxonomy.personas)
        if not entities or not personas:
            raise RecipeError(f"{inputs['domain.yaml']}: the method persona needs entities under topics, and personas.")
        made = written.persona(ask_teacher, load(folder), domain, entities, personas, want, seed, left_out)
    else:
        turns = recipe.generate.conversation.turns
        made = written.conversation(ask_teacher, load(folder), domain, seeds, turns, want, left_out)
    for one in made:
        messages: list[Message] = [turn | {"content": clean(turn["content"])} for turn in one.messages]
        if all(turn["content"] for turn in messages):
            yield prompt_row(recipe.domain, method, messages, one.template, **one.facets)


def ask_writers(recipe: Recipe, out: Path, conversations: list[list[Message]]) -> list[str | None]:
    """What the recipe's teachers answer to each conversation, None where there is no answer that ended by itself."""
    assert recipe.writers
    rows, _ = asking.ask(recipe, recipe.writers.model_copy(update={"system": None}), conversations, out)
    return [row["text"] if row and row["finish_reason"] == "stop" else None for row in rows]


def from_model(recipe: Recipe, want: int, left_out: Counter[str]) -> Iterator[written.Written]:
    """What the first local teacher of the recipe writes by itself, with collect.system as its system prompt."""
    from pipeline.stages import collect
    from pipeline.teachers import local

    teacher = next((teacher for teacher in recipe.collect.teachers if teacher.provider == "local"), None)
    if teacher is None:
        raise UserError(
            "generate.methods.magpie: needs a teacher of `provider: local`, to continue its empty user turn."
        )
    loaded = local.load(collect.local_teacher_folder(recipe, teacher), trust_remote_code=teacher.trust_remote_code)
    sampling = recipe.collect.sampling
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    return written.magpie(
        loaded,
        collect.system_message(recipe),
        temperature,
        top_p,
        sampling.max_tokens,
        teacher.batch_size,
        want,
        recipe.seed,
        left_out,
    )


# --- file ------------------------------------------------------------------------------------------------------------


def from_file(domain: str, path: Path) -> Iterator[Row]:
    """A user's own prompts from a file or data set that `rowfile` reads: `messages`, `prompt`, or `instruction` with or
    without `input`. What follows the last user turn of `messages` is left out: it is an answer.

    Raises RecipeError (FILE:LINE: FIELD: what is wrong); in Parquet and Arrow LINE is the number of the row, from 1.
    """
    empty = True
    for line, row in read_objects(path):
        empty = False
        yield prompt_row(domain, "file", _messages_of(path, line, row))
    if empty:
        raise RecipeError(f'{path}: has no prompts. Give one a line, as {{"prompt": "..."}}.')


def _messages_of(path: Path, line: int, row: Any) -> list[Message]:
    if not isinstance(row, dict):
        raise RecipeError(f'{where(path, line)}: expected an object such as {{"prompt": "..."}}.')
    # An empty cell of a table with several of the columns is no value.
    given = {name: row[name] for name in ("messages", "prompt", "instruction") if row.get(name) is not None}
    given = {name: value for name, value in given.items() if value != "" or len(given) == 1}
    if not given:
        known = ("prompt", "instruction", "messages")
        near = next((nearest(name, known) for name in map(str, row) if "Did" in nearest(name, known)), "")
        raise RecipeError(f"{where(path, line)}: has none of `prompt`, `instruction` or `messages`.{near}")
    field, value = next(iter(given.items()))
    if isinstance(value, list) and field != "instruction":
        return _turns(path, line, field, value)
    if field == "messages":
        raise RecipeError(f"{where(path, line, field)}: expected a list of turns, found {type(value).__name__}.")
    text = _text(path, line, field, value)
    extra = row.get("input")
    if field == "instruction" and extra not in (None, ""):
        text = f"{text}\n\n{_text(path, line, 'input', extra)}"
    return [{"role": "user", "content": text}]


def _turns(path: Path, line: int, field: str, turns: list[Any]) -> list[Message]:
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        at = f"{field}.{i}"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise RecipeError(f'{where(path, line, at)}: expected {{"role": ..., "content": ...}}.')
        if turn["role"] not in ("system", "user", "assistant"):
            raise RecipeError(f"{where(path, line, f'{at}.role')}: {turn['role']!r} is not system, user or assistant.")
        messages.append({"role": turn["role"], "content": _text(path, line, f"{at}.content", turn["content"])})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise RecipeError(f"{where(path, line, field)}: has no user turn, so there is nothing to answer.")
    return messages


def _text(path: Path, line: int, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{where(path, line, field)}: expected a text, found {type(value).__name__}.")
    if not (text := clean(value)):
        raise RecipeError(f"{where(path, line, field)}: is empty. Write a prompt, or remove the row.")
    return text


# --- what is taken ---------------------------------------------------------------------------------------------------


class Guard(NamedTuple):
    """The held-out questions, ready to be compared with."""

    having: dict[Gram, list[int]]  # gram -> the questions that have it
    sizes: list[int]  # grams of each question


def make_guard(held_out: Iterable[Question]) -> Guard:
    """The guard for some held-out questions. A gram inside a question's subject is left out: it says what is asked
    about, not how, and other questions about the same subject may have it."""
    guard = Guard({}, [])
    for question in held_out:
        grams = grams_of(question.prompt)
        subject = set(grams_of(question.subject))
        own = [gram for gram in grams if gram not in subject] or grams
        for gram in own:
            guard.having.setdefault(gram, []).append(len(guard.sizes))
        guard.sizes.append(len(own))
    return guard


def is_held_out(guard: Guard, grams: Iterable[Gram]) -> bool:
    """Whether a prompt with these grams has at least OVERLAP of the grams of a held-out question."""
    hits: Counter[int] = Counter()
    for gram in grams:
        if gram in guard.having:
            hits.update(guard.having[gram])
    return any(n >= OVERLAP * guard.sizes[question] for question, n in hits.items())


class Seen(NamedTuple):
    """The prompts taken so far, indexed for finding nearly the same ones."""

    numbers: defaultdict[Gram, int]  # gram -> its number, in the order in which they were first seen
    sets: list[list[int]]  # the grams of each text, the highest number first
    bitmaps: list[int]  # of each text, bit n % BITS for its every gram n
    having: defaultdict[int, list[int]]  # gram -> the texts that have it at the beginning of their set


def nothing_seen() -> Seen:
    """No prompts yet."""
    return Seen(defaultdict(itertools.count().__next__), [], [], defaultdict(list))


def nearly_new(seen: Seen, grams: Iterable[Gram]) -> bool:
    """Whether a text with these grams is new: False if their Jaccard similarity to those of a text that was is at least
    NEARLY. Remembers a new one in `seen`.

    Exact, by the prefix filter of Bayardo, Ma and Srikant (2007): in any fixed order of all grams, two sets as similar
    as that share one of their first n - ceil(NEARLY n) + 1, so only texts that do are compared. What was first seen
    late is rare, and few texts share it; so that is the order. The bitmaps spare most of these comparisons too: two
    sets differ in at least as many grams as their bitmaps in bits (Sandes, Teodoro and Melo, 2020).
    """
    numbers = sorted([seen.numbers[gram] for gram in grams], reverse=True)
    own, size, bitmap = frozenset(numbers), len(numbers), 0
    for number in numbers:
        bitmap |= 1 << number % BITS
    prefix = numbers[: size - math.ceil(NEARLY * size) + 1]
    near: set[int] = set()
    for number in prefix:
        near.update(seen.having[number])
    # A set of m grams that is as similar has m <= size / NEARLY, and differs in (1 - NEARLY) / (1 + NEARLY) of both.
    differ = int((1 - NEARLY) / NEARLY * size + 1e-9)
    for other in near:
        if (bitmap ^ seen.bitmaps[other]).bit_count() <= differ:
            theirs = seen.sets[other]
            both = len(own.intersection(theirs))
            if both >= NEARLY * (size + len(theirs) - both):
                return False
    for number in prefix:
        seen.having[number].append(len(seen.sets))
    seen.sets.append(numbers)
    seen.bitmaps.append(bitmap)
    return True


def take(
    candidates: Iterator[Row], want: int | None, taken: dict[str, Row], seen: Seen | None, guard: Guard
) -> Counter[str]:
    """Move up to `want` candidates to `taken` (id -> row), those that are new and not held out; near-duplicates are
    looked for if `seen` is given. Returns how many were left out, by reason."""
    reasons: Counter[str] = Counter()
    enough = len(taken) + want if want is not None else None
    for row in candidates if want != 0 else ():
        grams = grams_of(text_of(row))
        if row["id"] in taken:
            reasons["exact_duplicate"] += 1
        elif is_held_out(guard, grams):
            reasons["held_out"] += 1
        elif seen and not nearly_new(seen, grams):
            reasons["near_duplicate"] += 1
        else:
            taken[row["id"]] = row
            if len(taken) == enough:
                break
    return reasons


def text_of(row: Row) -> str:
    """All turns of a prompt as one text."""
    return "\n".join(message["content"] for message in row["messages"])


# --- coverage --------------------------------------------------------------------------------------------------------


def coverage(prompts: pa.Table, taxonomy: Domain | None) -> dict[str, Any]:
    """How well the prompts cover their domain, as JSON values:

    facets       facet -> value -> {"rows", "plan"}: rows that have it, and how many the weights of domain.yaml ask for
                 (null where domain.yaml has no such value)
    taxonomy     topic -> {"entries", "touched"}: entities of domain.yaml, and those that a prompt names as its subject
    touched      share of all entities that are touched, 0 .. 1, null without a taxonomy
    distinct_n   n -> distinct word n-grams / word n-grams, for 1, 2, 3 (Li et al. 2016), on a sample of SAMPLE rows
    nearest      mean over that sample of the Jaccard similarity of word 3-grams to the nearest other row of the sample
    """
    facets = {name: prompts.column("facets").combine_chunks().field(name) for name in FACETS}
    covered: dict[str, dict[str, dict[str, int | float | None]]] = {}
    for facet, group in GROUP_OF.items():
        rows = Counter(value for value in facets[facet].to_pylist() if value is not None)
        planned = list(getattr(taxonomy, group)) if taxonomy else []
        weights = {value: taxonomy.weight(group, value) for value in planned} if taxonomy else {}
        per_weight = sum(rows.values()) / sum(weights.values()) if weights else 0.0
        values = [*planned, *sorted(rows.keys() - weights.keys())]
        covered[facet] = (
            {
                value: {
                    "rows": rows[value],
                    "plan": round(per_weight * weights[value], 1) if value in weights else None,
                }
                for value in values
            }
            if rows
            else {}
        )

    asked = {name for name in facets["entity"].to_pylist() if name is not None}
    entries: dict[str, dict[str, int]] = {}
    for topic, kinds in taxonomy.topics.items() if taxonomy else []:
        names = {name for of_kind in kinds.values() for name in of_kind}
        entries[topic] = {"entries": len(names), "touched": len(names & asked)}
    total = sum(entry["entries"] for entry in entries.values())

    # Ids are hashes, so that the first rows are a fair sample.
    texts = [words(text_of({"messages": turns})) for turns in prompts.column("messages").slice(0, SAMPLE).to_pylist()]
    return {
        "facets": covered,
        "taxonomy": entries,
        "touched": round(sum(e["touched"] for e in entries.values()) / total, 4) if total else None,
        "distinct_n": {str(n): _distinct_n(texts, n) for n in (1, 2, 3)},
        "nearest": _nearest(texts),
    }


def _ngrams(text: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def _distinct_n(texts: list[tuple[str, ...]], n: int) -> float | None:
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return round(len(set(grams)) / len(grams), 4) if grams else None


def _nearest(texts: list[tuple[str, ...]]) -> float | None:
    """Mean similarity of each text to the one nearest to it, by counting the 3-grams that it shares with each."""
    if len(texts) < 2:
        return None
    sets = [set(_ngrams(text, min(3, len(text)))) for text in texts]
    having: dict[tuple[str, ...], list[int]] = {}
    for number, grams in enumerate(sets):
        for gram in grams:
            having.setdefault(gram, []).append(number)
    best = []
    for number, grams in enumerate(sets):
        shared = Counter(other for gram in grams for other in having[gram] if other != number)
        best.append(max((n / (len(grams) + len(sets[other]) - n) for other, n in shared.items()), default=0.0))
    return round(sum(best) / len(best), 4)


# --- the stage -------------------------------------------------------------------------------------------------------


def shares(count: int, methods: dict[str, float]) -> dict[str, int]:
    """`count` split by the methods' shares, the largest remainders rounded up."""
    total = sum(methods.values())
    exact = {method: count * share / total for method, share in methods.items()}
    split = {method: int(part) for method, part in exact.items()}
    for method in sorted(exact, key=lambda m: split[m] - exact[m])[: count - sum(split.values())]:
        split[method] += 1
    return split


def sources(recipe: Recipe) -> dict[str, Path]:
    """What the recipe's methods read: domain.yaml, templates, facts, a user's file."""
    section = recipe.generate
    found = {f"held_out_{name}": path for name, path in held_out_files(recipe).items()}
    if section.file:
        return found | {"file": _user_file(recipe, section.file)}
    if "questions" in section.methods:
        found["facts"] = paths.domain_data_folder(recipe.domain) / "facts"
    if "facets" in section.methods or section.questions.lead_ins:
        found["domain.yaml"] = paths.prompts_folder(recipe.domain) / "domain.yaml"
    if "facets" in section.methods:
        found["facets"] = paths.prompts_folder(recipe.domain) / "facets"
    if recipe.writers:
        from pipeline.stages import collect

        writing = recipe.model_copy(update={"collect": recipe.writers})
        found |= {f"writers_{name}": path for name, path in collect.sources(writing).items()}
    for method in (method for method in section.methods if method in WRITTEN and method != "magpie"):
        found["domain.yaml"] = paths.prompts_folder(recipe.domain) / "domain.yaml"
        found[method] = _templates_of(recipe.domain, method)
        if (paths.prompts_folder(recipe.domain) / "facets").is_dir():
            found["facets"] = paths.prompts_folder(recipe.domain) / "facets"
        else:
            found["facts"] = paths.domain_data_folder(recipe.domain) / "facts"
    return found


def _templates_of(domain: str, method: str) -> Path:
    """A method's template or folder of templates: the domain's own, else the one for any domain."""
    name = method if method == "evolve" else f"{method}.jinja"
    own = paths.prompts_folder(domain) / name
    return own if own.exists() else paths.prompts_folder("_any") / name


def _user_file(recipe: Recipe, file: Path) -> Path:
    """A user's file: as given, or in data/DOMAIN."""
    if file.exists():
        return file
    beside = Path("data") / recipe.domain / file
    if beside.exists():
        return beside
    raise UserError(f"generate.file: there is neither {file} nor {beside}. Give a .jsonl, .csv or .parquet file.")


def choose(recipe: Recipe, inputs: dict[str, Path], ask_teacher: Ask) -> tuple[dict[str, Row], Counter[str], list[str]]:
    """The prompts of a recipe (id -> row), how many candidates were left out by reason, and why there are fewer than
    asked for, where that is so."""
    section = recipe.generate
    wanted: dict[str, int | None] = {"file": section.count}
    if not section.file:
        wanted = {**shares(section.count or COUNT, dict(section.methods.items()))}
    # All held-out questions, not only those that evaluate.limit draws.
    everything = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"limit": None})})
    guard = make_guard(held_out(everything))
    taken: dict[str, Row] = {}
    seen = nothing_seen()
    reasons: Counter[str] = Counter()
    notes = []
    for method, want in wanted.items():
        before = len(taken)
        if method in WRITTEN:
            candidates = from_teacher(method, recipe, inputs, ask_teacher, reasons)
        else:
            candidates = _candidates(method, recipe, inputs)
        # Hundreds of thousands of small objects, none of them garbage: looking for some costs a sixth of the time.
        if method not in WRITTEN:
            gc.disable()
        try:
            # A user's own prompts are kept however similar they are.
            reasons.update(take(candidates, want, taken, None if method == "file" else seen, guard))
        finally:
            gc.enable()
        made = len(taken) - before
        if want is not None and made < want:
            notes.append(f"{method} has no more than {made:,} prompts that are new, of {want:,} asked for")
    return taken, reasons, notes


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write prompts.parquet to `out`. Returns {"outcomes": {"prompts": n}, "reasons": {reason: candidates left out},
    "coverage": see `coverage`, "note": why fewer than `count` came out, where that is so}.

    Raises UserError if not one prompt comes out, RecipeError for what is wrong in a file.
    """
    if recipe.writers and not recipe.writers.teachers:
        methods = ", ".join(method for method in recipe.generate.methods if method in WRITTEN)
        raise UserError(f"generate.methods: {methods} needs collect.teachers.")
    taken, reasons, notes = choose(recipe, inputs, partial(ask_writers, recipe, out))
    if not taken:
        said = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items())) or "there were no candidates"
        raise UserError(f"generate: not one prompt came out ({said}). Add templates, entities, facts or a larger file.")
    table = pa.Table.from_pylist([taken[key] for key in sorted(taken)], schema=PROMPTS)
    write_table(out / "prompts.parquet", PROMPTS, table)
    taxonomy = read_domain(inputs["domain.yaml"]) if "domain.yaml" in inputs else None
    counts: dict[str, Any] = {
        "outcomes": {"prompts": len(taken)},
        "reasons": dict(sorted(reasons.items())),
        "coverage": coverage(table, taxonomy),
    }
    return counts | ({"note": "; ".join(notes)} if notes else {})


def _candidates(method: str, recipe: Recipe, inputs: dict[str, Path]) -> Iterator[Row]:
    section = recipe.generate
    if method == "questions":
        facts = read_facts(inputs["facts"], section.questions.relations)
        lead_ins = _lead_ins(inputs["domain.yaml"]) if section.questions.lead_ins else []
        return from_questions(recipe.domain, facts, lead_ins, section.questions.lead_ins, recipe.seed)
    if method == "facets":
        taxonomy, templates = read_domain(inputs["domain.yaml"]), read_forms(inputs["facets"])
        return from_facets(recipe.domain, taxonomy, templates, section.facets.sampling == "balanced", recipe.seed)
    return from_file(recipe.domain, inputs["file"])


def _lead_ins(path: Path) -> list[str]:
    lead_ins = read_domain(path).lead_ins
    if not lead_ins:
        raise RecipeError(f"{path}: lead_ins: is missing, and generate.questions.lead_ins asks for them. Add a list.")
    return lead_ins


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("generate")
