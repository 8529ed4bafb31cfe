"""The held-out questions: what the student is examined on, and what must not be in its training data.

They come from the recipe's `evaluate.questions`, a file with one question a row,

    {"prompt": "Who commands the Enterprise?", "answer": "James T. Kirk"}
    {"messages": [{"role": "user", "content": "..."}], "answers": ["...", "..."], "id": "q17", "topic": "people"}

(.jsonl, or .csv or .parquet with the same columns), or else from the held-out wordings of data/DOMAIN/facts.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline import paths, rowfile
from pipeline.errors import RecipeError, UserError, where
from pipeline.facts import questions as fact_questions
from pipeline.facts import read_facts
from pipeline.recipe import Recipe
from pipeline.records import Message, Row, make_id

ROLES = ("system", "user", "assistant")


class Question(NamedTuple):
    """One held-out question."""

    id: str  # as the file gives it, else a hash of the messages
    topic: str  # as the file or the fact base gives it; "" where there is none
    group: str  # what a limited draw is spread over: the relation of the fact base, else the topic
    messages: tuple[Message, ...]  # ends with a user turn
    answers: tuple[str, ...]  # the accepted answers, the canonical one first; empty where there is no reference
    fact: str | None  # id of the fact it asks for, None for a question from a file
    subject: str  # what the fact is about, word for word as in the question; "" for a question from a file

    @property
    def prompt(self) -> str:
        """The text of the last turn."""
        return self.messages[-1]["content"]

    @property
    def about(self) -> str:
        """What it asks for: the fact, else the question itself. Two about the same are no independent evidence."""
        return self.fact or make_id(list(self.messages))


def held_out(recipe: Recipe) -> list[Question]:
    """The held-out questions of a recipe, in the order of file or facts, at most `evaluate.limit` of them.

    A limited draw is spread evenly over the groups and depends on nothing but the questions and the recipe's seed.
    An empty list if the recipe names no questions and the domain has no facts. Raises RecipeError (FILE:LINE: FIELD)
    for a malformed file and UserError if the file is not there.
    """
    files = sources(recipe)
    if "questions" in files:
        found = read_questions(files["questions"])
    elif "facts" in files:
        facts = read_facts(files["facts"], recipe.generate.questions.relations)
        found = []
        for fact, text in fact_questions(facts, "held_out"):
            messages = ({"role": "user", "content": text},)
            found.append(
                Question(make_id(text), fact.topic, fact.relation, messages, fact.answers, fact.id, fact.subject)
            )
        found = _distinct(found)
    else:
        return []
    limit = recipe.evaluate.limit
    return found if limit is None or limit >= len(found) else _spread(found, limit, recipe.seed)


def sources(recipe: Recipe) -> dict[str, Path]:
    """The files that the held-out questions are read from, by name: `questions`, or `facts`, or nothing."""
    given = recipe.evaluate.questions
    if given is not None:
        return {"questions": _find(given, recipe.domain)}
    try:
        folder = paths.domain_data_folder(recipe.domain) / "facts"
    except UserError:
        return {}
    return {"facts": folder} if folder.is_dir() else {}


def _find(given: Path, domain: str) -> Path:
    """A file as given, else in data/DOMAIN."""
    if given.is_file():
        return given
    if not given.is_absolute():
        try:
            inside = paths.domain_data_folder(domain) / given
        except UserError:
            inside = given
        if inside.is_file():
            return inside
    raise UserError(
        f"evaluate.questions: there is no file {given}, neither as given nor in data/{domain}/. "
        "Name a .jsonl, .csv or .parquet file with one question a row."
    )


def read_questions(path: Path) -> list[Question]:
    """The questions of a file that rowfile reads. Raises RecipeError: FILE:LINE: FIELD (for Parquet, the row)."""
    found: list[Question] = []
    ids: dict[str, int] = {}
    for line, row in read_objects(path):
        question = _question(path, line, row)
        if question.id in ids and row.get("id") is not None:
            place = where(path, line, "id")
            raise RecipeError(f"{place}: '{question.id}' is taken by line {ids[question.id]}. Give each its own.")
        ids.setdefault(question.id, line)
        found.append(question)
    if not found:
        raise RecipeError(f"{path}: has no questions. Add one, or name another file.")
    return _distinct(found)


def read_objects(path: Path) -> Iterator[tuple[int, Row]]:
    """(line or row number from 1, object) of a file that rowfile reads; a field that is null was not given.

    Raises RecipeError (FILE:LINE: what is wrong)."""
    for number, row in rowfile.read_objects(path):
        if not isinstance(row, dict):
            raise RecipeError(f'{where(path, number)}: expected an object like {{"prompt": "..."}}.')
        yield number, {name: value for name, value in row.items() if value is not None}


def prompt_messages(path: Path, line: int, row: Row) -> tuple[Message, ...]:
    """The messages of a row with `prompt` (a text, or messages) or `messages`; RecipeError if they are not right.

    Turns of the assistant after the last user turn are an answer and left out.
    """
    fields = [name for name in ("prompt", "messages") if row.get(name) is not None]
    if len(fields) != 1:
        found = "both" if fields else "neither"
        raise RecipeError(
            f"{where(path, line, 'prompt')}: expected `prompt` or `messages`, found {found}. Give one of them."
        )
    value = row[fields[0]]
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    field = fields[0]
    if not isinstance(value, list) or not value:
        raise RecipeError(
            f"{where(path, line, field)}: expected a text or a list of messages. Give it one, or remove the row."
        )
    messages: list[Message] = []
    for number, message in enumerate(value):
        place = where(path, line, f"{field}.{number}")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise RecipeError(
                f'{place}: expected {{"role": "user", "content": "..."}}. Give the turn a text, or leave it out: calls '
                "of tools and pictures are not read."
            )
        if message.get("role") not in ROLES:
            raise RecipeError(
                f"{place}.role: {message.get('role')!r} is not one of {', '.join(ROLES)}. Name it so, or leave the "
                "turn out: what tools say is not read."
            )
        # Half a surrogate pair is no character, and no file or tokenizer takes it.
        text = message["content"].encode("utf-8", "replace").decode()
        messages.append({"role": message["role"], "content": text})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise RecipeError(
            f"{where(path, line, field)}: has no user turn with text to answer. Give it one, or remove the row."
        )
    return tuple(messages)


def _question(path: Path, line: int, row: Row) -> Question:
    messages = prompt_messages(path, line, row)
    if row.get("answer") is not None and row.get("answers") is not None:
        raise RecipeError(f"{where(path, line, 'answers')}: give `answer` or `answers`, not both.")
    given = row.get("answers") if row.get("answer") is None else [row["answer"]]
    field = "answers" if row.get("answer") is None else "answer"
    if given is not None and not isinstance(given, list):
        raise RecipeError(f"{where(path, line, field)}: expected a list of texts.")
    answers: list[str] = []
    for answer in given or []:
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            raise RecipeError(f"{where(path, line, field)}: expected a text that is not empty, found {answer!r}.")
        answers.append(answer.encode("utf-8", "replace").decode())
    texts: dict[str, str] = {}
    for name in ("id", "topic"):
        value = row.get(name)
        if value is not None and not isinstance(value, (str, int)):
            raise RecipeError(f"{where(path, line, name)}: expected a text, found {value!r}.")
        texts[name] = "" if value is None else str(value)
    key = messages[0]["content"] if len(messages) == 1 else messages
    identity = texts["id"] or make_id(key)
    return Question(identity, texts["topic"], texts["topic"], messages, tuple(answers), None, "")


def _distinct(questions: Iterable[Question]) -> list[Question]:
    """The same question asked again (its id is a hash) gets an id of its own, so that none is lost."""
    seen: dict[str, int] = {}
    result = []
    for question in questions:
        again = seen.get(question.id, 0)
        seen[question.id] = again + 1
        result.append(question._replace(id=make_id(question.id, again)) if again else question)
    return result


def _spread(questions: list[Question], limit: int, seed: int) -> list[Question]:
    """`limit` questions, one of each group in turn, drawn by hash; in their first order."""
    groups: dict[str, list[tuple[bytes, int]]] = {}
    for place, question in enumerate(questions):
        draw = hashlib.blake2b(f"{seed}\0{question.id}".encode(), digest_size=8).digest()
        groups.setdefault(question.group, []).append((draw, place))
    # Rank within the group first: the first of every group, then the second of every group ...
    ranked = [(rank, draw, place) for members in groups.values() for rank, (draw, place) in enumerate(sorted(members))]
    chosen = sorted(place for _, _, place in sorted(ranked)[:limit])
    return [questions[place] for place in chosen]
