"""Answers that somebody has already, from a file: the fifth kind of teacher, which is never asked anything.

.jsonl, .csv, .parquet, or the folder of a saved Hugging Face data set (`save_to_disk`, or Parquet files), with
`prompt` and `completion`, `instruction` (and `input`) and `output`, or `messages`.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_batches
from pipeline.calls.reply import mend
from pipeline.errors import RecipeError, nearest, where
from pipeline.records import Message

PAIRS = {"prompt": ("completion", "response", "answer"), "instruction": ("output", "completion", "response")}
ROLES = ("system", "user", "assistant")
MAX_FIELD = 64 * 2**20


def answers(path: Path) -> Iterator[tuple[list[Message], str]]:
    """(the prompt's messages, the answer) of each row, in the file's order. An answer may be empty.

    Raises RecipeError (FILE:LINE: FIELD: what is wrong); in Parquet and data sets LINE is the number of the row.
    """
    for line, row in _rows(path):
        if not isinstance(row, dict):
            raise RecipeError(f'{where(path, line)}: expected an object such as {{"prompt": ..., "completion": ...}}.')
        for asked, names in PAIRS.items():
            if row.get(asked) is not None:
                yield _pair(path, line, row, asked, names)
                break
        else:
            if row.get("messages") is None:
                near = "".join(nearest(name, [*PAIRS, "messages"]) for name in list(row)[:1])
                raise RecipeError(
                    f"{where(path, line)}: has none of `prompt` and `completion`, `instruction` and `output`, or "
                    f"`messages`.{near}"
                )
            turns = _turns(path, line, "messages", row["messages"])
            if turns[-1]["role"] != "assistant" or len(turns) < 2:
                raise RecipeError(f"{where(path, line, 'messages')}: ends without an answer of the assistant.")
            yield turns[:-1], turns[-1]["content"]


def _pair(path: Path, line: int, row: dict[str, Any], asked: str, names: tuple[str, ...]) -> tuple[list[Message], str]:
    answered = next((name for name in names if name in row), None)
    if answered is None:
        raise RecipeError(f"{where(path, line)}: has `{asked}` but no `{names[0]}`.{nearest(names[0], row)}")
    prompt, answer = row[asked], row[answered]
    if isinstance(prompt, list):
        messages = _turns(path, line, asked, prompt)
    else:
        text = _text(path, line, asked, prompt)
        if asked == "instruction" and row.get("input"):
            text = f"{text}\n\n{_text(path, line, 'input', row['input'])}"
        messages = [{"role": "user", "content": text}]
    if isinstance(answer, list):  # TRL's conversational form
        return messages, "\n\n".join(turn["content"] for turn in _turns(path, line, answered, answer))
    return messages, "" if answer is None else _text(path, line, answered, answer)


def _turns(path: Path, line: int, field: str, turns: Any) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise RecipeError(f'{where(path, line, field)}: expected a list of {{"role": ..., "content": ...}}.')
    messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise RecipeError(f"{where(path, line, f'{field}.{i}')}: expected a role of {', '.join(ROLES)}.")
        messages.append(
            {"role": turn["role"], "content": _text(path, line, f"{field}.{i}.content", turn.get("content"))}
        )
    return messages


def _text(path: Path, line: int, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{where(path, line, field)}: expected a text, found {type(value).__name__}.")
    return mend(value)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.is_dir():
        files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
        if not files:
            raise RecipeError(
                f"{path}: has no .parquet or .arrow files. Save a data set with `save_to_disk`, or name a file."
            )
        for file in files:
            yield from _columnar(file)
    elif path.suffix in (".parquet", ".arrow"):
        yield from _columnar(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _jsonl(path)
    elif path.suffix == ".csv":
        yield from _csv(path)
    else:
        raise RecipeError(f"{path}: is not a .jsonl, .csv or .parquet file, nor a data set's folder.")


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RecipeError(f"{where(path, number)}: is not a line of JSON: {error}.") from None
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise RecipeError(f"{where(path, reader.line_num)}: has more fields than the header.")
                yield reader.line_num, row
        except csv.Error as error:
            raise RecipeError(f"{where(path, reader.line_num)}: is not CSV: {error}.") from None
        except UnicodeDecodeError:
            raise RecipeError(
                f"{where(path, reader.line_num + 1)}: is not UTF-8 text. Save the file as UTF-8."
            ) from None


def _columnar(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in read_batches(path) if path.suffix == ".parquet" else _arrow(path):
            wanted = [n for n in batch.schema.names if n in {*PAIRS, "messages", "input", *sum(PAIRS.values(), ())}]
            for row in (batch.select(wanted) if wanted else batch).to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(f"{where(path, number or None)}: cannot be read: {error}.") from None


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)
