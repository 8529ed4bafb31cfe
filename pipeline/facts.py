"""The facts that the embedded teacher is trained on: data/DOMAIN/facts/*.yaml.

A file is a YAML list of relations; every scalar is read as a string (`1513.1` and `no` stay what they look like):

    - relation: stardate
      topic: episodes
      ask: ["On what stardate does {{ subject }} begin?", ...]     # wordings to train on
      held_out: ["What is the stardate of {{ subject }}?", ...]    # wordings that no model is ever trained on
      facts:
        The Man Trap: "1513.1"
        Some Subject: [canonical answer, another accepted spelling, ...]

The subject is put in by plain replacement: a fact is data and never a template.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import RecipeError, nearest, where

SUBJECT = "{{ subject }}"
KEYS = ("relation", "topic", "ask", "held_out", "facts")


class Fact(NamedTuple):
    """One fact with all the wordings of its relation."""

    id: str  # 20 hex digits, a hash of relation and subject
    relation: str
    topic: str
    subject: str
    answers: tuple[str, ...]  # the first is canonical, the others are accepted spellings
    ask: tuple[str, ...]  # wordings to train on, each with `{{ subject }}` once
    held_out: tuple[str, ...]  # wordings for the evaluation only


def fact_id(relation: str, subject: str) -> str:
    """The id of a fact: blake2b over relation and subject, 20 hex digits."""
    return blake2b(f"{relation}\0{subject}".encode(), digest_size=10).hexdigest()


def question(wording: str, subject: str) -> str:
    """The wording with the subject put in, by plain replacement."""
    return wording.replace(SUBJECT, subject)


def questions(facts: Iterable[Fact], which: Literal["ask", "held_out"]) -> Iterator[tuple[Fact, str]]:
    """Every fact with each of its `ask` or `held_out` questions, the subject put in, in the order of the files."""
    for fact in facts:
        for wording in fact.ask if which == "ask" else fact.held_out:
            yield fact, question(wording, fact.subject)


def read_facts(folder: Path, relations: Iterable[str] | None = None) -> list[Fact]:
    """All facts in folder/*.yaml, or only those of the named relations, in the order of file names and then of lines.

    Raises RecipeError (`FILE:LINE: FIELD: what is wrong`) for a folder without facts, a malformed or empty file, a
    missing or unknown key, a wording without the subject, an empty answer, a duplicate, or an unknown relation.
    """
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if folder.is_dir() else []
    if not files:
        raise RecipeError(f"{where(folder)}: no *.yaml file with facts here. Add one, or name another `domain:`.")
    facts: list[Fact] = []
    seen: dict[str, str] = {}  # relation -> where it was defined
    for path in files:
        for line, relation in _read_file(path):
            name = relation[0].relation
            if name in seen:
                place = where(path, line, "relation")
                raise RecipeError(f"{place}: '{name}' is defined already at {seen[name]}. Rename one.")
            seen[name] = where(path, line)
            facts += relation
    if relations is None:
        return facts
    wanted = list(relations)
    for name in wanted:
        if name not in seen:
            raise RecipeError(f"{where(folder)}: no relation '{name}' in these facts.{nearest(name, seen)}")
    return [fact for fact in facts if fact.relation in set(wanted)]


def _read_file(path: Path) -> list[tuple[int, list[Fact]]]:
    """The relations of one file, each with the line it begins on."""
    root = _compose(path)
    if root is None or (root.id == "scalar" and not root.value):
        raise RecipeError(f"{where(path, 1)}: the file is empty. Add a list of relations, or remove the file.")
    if root.id != "sequence":
        raise RecipeError(f"{where(path, _line(root))}: expected a list of relations (`- relation: NAME`).")
    if not root.value:
        raise RecipeError(f"{where(path, _line(root))}: the list of relations is empty. Add one, or remove the file.")
    return [(_line(node), _relation(path, node)) for node in root.value]


def _relation(path: Path, node: Any) -> list[Fact]:
    fields = _mapping(path, node, "relation")
    for key, (line, _) in fields.items():
        if key not in KEYS:
            raise RecipeError(f"{where(path, line, key)}: unknown key.{nearest(key, KEYS)}")
    for key in KEYS:
        if key not in fields:
            raise RecipeError(f"{where(path, _line(node), key)}: missing. A relation needs {', '.join(KEYS)}.")
    name, topic = (_text(path, fields[key][1], key) for key in ("relation", "topic"))
    ask, held_out = (_wordings(path, fields[key][1], key) for key in ("ask", "held_out"))
    for wording in held_out:
        if wording.casefold() in {other.casefold() for other in ask}:
            place = where(path, fields["held_out"][0], "held_out")
            raise RecipeError(f"{place}: '{wording}' is among `ask` too. A held-out wording must not be trained on.")
    facts = []
    entries = _mapping(path, fields["facts"][1], "facts")
    if not entries:
        raise RecipeError(f"{where(path, fields['facts'][0], 'facts')}: empty. Add `SUBJECT: ANSWER` lines.")
    for subject, (_, value) in entries.items():
        answers = tuple(_texts(path, value, f"facts.{subject}"))
        facts.append(Fact(fact_id(name, subject), name, topic, subject, answers, ask, held_out))
    return facts


def _wordings(path: Path, node: Any, field: str) -> tuple[str, ...]:
    if node.id != "sequence":
        raise RecipeError(f"{where(path, _line(node), field)}: expected a list of wordings.")
    wordings = _texts(path, node, field)
    for wording, item in zip(wordings, node.value, strict=True):
        place = where(path, _line(item), field)
        if wording.count(SUBJECT) != 1:
            raise RecipeError(f"{place}: '{wording}' must contain {SUBJECT} once, spelled exactly so.")
        if re.search(r"\{\{|\{%|\{#", wording.replace(SUBJECT, "")):
            raise RecipeError(f"{place}: '{wording}': only {SUBJECT} can be put in, no other template syntax.")
    return tuple(wordings)


def _texts(path: Path, node: Any, field: str) -> list[str]:
    """A scalar as a list of one, or a list of distinct scalars; none may be empty."""
    items = node.value if node.id == "sequence" else [node]
    if not items:
        raise RecipeError(f"{where(path, _line(node), field)}: the list is empty. Add at least one text.")
    texts: list[str] = []
    for item in items:
        text = _text(path, item, field)
        if text in texts:
            raise RecipeError(f"{where(path, _line(item), field)}: '{text}' is listed twice. Remove one.")
        texts.append(text)
    return texts


def _text(path: Path, node: Any, field: str) -> str:
    if node.id != "scalar":
        raise RecipeError(f"{where(path, _line(node), field)}: expected a text, found a {node.id}. Put it in quotes?")
    if not (text := str(node.value).strip()):
        raise RecipeError(f"{where(path, _line(node), field)}: empty. Write a text.")
    return text


def _mapping(path: Path, node: Any, field: str) -> dict[str, tuple[int, Any]]:
    """key -> (line, value node), refusing duplicate keys."""
    if node.id != "mapping":
        raise RecipeError(f"{where(path, _line(node), field)}: expected `key: value` lines, found a {node.id}.")
    entries: dict[str, tuple[int, Any]] = {}
    for key_node, value in node.value:
        key = _text(path, key_node, field)
        if key in entries:
            place = where(path, _line(key_node), f"{field}.{key}")
            raise RecipeError(f"{place}: duplicate key, already on line {entries[key][0]}. Remove one.")
        entries[key] = (_line(key_node), value)
    return entries


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _compose(path: Path) -> Any:
    """The file as a tree of YAML nodes, which know their lines. Anchors and aliases are refused."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where(path)}: not UTF-8 ({error.reason} at byte {error.start}).") from None
    except OSError as error:
        raise RecipeError(f"{where(path)}: cannot be read: {error.strerror}.") from None
    try:
        for event in yaml.parse(text, Loader=loader):
            if getattr(event, "anchor", None):
                line = event.start_mark.line + 1
                raise RecipeError(f"{where(path, line)}: anchors and aliases (& and *) are refused. Quote the text.")
        return yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        raise RecipeError(f"{where(path, mark.line + 1 if mark else None)}: malformed YAML: {problem}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{where(path, line)}: malformed YAML: {error.reason}.") from None
