"""Time and memory of assemble, and how the memory grows with the rows.

    python benchmarks/assemble.py [--rows 100000 1000000]

makes rows of 166 words (a prompt of 24, an answer of 142, Zipf-distributed words) and writes them as dedupe and collect
would: of ten rows one is a second answer to an earlier prompt, and one has a prompt that is an earlier one with a word
changed. 500 prompts are an evaluation set. The stage runs in a process of its own for each size, with the split and the
random subset, from Parquet to Parquet. Peak memory is the process's, its libraries and the compiled code included;
before: what it had when the stage began. The last column is the growth of the peak from size to size, in bytes a row.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROMPT_WORDS, ANSWER_WORDS = 24, 142
ITEMS = 500


def make(folder: Path, rows: int) -> None:
    """Write kept.parquet, which serves as completions too, and items.jsonl, the evaluation set."""
    from pipeline.artifacts import ROW_GROUP
    from pipeline.records import KEPT

    random = np.random.default_rng(5)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    vocabulary = sorted({"".join(random.choice(letters, random.integers(2, 10))) for _ in range(60_000)})
    weight = 1 / np.arange(3, len(vocabulary) + 3)
    edges = np.cumsum(weight / weight.sum())
    draw = lambda *shape: np.searchsorted(edges, random.random(shape)).clip(0, len(vocabulary) - 1).astype(np.int32)  # noqa: E731
    dictionary = pa.array(vocabulary)

    def text(words: Any) -> Any:
        bounds = np.arange(0, words.size + 1, words.shape[1], np.int32)
        return pc.binary_join(pa.ListArray.from_arrays(bounds, dictionary.take(pa.array(words.reshape(-1)))), " ")

    ids = np.sort(random.integers(0, 1 << 62, rows))
    with pq.ParquetWriter(folder / "kept.parquet", KEPT, compression="zstd") as writer:
        for begin in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - begin)
            tenth = count // 10
            prompts, names = draw(count, PROMPT_WORDS), random.integers(0, 1 << 62, count)
            prompts[tenth : 3 * tenth] = np.tile(prompts[:tenth], (2, 1))
            names[tenth : 2 * tenth] = names[:tenth]
            prompts[2 * tenth : 3 * tenth, 0] = draw(tenth)
            turns = pa.StructArray.from_arrays([pa.array(["user"] * count), text(prompts)], ["role", "content"])
            columns: dict[str, Any] = {
                "id": pc.utf8_lpad(pa.array(ids[begin : begin + count]).cast(pa.string()), 20, "0"),
                "prompt_id": pc.utf8_lpad(pa.array(names).cast(pa.string()), 20, "0"),
                "messages": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), turns),
                "text": text(draw(count, ANSWER_WORDS)),
                "sample": pa.array(np.zeros(count, np.int32)),
                "agreement": pa.array(random.random(count)),
                "finish_reason": pa.array(["stop"] * count),
                "teacher": pa.array(["t"] * count),
            }
            arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in KEPT]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=KEPT))
            if not begin:
                asked = text(prompts[-ITEMS:]).to_pylist()
                lines = "".join(json.dumps({"question": words + "?"}) + "\n" for words in asked)
                (folder / "items.jsonl").write_text(lines, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Run the stage in this process and say what it took and gave."""
    from pipeline import near, near_compiled, overlap
    from pipeline.recipe import Recipe
    from pipeline.stages import assemble

    # Compile before the clock starts: it is done once on a machine.
    texts = pa.array(["a b c d e f g", "a b c d e f h"] * 40)
    met = near_compiled.sketch(texts, near.scheme(assemble.SPLIT_THRESHOLD))
    sets = near_compiled.shingle_sets(texts, near.word_table(), near.SHINGLE)
    members, starts = near.buckets(met.keys, np.arange(len(texts)))
    near.loop(near.components, True, len(texts), members, starts)
    near.loop(near.connect, True, len(texts), members, starts, *sets, assemble.SPLIT_THRESHOLD)
    overlap.find(overlap.index([overlap.Item("", "a b c d e f g h i")], 0.8), texts, True)
    recipe = Recipe.model_validate(
        {
            "domain": "benchmark",
            "collect": {"teachers": [{"provider": "local", "model": "none"}]},
            "assemble": {"evaluations": [str(folder / "items.jsonl")]},
            "train": {"baselines": ["random_subset"]},
        }
    )
    out = folder / "out"
    out.mkdir()
    base = resource.getrusage(resource.RUSAGE_SELF)
    clock = time.perf_counter()
    counts = assemble.run(recipe, {"kept": folder / "kept.parquet", "completions": folder / "kept.parquet"}, out)
    wall = time.perf_counter() - clock
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu": used.ru_utime + used.ru_stime - base.ru_utime - base.ru_stime,
        "wall": wall,
        "before": base.ru_maxrss * 1024,
        "peak": used.ru_maxrss * 1024,
        "counts": counts["outcomes"],
    }


def main() -> None:
    """For each size make the rows, run the stage in a child process, print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    titles = ("rows", "input MiB", "CPU s", "wall s", "before", "peak MiB", "bytes/row")
    print("".join(f"{title:>11}" for title in titles))
    last: tuple[int, int] | None = None
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), rows)
            command = [sys.executable, __file__, "--measure", name]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            size = (Path(name) / "kept.parquet").stat().st_size
        growth = f"{(found['peak'] - last[1]) / (rows - last[0]):11.0f}" if last else f"{'':11}"
        print(
            f"{rows:11,}{size / 2**20:11,.0f}{found['cpu']:11.1f}{found['wall']:11.1f}{found['before'] / 2**20:11,.0f}"
            f"{found['peak'] / 2**20:11,.0f}{growth}  {found['counts']}",
            flush=True,
        )
        last = rows, found["peak"]


if __name__ == "__main__":
    main()
