"""The rules on answers that people labelled, which are not in this repository: `python benchmarks/refusals.py WHEEL`.

WHEEL: that of PyRIT 1.1.0 (MIT), which ships them: `pip download --no-deps pyrit==1.1.0`. Nothing of it is installed.
"""

import csv
import io
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator

from pipeline.recipe import Filter
from pipeline.rules import RULES, Answer

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


def main(path: str) -> None:
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
    main(sys.argv[1])
