"""Write docs/filters.md from the rules and the labelled set: `python docs/filters.py`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import rules
from pipeline.recipe import Filter

ROOT = Path(__file__).resolve().parent.parent

REFUSALS = ("refusal", "partial_refusal", "deflection")

OPENING = """\
# Filters

What the filter stage looks for, in the order in which it decides. An answer that breaks several rules is in
rejected.parquet with all of them (`reasons`); `reason` is the first. Every rule has a field in the recipe's `filter:`
section; `seqkd show RUN filter --reason REASON --sample 5` shows what a rule rejected in a run.

The rules read prompt and answer and nothing else: no model is asked. They are made for what chat models write, where
the usual filters for web text (short lines, bullet points, no full stop at the end) reject good answers.

This page is written by `python docs/filters.py` from the rules themselves and tests/filter_cases.
"""


def cases(part: str) -> list[dict[str, Any]]:
    """The rows of a part of the labelled set: label, prompt, text and sometimes finish_reason."""
    path = ROOT / "tests" / "filter_cases" / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reasons(prompt: str, text: str, finish_reason: str = "stop", config: Filter | None = None) -> list[str]:
    """All reasons that the rules (by default the default ones) find against an answer."""
    answer, config = rules.look(prompt, text, finish_reason), config or Filter()
    return [reason for rule in rules.RULES if (reason := rule.check(answer, config))]


def measured(part: str) -> dict[str, tuple[int, int]]:
    """For each label of a part, how many rows the default rules reject, and how many there are; and the same for
    `refusals` (full, partial and deflections, rejected as one of these) and `false refusals` (good rows so
    rejected)."""
    total: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for row in cases(part):
        found = reasons(row["prompt"], row["text"], row.get("finish_reason", "stop"))
        refused = any(reason in REFUSALS for reason in found)
        total[row["label"]] += 1
        caught[row["label"]] += bool(found)
        if row["label"] in REFUSALS or row["label"] == "good":
            name = "false refusals" if row["label"] == "good" else "refusals"
            total[name] += 1
            caught[name] += refused
    return {name: (caught[name], total[name]) for name in total}


def quoted(text: str) -> str:
    """An example as an indented block, cut where it is long."""
    text = text if len(text) <= 160 else f"{text[:120].rstrip()} [... {len(text):,} characters]"
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def page() -> str:
    """docs/filters.md."""
    defaults = Filter()
    out = [OPENING]
    for rule in rules.RULES:
        out.append(f"## {', '.join(f'`{reason}`' for reason in rule.reasons)}\n")
        out.append(" ".join((rule.check.__doc__ or "").split()) + "\n")
        switches = [f"`filter.{field}` (default: {json.dumps(getattr(defaults, field))})" for field in rule.fields]
        out.append(f"Recipe: {', '.join(switches) or 'always on'}\n")
        for word, example in (("Catches", rule.catches), ("Lets pass", rule.passes)):
            ended = f" (finish_reason: {example.finish_reason})" if example.finish_reason != "stop" else ""
            share = f" ({example.agreement:.0%} of the samples say so)" if example.agreement is not None else ""
            out.append(
                f"{word}{ended}{share}:\n\n{quoted(f'Prompt: {example.prompt}')}\n{quoted(f'Answer: {example.text}')}\n"
            )
    out.append("## Measured\n")
    out.append(
        "On the labelled set in tests/filter_cases, written for the purpose: `tune` was looked at while the rules\n"
        "were written, `test` was not. Rows rejected by the default rules, of all rows with that label:\n"
    )
    tune, test = measured("tune"), measured("test")
    out.append("| label | tune | test |\n| --- | --- | --- |")
    names = {"good": "good answers rejected", "refusals": "refusals of any kind rejected as refusals"}
    names["false refusals"] = "good answers rejected as refusals"
    for name in sorted(tune, key=lambda name: (name not in names, name)):
        cells = [f"{caught} of {total}" for caught, total in (tune[name], test[name])]
        out.append(f"| {names.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "filters.md").write_text(page(), encoding="utf-8", newline="\n")
