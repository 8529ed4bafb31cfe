"""Speed and memory of the filter stage: `python benchmarks/filter.py [ROWS]` (default 100,000).

Makes its own data (answers of about 150 words, one sample a prompt unless said), runs the stage from Parquet to
Parquet in a fresh process for each line, and prints rows a second and core, CPU seconds for 100,000 rows and the peak
of memory.
"""

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, make_id

ROOT = Path(__file__).resolve().parent.parent

CASES = [
    ("default rules", 1, 1.0, {}),
    ("default rules, half the rows", 1, 0.5, {}),
    ("default rules, four times the rows", 1, 4.0, {}),
    ("default rules, 4 samples, agreement", 4, 1.0, {"agreement": {"min_share": 0.25}}),
    ("default rules, pii: redact", 1, 1.0, {"pii": "redact"}),
    ("enabled: false (reading and writing only)", 1, 1.0, {"enabled": False}),
]


def sentences() -> list[str]:
    """Sentences of the labelled set's good answers, of those of its parts that do not grow, or the figures could not be
    compared; those left out that only make sense where they stand."""
    found = []
    for part in ("test", "fresh"):
        for line in (ROOT / "tests" / "filter_cases" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            odd = not row["text"].isascii() or re.search(r'["`<>{}\[|*#:;]|\bI\b|^You are|^Je ne', row["text"])
            if row["label"] == "good" and not odd:
                text = row["text"].replace("\n", " ")
                found += [part for part in text.split(". ") if 6 <= len(part.split()) <= 30]
    return sorted(set(found))


def rows(count: int, samples: int) -> Iterator[dict[str, Any]]:
    """Answers of about 150 words, each made of other sentences."""
    rng, pool = random.Random(0), sentences()
    for number in range(count):
        words, text = 0, []
        for sentence in rng.sample(pool, 30):
            text.append(sentence.rstrip(".") + (".\n\n" if rng.random() < 0.2 else "."))
            words += len(sentence.split())
            if words >= 150:
                break
        question = f"Can you explain what number {number // samples} on the list is about, and why it matters?"
        yield {
            "id": f"{number:020x}",
            "prompt_id": make_id(number // samples),
            "sample": number % samples,
            "messages": [{"role": "user", "content": question}],
            "text": " ".join(text),
            "finish_reason": "stop",
            "teacher": "benchmark",
            "provider": "local",
            "input_tokens": 20,
            "output_tokens": 200,
        }


def measure(folder: Path, section: dict[str, Any]) -> dict[str, float]:
    """Run the stage in this process."""
    from pipeline.stages import filter

    teacher = {"provider": "local", "model": "benchmark"}
    recipe = Recipe.model_validate({"domain": "benchmark", "collect": {"teachers": [teacher]}, "filter": section})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    counts = filter.run(recipe, {"completions": folder / "completions.parquet"}, folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = counts["outcomes"]["kept"]
    return {
        "rows": counts["rows_in"],
        "kept": kept,
        "wall": wall,
        "cpu": cpu,
        "peak": peak / 1024,
        "base": before / 1024,
    }


def main(count: int) -> None:
    print(f"{'case':44}{'rows':>9}{'kept':>9}{'rows/s/core':>13}{'CPU s/100k':>12}{'peak MiB':>10}{'of it base':>12}")
    for name, samples, times, section in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "completions.parquet"
            artifacts.write_table(path, COMPLETIONS, rows(int(count * times), samples))
            command = [sys.executable, __file__, "--measure", folder, json.dumps(section)]
            got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{name:44}{got['rows']:9,}{got['kept']:9,}{got['rows'] / got['cpu']:13,.0f}"
            f"{got['cpu'] / got['rows'] * 1e5:12.2f}{got['peak']:10.0f}{got['base']:12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
