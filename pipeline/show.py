"""`seqkd show`: rows of a run in a terminal."""

from typing import Any

from pipeline import flow
from pipeline.errors import UserError, nearest
from pipeline.records import TABLES
from pipeline.runs import Run, open_run


def show(run: str, what: str | None, *, reason: str | None, sample: int, prompt: str | None) -> None:
    """Print rows of a run.

    what: a stage (all its tables), a table, or None for the last complete data stage. reason: only rows with it.
    sample: rows a table, evenly spread over it. prompt: instead, the life of the prompt with this id.
    Raises UserError for a name that is neither a stage nor a table, and for a stage that is not complete.
    """
    from rich.console import Console

    opened = open_run(run)
    console = Console()
    if prompt is not None:
        _print_rows(console, f"the life of prompt {prompt}", opened.trace(prompt).to_dict("records"))
        return
    for table in _tables(opened, what):
        frame = opened.table(table)
        if reason is not None:
            if "reason" not in frame:
                continue
            known = sorted(frame["reason"].dropna().unique())
            frame = frame[frame["reason"] == reason]
            if frame.empty:
                raise UserError(f"run {run}: {table} has no row with reason '{reason}'.{nearest(reason, known)}")
        step = max(1, len(frame) // sample)
        rows = frame.iloc[::step].head(sample).to_dict("records")
        _print_rows(console, f"{table}: {len(rows)} of {len(frame):,} rows", rows)


def _tables(run: Run, what: str | None) -> list[str]:
    """The names of the tables to show."""
    written = [name for name, (stage, _) in TABLES.items() if (manifest := flow.read_manifest(run.path, stage)) and
               f"{name}.parquet" in manifest["files"]]  # fmt: skip
    if what is None:
        return written
    if what in TABLES:
        return [what]
    if what in flow.STAGES:
        found = [name for name in written if TABLES[name][0] == what or (what, name) == ("dedupe", "kept")]
        if not found:
            raise UserError(f"run {run.name}: {what} is not complete, or writes no table.")
        return found
    raise UserError(f"'{what}' is neither a stage nor a table.{nearest(what, [*flow.STAGES, *TABLES])}")


def _print_rows(console: Any, title: str, rows: list[dict[str, Any]]) -> None:
    from rich.rule import Rule
    from rich.text import Text

    console.print(Rule(Text(title), align="left"))
    for row in rows:
        for key, value in row.items():
            if value is not None and not (isinstance(value, float) and value != value):
                # Text, not markup: what a model wrote must not be read as styles. Not broken into lines in a pipe.
                cell = Text.assemble((f"{key}: ", "bold cyan"), _readable(value))
                console.print(cell, soft_wrap=not console.is_terminal)
        console.print()


def _readable(value: Any) -> str:
    """A cell as text a person can read: messages as `role: content`, structs without their empty fields."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        value = "\n  ".join(f"{message['role']}: {message['content']}" for message in value)
    elif isinstance(value, dict):
        value = ", ".join(f"{key}={part}" for key, part in value.items() if part is not None)
    elif isinstance(value, float):
        value = f"{value:.4g}"
    text = printable(str(value))
    return text if len(text) <= 2000 else f"{text[:2000]} ... ({len(text):,} characters)"


def printable(text: str) -> str:
    """A text without what must not reach a terminal or a page: control characters, those that turn the direction of
    text, halves of a surrogate pair."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
