"""The rules on answers that people labelled, which are not in this repository: `python benchmarks/refusals.py PATH`.

PATH: the wheel of PyRIT 1.1.0 (MIT), which ships them: `pip download --no-deps pyrit==1.1.0`; it is not installed.
Or a folder with XSTest's answers (CC BY 4.0; model_completions of the repository paul-rottger/exaggerated-safety),
ChatGPT's (data/all_hand_labeled.json of the repository maxwellreuter/chatgpt-refusals), or the answers of a model to
AlpacaEval's everyday prompts (results/MODEL of the repository tatsu-lab/alpaca_eval), which nobody labelled: what is
rejected of them is to be read.
"""

import csv
import io
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.answers import Answer
from pipeline.premises import premise_denial
from pipeline.recipe import Filter
from pipeline.rules import RULES

FOLDER = "pyrit/datasets/scorer_evals/"
REFUSALS = {"refusal", "partial_refusal", "deflection"}

OFF_TOPIC = {
    "refusal.csv": range(58, 68),
    "refusal_extra.csv": range(32, 62),
}
"""Rows that are labelled refusals because they answer another question than the one that was asked. No rule here
compares what was asked with what was said, so they are counted apart."""


def rows(wheel: zipfile.ZipFile, name: str) -> Iterator[tuple[str, str, bool]]:
    """(prompt, answer, label) of a file of the wheel."""
    text = wheel.read(FOLDER + name).decode("utf-8")
    lines = io.StringIO("".join(line for line in text.splitlines(keepends=True) if not line.startswith("# ")))
    for row in csv.DictReader(lines):
        yield row["objective"], row["assistant_response"], row["human_score"].strip() == "1"


def reasons(prompt: str, text: str) -> list[str]:
    """What the default rules find."""
    return [reason for rule in RULES if (reason := rule.check(Answer(prompt, text), Filter()))]


def denies(prompt: str, text: str) -> bool:
    """Whether an answer denies what the prompt takes for granted, which is rejected with filter.premise_denials."""
    return premise_denial(Answer(prompt, text), Filter(premise_denials=True)) is not None


def by_label(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """One line for each label of (prompt, answer, label)."""
    counts: Counter[tuple[str, str]] = Counter()
    first: Counter[tuple[str, str]] = Counter()
    for prompt, text, label in rows:
        found = reasons(prompt, text)
        counts[label, "rows"] += 1
        refused = bool(REFUSALS.intersection(found))
        counts[label, "refusal"] += refused
        counts[label, "or denial"] += refused or denies(prompt, text)
        counts[label, "any"] += bool(found)
        first.update((label, reason) for reason in found[:1])
    for label in sorted({label for label, _ in counts}):
        total, refused, denied, rejected = (counts[label, name] for name in ("rows", "refusal", "or denial", "any"))
        by = ", ".join(f"{reason} {many}" for (of, reason), many in first.most_common() if of == label)
        print(f"{path.stem[-28:]:30}{label:20}{total:6}{refused:21}{denied:18}{rejected:13}  {by}")


def folder(path: Path) -> None:
    """What people labelled in XSTest (Röttger et al., 2024, https://arxiv.org/abs/2308.01263) and ChatGPT's answers of
    Reuter and Schulze (2023, https://arxiv.org/abs/2306.03423)."""
    print(
        "file                          labelled              rows  rejected as refusal  or premise_denial  by any rule"
    )
    for name in sorted(path.glob("*.csv")):
        with name.open(encoding="utf-8", newline="") as lines:
            by_label(name, ((row["prompt"], row["completion"], row["final_label"]) for row in csv.DictReader(lines)))
    for name in sorted(path.glob("*.json")):
        rows = json.loads(name.read_text(encoding="utf-8"))
        by_label(name, map(of_json, rows))


def of_json(row: dict[str, str]) -> tuple[str, str, str]:
    """(prompt, answer, label)."""
    if "instruction" in row:
        return row["instruction"], row["output"], row.get("generator", "model")
    return row["prompt"], row["response"], row.get("tone", "model")


def pyrit(path: Path) -> None:
    counts: Counter[str] = Counter()
    kept_from: Counter[str] = Counter()
    with zipfile.ZipFile(path) as wheel:
        for name, off_topic in OFF_TOPIC.items():
            for number, (prompt, text, refused) in enumerate(rows(wheel, f"refusal_scorer/{name}")):
                label = "off topic" if number in off_topic else "refusal" if refused else "answer"
                found = reasons(prompt, text)
                counts[label] += 1
                counts[f"{label}: rejected"] += bool(found)
                counts[f"{label}: as refusal"] += bool(REFUSALS.intersection(found))
        seen: set[str] = set()
        for name in sorted(wheel.namelist()):
            if not name.startswith(f"{FOLDER}objective/") or not name.endswith(".csv"):
                continue
            for prompt, text, achieved in rows(wheel, name.removeprefix(FOLDER)):
                if achieved and text not in seen:
                    seen.add(text)
                    found = reasons(prompt, text)
                    counts["objective achieved"] += 1
                    counts["objective achieved: rejected"] += bool(found)
                    kept_from.update(found[:1])
    for label in ("refusal", "answer", "off topic"):
        rejected, as_refusal = counts[f"{label}: rejected"], counts[f"{label}: as refusal"]
        print(f"labelled {label:20}{counts[label]:5}  rejected as refusal {as_refusal:4}  by any rule {rejected:4}")
    total, rejected = counts["objective achieved"], counts["objective achieved: rejected"]
    print(f"objective achieved           {total:5}  by any rule {rejected:4}  {dict(kept_from)}")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    (folder if given.is_dir() else pyrit)(given)
