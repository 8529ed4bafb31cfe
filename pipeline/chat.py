"""`seqkd chat`: talk to the student of a run in the terminal, with the teacher's answers beside if it is local.

Each model is asked as in training and evaluation: the student without a system prompt, the teacher with its own. On a
terminal answers appear as they are written, in two columns where there is room; from a pipe each line is a question,
and answers are plain lines.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline import flow
from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.recipe import Recipe
from pipeline.records import Message
from pipeline.runs import Run
from pipeline.show import printable
from pipeline.stages import collect
from pipeline.teachers import local, local_teacher_folder
from pipeline.teachers.local import Loaded

TWO_COLUMNS = 100
"""Columns of a terminal from which two answers stand side by side."""


@dataclass
class Speaker:
    """A model and what was said to and by it so far."""

    name: str
    loaded: Loaded
    system: list[Message]
    turns: list[Message] = field(default_factory=list)


def chat(run: Run, *, teacher: bool, max_tokens: int, temperature: float) -> None:
    """Ask and answer until the input ends. Raises UserError if the student is not trained, or there is no local
    teacher where one is asked for."""
    speakers = open_speakers(run, teacher)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        say("/reset forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer.")
    told = False
    for number, question in enumerate(questions(terminal)):
        if question == "/reset":
            for speaker in speakers:
                speaker.turns.clear()
            continue
        put = [ask(speaker, question, max_tokens) for speaker in speakers]
        if any(dropped for dropped, _ in put) and not told:
            told = True
            say("(what was said does not fit into the model's context any more: the oldest turns are dropped)")
        with screen(speakers, terminal) as shown:
            for speaker, (_, refused) in zip(speakers, put, strict=True):
                if refused:
                    end(speaker, shown, refused, terminal)
                else:
                    answer(speaker, shown, max_tokens, temperature, number, terminal)


def open_speakers(run: Run, teacher: bool) -> list[Speaker]:
    """The student, and the teacher if it is asked for."""
    trained = flow.read_manifest(run.path, "train")
    if not trained:
        raise UserError(f"run {run.name}: train is not complete, so there is nobody to talk to. `seqkd run` makes it.")
    trust = trained["basis"]["recipe"]["train"]["trust_remote_code"]
    speakers = []
    if teacher:
        recipe = recipe_of(run)
        one = next((one for one in recipe.collect.teachers if one.provider == "local"), None)
        if one is None:
            raise UserError(f"run {run.name}: it has no `local` teacher, so leave out --teacher.")
        system = collect.system_message(recipe)
        first = [{"role": "system", "content": system}] if system is not None else []
        loaded = local.load(local_teacher_folder(recipe, one), trust_remote_code=one.trust_remote_code)
        speakers.append(Speaker("teacher", loaded, first))
    student = local.load(run.path / "train" / "student", trust_remote_code=trust)
    return [Speaker("student", student, []), *speakers]


def recipe_of(run: Run) -> Recipe:
    """As much of a run's recipe as says who its teachers are and how they were asked."""
    manifest = flow.read_manifest(run.path, "collect")
    if not manifest:
        raise UserError(f"run {run.name}: collect is not complete, so leave out --teacher.")
    told = manifest["basis"]["recipe"]
    asked = {name: told["collect"][name] for name in ("teachers", "system", "file") if name in told["collect"]}
    return Recipe.model_validate({"domain": told["domain"], "seed": told["seed"], "collect": asked})


def questions(terminal: bool) -> Iterator[str]:
    """What is typed or piped in, up to its end or /quit, without empty lines."""
    if terminal:
        import readline  # noqa: F401  (input() then edits lines and remembers them)
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # of a line that was being typed
            print()
            continue
        if (not terminal and not line) or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


def ask(speaker: Speaker, question: str, max_tokens: int) -> tuple[bool, str | None]:
    """Put a question to a speaker, and forget its oldest turns until an answer has room in the context.

    Returns whether any were forgotten, and why the question was not put: it has no room even alone, so nothing is
    forgotten for it. None if it was."""
    limit = local.context_length(speaker.loaded)
    room = min(max_tokens, limit // 2)
    before = len(speaker.turns)
    turns = [*speaker.turns, {"role": "user", "content": question}]
    while True:
        (ids,) = local.encode(speaker.loaded.tokenizer, [[*speaker.system, *turns]], add_generation_prompt=True)
        if len(ids) + room <= limit or len(turns) == 1:
            break
        turns = turns[2:]
    if len(ids) >= limit:
        return False, (
            f"the question was not asked: it has {len(ids):,} tokens and the model's context is {limit:,}. Ask a "
            "shorter one; what was said before is kept"
        )
    speaker.turns = turns
    return len(turns) <= before, None


def answer(speaker: Speaker, shown: Any, max_tokens: int, temperature: float, seed: int, terminal: bool) -> None:
    """Have a speaker answer the last turn and show it; what was shown is its turn, whole or stopped by Ctrl-C."""
    pieces: list[str] = []

    def on_text(text: str) -> None:
        pieces.append(text)
        shown(speaker.name, printable(text))

    note = None
    try:
        (row,) = local.answer(
            speaker.loaded,
            [[*speaker.system, *speaker.turns]],
            temperature=temperature,
            top_p=1.0,
            max_tokens=max_tokens,
            seeds=[seed],
            on_text=on_text,
        )
        note = {"length": f"cut at {row['output_tokens']:,} tokens", "error": row.get("error")}.get(
            row["finish_reason"]
        )
    except KeyboardInterrupt:
        if not terminal:
            raise
        note = "stopped"
    end(speaker, shown, note, terminal)
    if pieces:
        speaker.turns.append({"role": "assistant", "content": "".join(pieces)})
    else:
        speaker.turns.pop()  # a question without an answer is no turn


def end(speaker: Speaker, shown: Any, note: str | None, terminal: bool) -> None:
    """End what a speaker says, with a remark if there is something to remark."""
    if note and terminal:
        shown(speaker.name, f" ({note})")
    shown(speaker.name, None)
    if note and not terminal:
        say(f"({speaker.name}: {note})")


@contextmanager
def screen(speakers: list[Speaker], terminal: bool) -> Iterator[Any]:
    """A function shown(name, text) that shows a piece of a speaker's answer; None is its end."""
    from rich.console import Console

    console = Console()
    if terminal and len(speakers) > 1 and console.width >= TWO_COLUMNS:
        with _columns(speakers, console) as shown:
            yield shown
        return
    begun = set()

    def lines(name: str, text: str | None) -> None:
        if name not in begun and len(speakers) > 1:
            print(f"{name}: ", end="")
        begun.add(name)
        print("\n" if text is None else text, end="", flush=True)

    yield lines


@contextmanager
def _columns(speakers: list[Speaker], console: Any) -> Iterator[Any]:
    """The same with a column for each speaker."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = {speaker.name: "" for speaker in speakers}

    def drawn() -> Table:
        # Not the whole width: what a terminal echoes for Ctrl-C would begin a new line and spoil the picture.
        table = Table(box=None, width=console.width - 4, padding=(0, 2, 0, 0))
        for name in texts:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in texts.values()))  # Text, not markup
        return table

    with Live(drawn(), console=console, auto_refresh=False) as live:

        def shown(name: str, text: str | None) -> None:
            texts[name] += text or ""
            live.update(drawn(), refresh=True)

        yield shown
