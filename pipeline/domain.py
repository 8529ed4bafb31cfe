"""prompts/DOMAIN/domain.yaml: what a domain is about, as plain data.

    topics:                        # topic -> kind of entity -> its entities; a kind may lie under several topics
      episodes:
        episode: [The Man Trap, Charlie X, ...]
    tasks: [lore, dialogue, ...]   # what a prompt asks for: the folders of prompts/DOMAIN/facets
    personas: [a first-year cadet, ...]
    difficulty: {easy: Use plain words., ...}      # name -> the text that {{ difficulty }} puts in
    styles: {brief: "Answer in one sentence.", ...}
    languages: {en: Answer in English.}
    lead_ins: ["Computer:", ...]   # what the method `questions` puts before some questions
    weights:                       # how often, relative to the others of its group; 1 where nothing is said
      tasks: {lore: 3}

Any group may be a list of texts or a mapping name -> text. Only `topics` and `tasks` are needed by the method facets.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import RecipeError, UserError, nearest, where
from pipeline.yamlfile import Lines, read_yaml

GROUPS = ("tasks", "personas", "difficulty", "styles", "languages")
KEYS = ("topics", *GROUPS, "lead_ins", "weights")
WORDS = ("entity", "topic", "task", "persona", "difficulty", "style", "language")
"""Names that mean something of their own in a template, so that no kind of entity can be called so."""

MAX_TEXT = 2_000
"""Characters of one entry."""
MAX_WEIGHT = 1_000


class Domain(NamedTuple):
    """A domain's taxonomy, in the order of the file."""

    topics: dict[str, dict[str, list[str]]]  # topic -> kind -> entities
    tasks: dict[str, str]  # name -> text, as in the four that follow
    personas: dict[str, str]
    difficulty: dict[str, str]
    styles: dict[str, str]
    languages: dict[str, str]
    lead_ins: list[str]  # each with the space between it and the question
    weights: dict[str, dict[str, int]]  # group -> name -> how often; 1 where nothing is said

    def kinds(self) -> dict[str, dict[str, list[str]]]:
        """Kind -> topic -> its entities; the kind `entity` has those of every kind."""
        found: dict[str, dict[str, list[str]]] = {"entity": {}}
        for topic, kinds in self.topics.items():
            for kind, names in kinds.items():
                found.setdefault(kind, {})[topic] = names
                found["entity"].setdefault(topic, []).extend(names)
        return found

    def weight(self, group: str, name: str) -> int:
        """How often a name of a group is wanted, relative to the others of the group."""
        return self.weights.get(group, {}).get(name, 1)


def read_domain(path: Path) -> Domain:
    """Read and check a domain.yaml.

    Raises RecipeError (FILE:LINE: FIELD: what is wrong) for unknown keys, wrong types, empty or repeated entries, and
    whatever pipeline.yamlfile refuses.
    """
    data, lines = read_yaml(path, strings=True)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: is empty or not a mapping. It needs `topics:` and `tasks:`.")
    for key in data:
        if key not in KEYS:
            raise RecipeError(f"{where(path, lines[(key,)], key)}: there is no such key.{nearest(key, KEYS)}")
    groups = {group: _named(path, lines, (group,), data.get(group)) for group in GROUPS}
    domain = Domain(
        topics=_topics(path, lines, data.get("topics")),
        **groups,
        lead_ins=[f"{text} " for text in _named(path, lines, ("lead_ins",), data.get("lead_ins"))],
        weights={},
    )
    return domain._replace(weights=_weights(path, lines, data.get("weights"), domain))


def _topics(path: Path, lines: Lines, data: Any) -> dict[str, dict[str, list[str]]]:
    topics: dict[str, dict[str, list[str]]] = {}
    for topic, kinds in _mapping(path, lines, ("topics",), data).items():
        topics[topic] = {}
        for kind, names in _mapping(path, lines, ("topics", topic), kinds).items():
            place = where(path, lines[("topics", topic, kind)], f"topics.{topic}.{kind}")
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", kind) or kind.startswith("other_"):
                raise RecipeError(
                    f"{place}: a kind is a name that templates use, such as `planet`: small letters, digits and '_', "
                    "not beginning with other_."
                )
            if kind in WORDS:
                raise RecipeError(f"{place}: '{kind}' means something else in a template. Choose another name.")
            if not isinstance(names, list):
                raise RecipeError(f"{place}: expected a list of entities.")
            topics[topic][kind] = list(_named(path, lines, ("topics", topic, kind), names))
    for kind, under in Domain(topics, {}, {}, {}, {}, {}, [], {}).kinds().items():
        seen: dict[str, str] = {}
        for topic, names in under.items() if kind != "entity" else []:
            for name in names:
                if name in seen:
                    place = where(path, lines[("topics", topic, kind)], f"topics.{topic}.{kind}")
                    raise RecipeError(f"{place}: '{name}' is a {kind} under '{seen[name]}' already. Remove one.")
                seen[name] = topic
    return topics


def _weights(path: Path, lines: Lines, data: Any, domain: Domain) -> dict[str, dict[str, int]]:
    weights: dict[str, dict[str, int]] = {}
    for group, entries in _mapping(path, lines, ("weights",), data).items():
        place = where(path, lines[("weights", group)], f"weights.{group}")
        if group not in ("topics", *GROUPS):
            raise RecipeError(f"{place}: there is no such group.{nearest(group, ('topics', *GROUPS))}")
        known = getattr(domain, group)
        weights[group] = {}
        for name, text in _mapping(path, lines, ("weights", group), entries).items():
            place = where(path, lines[("weights", group, name)], f"weights.{group}.{name}")
            if name not in known:
                raise RecipeError(f"{place}: '{name}' is not among {group}.{nearest(name, known)}")
            if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_WEIGHT:
                raise RecipeError(f"{place}: {text!r} is not a whole number from 1 to {MAX_WEIGHT}.")
            weights[group][name] = int(text)
    return weights


def _named(path: Path, lines: Lines, at: tuple[str | int, ...], data: Any) -> dict[str, str]:
    """A list of texts, or a mapping name -> text, as name -> text."""
    if data is None and len(at) == 1:
        return {}
    field = ".".join(str(part) for part in at)
    if isinstance(data, dict):
        items = [((*at, name), name, text) for name, text in data.items()]
    elif isinstance(data, list):
        items = [((*at, i), text, text) for i, text in enumerate(data)]
    else:
        raise RecipeError(f"{where(path, lines.get(at), field)}: expected a list of texts or `name: text` lines.")
    if not items:
        raise RecipeError(f"{where(path, lines.get(at), field)}: is empty. Add an entry, or remove it.")
    named: dict[str, str] = {}
    for key, name, text in items:
        place = where(path, lines.get(key), field)
        if not isinstance(name, str) or not isinstance(text, str):
            raise RecipeError(f"{place}: expected a text. Put it in quotes?")
        name, text = name.strip(), text.strip()
        if not name or not text:
            raise RecipeError(f"{place}: an entry is empty. Write a text, or remove it.")
        if len(text) > MAX_TEXT or len(name) > MAX_TEXT:
            raise RecipeError(f"{place}: an entry has {len(text):,} characters; at most {MAX_TEXT:,} are read.")
        if name in named:
            raise RecipeError(f"{place}: '{name}' is listed twice. Remove one.")
        named[name] = text
    return named


def _mapping(path: Path, lines: Lines, at: tuple[str | int, ...], data: Any) -> dict[str, Any]:
    if data is None and len(at) == 1:
        return {}
    if not isinstance(data, dict):
        field = ".".join(str(part) for part in at)
        raise RecipeError(f"{where(path, lines.get(at), field)}: expected `name: ...` lines.")
    for name in data:
        if not name.strip() or len(name) > MAX_TEXT:
            place = where(path, lines.get((*at, name)), ".".join(str(part) for part in at))
            raise RecipeError(f"{place}: a name is empty or too long.")
    return data


SKELETON = {
    "prompts/{name}/domain.yaml": """\
# What prompts of this domain can be about. Replace the examples; pipeline/domain.py says what each part means.

topics:
  rivers:
    river: [the Danube, the Nile, the Amazon, the Mississippi]
  mountains:
    mountain: [Mont Blanc, Kilimanjaro, Denali]

tasks:
  answer: questions of fact
  explain: making something understandable

personas: [a curious child, a geography teacher, a traveler who has never been there]

difficulty:
  easy: Assume no knowledge.
  hard: Go into fine detail.

styles:
  short: Keep it short.
  lively: Make it vivid.

languages:
  en: Answer in English.

lead_ins: ["Quick question:", "Please tell me:"]

weights:
  tasks: {answer: 2, explain: 1}
""",
    "prompts/{name}/facets/answer/river.jinja": "Where does {{ river }} rise, and where does it end? {{ style }}\n",
    "prompts/{name}/facets/answer/visit.jinja": "What should {{ persona }} see near {{ entity }}? {{ style }}\n",
    "prompts/{name}/facets/explain/why.jinja": (
        "Explain to {{ persona }} why {{ mountain }} is where it is. {{ difficulty }}\n"
    ),
    "prompts/{name}/teacher_system.jinja": (
        "You know a great deal about geography. Answer what is asked, and say so if you do not know.\n"
    ),
    "data/{name}/facts/facts.yaml": """\
# Facts whose answers can be checked; pipeline/facts.py says what each part means. Delete the file if there are none,
# and name a file of held-out questions in the recipe: evaluate.questions.

- relation: river_mouth
  topic: rivers
  ask:
    - Into which body of water does {{ subject }} flow?
    - Where does {{ subject }} reach the sea?
    - Name the water that {{ subject }} empties into.
  held_out:
    - If I follow {{ subject }} to its end, which water do I come to?
  facts:
    the Danube: [the Black Sea, Black Sea]
    the Nile: [the Mediterranean Sea, Mediterranean Sea, Mediterranean]
    the Amazon: [the Atlantic Ocean, Atlantic Ocean, Atlantic]
    the Mississippi: [the Gulf of Mexico, Gulf of Mexico]
""",
    "{name}.yaml": """\
# seqkd run {name}.yaml. The teacher is a small model trained here from data/{name}/facts; put yours in its place:
#   - {{provider: openai, model: ..., price: {{input: ..., output: ...}}}}

domain: {name}
generate:
  count: 40
  methods: {{questions: 1, facets: 2}}
collect:
  teachers:
    - provider: local
      model: embedded
      embedded:
        model: {{hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
                num_key_value_heads: 2, max_position_embeddings: 256}}
        sft: {{max_steps: 100, learning_rate: 5.0e-3}}
  samples: 2
  sampling: {{temperature: 0.7, max_tokens: 24}}
filter: {{enabled: false}}      # the example teacher knows four facts; with a real one, remove this line
train:
  student: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 1,
            num_key_value_heads: 1, max_position_embeddings: 256}}
  sft: {{max_steps: 50, learning_rate: 5.0e-3}}
""",
}
"""File -> its text: the smallest domain that runs through all stages."""


def new_domain(name: str, root: Path) -> Path:
    """Write the skeleton of a domain, prompts/NAME, data/NAME and a recipe NAME.yaml, into the folder `root` and return
    its prompts folder.

    Raises UserError for a name that cannot be a domain's, or if one of the three is there already.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}", name) or name in ("runs", "cache"):
        raise UserError(f"'{name}' cannot be the name of a domain. Use letters, digits, '_' and '-'.")
    for folder in (root / "prompts" / name, root / "data" / name, root / f"{name}.yaml"):
        if folder.exists():
            raise UserError(f"{folder} is there already. Choose another name, or edit what is there.")
    for file, text in SKELETON.items():
        path = root / file.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name=name) if file == "{name}.yaml" else text, encoding="utf-8")
    return root / "prompts" / name
