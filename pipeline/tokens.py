"""Training rows as token ids and labels, through the student's own chat template.

A label is the token itself where it carries loss and IGNORED where it does not. The end of a turn is a part of what the
assistant says: a template that does not put it there is refused, for its student would never learn to stop.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.teachers.local import common_prefix, encode

IGNORED = -100

# For a base model, which comes without a chat template. The end of turn and its line are inside the generation markers,
# so that TRL's own assistant_only_loss agrees with ours. A role and its text have lines of their own: a word fuses with
# a blank.
PLAIN = (
    "{%- for message in messages -%}"
    "{{- message.role + ':\\n' -}}"
    "{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- message.content + eos_token + '\\n' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message.content + eos_token + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant:\\n' -}}{%- endif -%}"
)


class Tokens(NamedTuple):
    """Rows that can be trained on."""

    rows: list[dict[str, list[int]]]  # {"input_ids", "labels"}, both of one length
    source: list[int]  # for each, the number of the row it was made from
    start: list[int]  # for each, where its completion begins
    dropped: int  # rows that are not there because they were too long
    cut: int  # rows that lost their end


def chat_template(wanted: str) -> str:
    """The chat template that train.chat_template names: `plain`, or what a file holds. Raises UserError."""
    if wanted == "plain":
        return PLAIN
    try:
        return Path(wanted).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"train.chat_template: {wanted}: cannot be read ({error}). Name a file, or `plain`.") from None


def tokenize(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    limit: int | None = None,
    too_long: str = "cut",
    loss_on: str = "completion",
    whole: bool = False,
) -> Tokens:
    """Rows {"prompt": messages, "completion": messages} as input_ids and labels.

    The same token ids as TRL makes of the conversational form, but in one pass, and with control tokens in a message
    encoded as text. A row of more than `limit` tokens is cut at its end, dropped, or an error, as `too_long` says; one
    that is cut within its completion has no end of turn, so it does not teach to stop early, and one without any label
    left is dropped. `loss_on`: completion, or assistant for what the assistant said in the prompt too; `whole` puts the
    loss on every token.

    Raises UserError if a turn of the assistant does not end in the tokenizer's end-of-turn token, if the template
    changes earlier turns when a conversation goes on (with loss_on assistant), or for a row that is too long.
    """
    prompts = encode(tokenizer, [row["prompt"] for row in rows], add_generation_prompt=True)
    turns = encode(tokenizer, [[*row["prompt"], *row["completion"]] for row in rows], add_generation_prompt=False)
    earlier = _earlier_turns(tokenizer, rows, turns) if loss_on == "assistant" else {}
    made = Tokens([], [], [], 0, 0)
    dropped = cut = 0
    for number, (prompt, ids) in enumerate(zip(prompts, turns, strict=True)):
        start = common_prefix(prompt, ids)
        spans = [*earlier.get(number, []), (start, len(ids))]
        for begin, end in spans:
            if tokenizer.eos_token_id is None or tokenizer.eos_token_id not in ids[begin:end]:
                raise UserError(
                    "the student would never learn to stop: its chat template does not put the tokenizer's end-of-turn "
                    f"token ({tokenizer.eos_token!r}) after an answer. Set eos_token to the token that ends a turn, in "
                    "the student's tokenizer_config.json, or mend its chat_template.jinja."
                )
        labels = list(ids) if whole else [IGNORED] * len(ids)
        for begin, end in spans:
            labels[begin:end] = ids[begin:end]
        if limit is not None and len(ids) > limit:
            if too_long == "error":
                raise UserError(
                    f"row {rows[number].get('id', number)} has {len(ids):,} tokens, and only {limit:,} fit "
                    "(train.sft.max_length, or the student's context). Raise max_length, or set train.too_long to cut "
                    "or drop."
                )
            ids, labels = ids[:limit], labels[:limit]
            if too_long == "drop" or (whole and start >= limit) or all(label == IGNORED for label in labels):
                dropped += 1
                continue
            cut += 1
        made.rows.append({"input_ids": ids, "labels": labels})
        made.source.append(number)
        made.start.append(start)
    return made._replace(dropped=dropped, cut=cut)


def _earlier_turns(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[int]]
) -> dict[int, list[tuple[int, int]]]:
    """Row number -> where in its tokens what the assistant said in the prompt begins and ends."""
    places = [
        (number, turn)
        for number, row in enumerate(rows)
        for turn, message in enumerate(row["prompt"])
        if message["role"] == "assistant"
    ]
    before = encode(tokenizer, [rows[number]["prompt"][:turn] for number, turn in places], add_generation_prompt=True)
    after = encode(
        tokenizer, [rows[number]["prompt"][: turn + 1] for number, turn in places], add_generation_prompt=False
    )
    spans: dict[int, list[tuple[int, int]]] = {}
    for (number, _), asked, said in zip(places, before, after, strict=True):
        ids = turns[number]
        if common_prefix(said, ids) < len(said):
            raise UserError(
                "train.loss_on: assistant does not go with this student: its chat template writes an earlier turn in "
                "another way once the conversation goes on. Use loss_on: completion, or another chat template."
            )
        spans.setdefault(number, []).append((common_prefix(asked, ids), len(said)))
    return spans
