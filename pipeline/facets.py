"""Prompts from templates and a taxonomy, for the stage generate.

prompts/DOMAIN/facets/TASK/*.jinja are filled in from prompts/DOMAIN/domain.yaml. Tasks, topics and everything that a
template names come as often as their weights say, at every moment: they are dealt like cards from seeded decks. While
rows are made in rounds (pipeline/rounds.py) a Steering says which of them are wanted more often than that.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.domain import Domain
from pipeline.errors import RecipeError, nearest, where
from pipeline.templates import Template, fill, load

TRIES = 1000
"""Repeated combinations in a row after which a template counts as used up."""

FINE = 4
"""Cards of a value of weight 1 in a steered deck, so that it can be dealt half or a quarter as often too."""

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


@dataclass
class Steering:
    """What is wanted more or less often than its weight says; set anew after each round, read by the methods."""

    times: dict[str, dict[str, float]] = field(default_factory=dict)  # facet -> value -> how many times as often
    turn: int = 0  # how often it was set
    topics: list[str] = field(default_factory=list)  # each as many times as it is wanted, to draw from

    def set(self, times: dict[str, dict[str, float]]) -> None:
        """Steer anew."""
        self.times, self.turn = times, self.turn + 1
        names = list(dict.fromkeys(self.topics))
        self.topics[:] = [name for name in names for _ in range(max(1, round(FINE * self.of("topic", name))))]

    def of(self, facet: str, value: str | None) -> float:
        """How many times as often; 1 where nothing is said."""
        return self.times.get(facet, {}).get(value or "", 1.0)


class Filled(NamedTuple):
    """A template that was filled in."""

    text: str
    template: str  # TASK/NAME
    facets: dict[str, str | None]


class Deck(NamedTuple):
    """A supply of cards that is balanced at every moment: each is dealt as often as its weight says before any comes
    again. A card taken out of `weights` is not dealt any more."""

    weights: dict[Any, int]
    hand: list[Any]  # the cards still to be dealt, the next one last


class Slot(NamedTuple):
    """One variable of a template and what it is drawn from."""

    variable: str
    facet: str | None  # the column of `facets` that records it
    deck: Deck  # of (name, text)
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


def deal(deck: Deck, draw: random.Random) -> Any:
    """The next card. There must be one left."""
    while True:
        if not deck.hand:
            deck.hand.extend(card for card, weight in deck.weights.items() for _ in range(weight))
            draw.shuffle(deck.hand)
            deck.hand.reverse()
        card = deck.hand.pop()
        if card in deck.weights:
            return card


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


def filled(
    taxonomy: Domain, templates: dict[str, dict[str, Template]], balanced: bool, seed: int, steering: Steering
) -> Iterator[Filled]:
    """Templates filled in from the taxonomy, no combination twice, until all are used up. Tasks, topics
    and everything a template names come as often as their weights say, or equally often if `balanced`.

    Raises RecipeError (FILE:LINE: NAME) for a template that names something the taxonomy does not have.
    """
    draw = random.Random(f"facets {seed}")
    if balanced:
        taxonomy = taxonomy._replace(weights={})
    decks: dict[str, Deck] = {}  # facet -> the one deck of its values
    forms = forms_of(taxonomy, templates, decks)
    topics: dict[str, dict[str, float]] = {}  # task -> topic -> weight
    left: dict[tuple[str, str], Deck] = {}  # (task, topic) -> the forms not used up yet
    for number, form in enumerate(forms):
        topics.setdefault(form.task, {})[form.topic or ""] = taxonomy.weight("topics", form.topic or "")
        left.setdefault((form.task, form.topic or ""), Deck({}, [])).weights[number] = 1
    tasks = decks["task"] = Deck({task: taxonomy.weight("tasks", task) for task in topics}, [])
    given: Counter[str] = Counter()  # topic -> prompts so far
    turn = steering.turn

    while tasks.weights:
        if steering.turn != turn:
            turn = steering.turn
            _steer(steering, taxonomy, decks, topics)
            given.clear()  # what was asked before is what the steering is reckoned from
        task = deal(tasks, draw)
        # Not every task has templates for every topic; so it takes the one that is furthest behind among those it has.
        topic = min(topics[task], key=lambda topic: (given[topic] + 1) / topics[task][topic])
        given[topic] += 1
        number = deal(left[task, topic], draw)
        form = forms[number]
        cards = _combination(form, draw)
        if cards is not None:
            values = {slot.variable: text for slot, (_, text) in zip(form.slots, cards, strict=True)}
            facets = {slot.facet: key for slot, (key, _) in zip(form.slots, cards, strict=True) if slot.facet}
            text = fill(form.template, task=taxonomy.tasks[task], topic=topic, **values)
            if not text.strip():
                raise RecipeError(f"{form.template.name}: comes out empty. Write a text, or remove the file.")
            yield Filled(text, f"{task}/{form.name}", {"task": task, "topic": form.topic, **facets})
        if cards is None or len(form.used) == form.room:
            del left[task, topic].weights[number]
            if not left[task, topic].weights:
                del topics[task][topic]
            if not topics[task]:
                del tasks.weights[task]


def _steer(steering: Steering, taxonomy: Domain, decks: dict[str, Deck], topics: dict[str, dict[str, float]]) -> None:
    """Weigh topics and the cards of every facet anew; what is left of the hands was dealt by the old weights."""
    for of_task in topics.values():
        for topic in of_task:
            of_task[topic] = taxonomy.weight("topics", topic) * steering.of("topic", topic)
    for facet, deck in decks.items():
        for card in deck.weights:
            name = card if isinstance(card, str) else card[0]
            often = taxonomy.weight(GROUP_OF[facet], name) * steering.of(facet, name)
            deck.weights[card] = max(1, round(FINE * often))
        deck.hand.clear()


def _combination(form: Form, draw: random.Random) -> list[tuple[str, str]] | None:
    """A new combination for the form's slots; None if TRIES in a row were not new, or x was the same as other_x."""
    for _ in range(TRIES):
        cards = [deal(slot.deck, draw) for slot in form.slots]
        keys = tuple(key for key, _ in cards)
        drawn = dict(zip((slot.variable for slot in form.slots), keys, strict=True))
        twins = any(drawn.get(f"other_{variable}") == key for variable, key in drawn.items())
        if keys not in form.used and not twins:
            form.used.add(keys)
            return cards
    return None


def forms_of(taxonomy: Domain, templates: dict[str, dict[str, Template]], decks: dict[str, Deck]) -> list[Form]:
    """Every template with each topic that it can be about. Puts the deck of each facet that they name into `decks`.

    A template is about its first entity, or the one that it begins with {# about: NAME #} for; that decides the topic,
    and its other entities are of the same topic where their kind lies under it. A template that has {{ topic }} and no
    entity can be about every topic, one that has neither is about none.
    """
    kinds = taxonomy.kinds()
    entities: dict[tuple[str, str], Deck] = {}  # shared by all templates, so that the whole is balanced

    def deck(base: str, topic: str) -> Deck:
        if base not in kinds:
            group = getattr(taxonomy, FACET_OF[base])
            return decks.setdefault(
                base, Deck({item: taxonomy.weight(FACET_OF[base], item[0]) for item in group.items()}, [])
            )
        if (base, topic) not in entities:
            under = [topic] if topic in kinds[base] else list(kinds[base])
            entities[base, topic] = Deck({(entity, entity): 1 for t in under for entity in kinds[base][t]}, [])
        return entities[base, topic]

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
                    cards = deck(base, topic)
                    slots.append(Slot(variable, facet, cards, len(cards.weights)))
                    room *= slots[-1].size - (variable != base and base in bases)
                if room:
                    forms.append(Form(template, name, task, topic or None, slots, room, set()))
    if not forms:
        raise RecipeError("no template can be filled in from this domain.yaml. Add entities to its topics.")
    return forms
