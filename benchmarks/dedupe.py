"""Speed, memory, recall and precision of dedupe, beside other tools where they are installed.

    python benchmarks/dedupe.py [--rows 100000] [--shared 0] [--tools seqkd rensa datasketch gaoya datatrove]
        [--peers .envs/peers]

    python -m venv .envs/peers && .envs/peers/bin/pip install numpy pyarrow rensa==0.5.0 datasketch==2.0.0 \\
        gaoya==0.2.2 datatrove==0.10.1 regex tokenizers "xxhash<4"

makes `--rows` answers of 166 words (Zipf-distributed words; a fifth of the answers are copies of others with 1 to 30
words changed, so that their similarity spreads from 0.2 to 1), writes them as filter would, and runs each tool in a
process of its own, from Parquet to Parquet. With `--shared` so many of the words are the same in all answers. Recall
and precision are of the planted pairs against the Jaccard similarity of their lower-cased word 5-grams, counted with
Python sets; two answers that were not planted as a pair share no others to speak of. The other tools' figures leave out
writing the result. `--peers` is the environment that they are installed in. The floor is the compiled code that makes
the signatures, alone, in the same process.
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

WORDS = 166
THRESHOLD = 0.8


def make(folder: Path, rows: int, shared: int) -> None:
    """Write kept.parquet and pairs.npy: (copy, original, exact Jaccard similarity)."""
    from pipeline.artifacts import ROW_GROUP
    from pipeline.records import KEPT

    random = np.random.default_rng(5)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    vocabulary = list({"".join(random.choice(letters, random.integers(2, 10))) for _ in range(60_000)})
    vocabulary.sort()
    weight = 1 / np.arange(3, len(vocabulary) + 3)
    edges = np.cumsum(weight / weight.sum())
    draw = lambda shape: np.searchsorted(edges, random.random(shape)).clip(0, len(vocabulary) - 1).astype(np.int32)  # noqa: E731
    dictionary = pa.array(vocabulary)
    passage = draw(shared)
    pairs: list[tuple[int, int, float]] = []
    with pq.ParquetWriter(folder / "kept.parquet", KEPT, compression="zstd") as writer:
        for begin in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - begin)
            words = draw((count, WORDS))
            words[:, :shared] = passage
            originals = count - count // 5
            for row in range(originals, count):
                of = int(random.integers(0, originals))
                words[row] = words[of]
                places = random.integers(0, WORDS, random.integers(1, 31))
                words[row, places] = draw(len(places))
                a, b = (
                    {tuple(part) for part in np.lib.stride_tricks.sliding_window_view(words[r], 5).tolist()}
                    for r in (row, of)
                )
                pairs.append((begin + row, begin + of, len(a & b) / len(a | b)))
            flat = dictionary.take(pa.array(words.reshape(-1)))
            text = pc.binary_join(pa.ListArray.from_arrays(np.arange(0, count * WORDS + 1, WORDS, np.int32), flat), " ")
            number = pa.array(np.arange(begin, begin + count)).cast(pa.string())
            ids = pc.utf8_lpad(number, 20, "0")
            role = pa.array(["user"] * count)
            content = pc.binary_join_element_wise("Write down number", number, "of the texts, please.", " ")
            turns = pa.ListArray.from_arrays(
                np.arange(count + 1, dtype=np.int32), pa.StructArray.from_arrays([role, content], ["role", "content"])
            )
            columns: dict[str, Any] = {"id": ids, "prompt_id": ids, "messages": turns, "text": text}
            columns["sample"] = pa.array(np.zeros(count, np.int32))
            columns["agreement"] = pa.array(np.full(count, 1.0))
            columns["finish_reason"], columns["teacher"] = pa.array(["stop"] * count), pa.array(["t"] * count)
            arrays = [columns.get(f.name, pa.nulls(count, f.type)) for f in KEPT]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=KEPT))
    np.save(folder / "pairs.npy", np.array(pairs))


def seqkd(folder: Path) -> set[int]:
    """The stage itself; what it dropped."""
    from pipeline.recipe import Recipe
    from pipeline.stages import dedupe

    recipe = Recipe.model_validate(
        {
            "domain": "benchmark",
            "collect": {"teachers": [{"provider": "local", "model": "none"}]},
            "dedupe": {"on": "completion", "near": {"threshold": THRESHOLD}},
        }
    )
    out = folder / "out"
    out.mkdir()
    print(dedupe.run(recipe, {"kept": folder / "kept.parquet"}, out), file=sys.stderr)
    ids = pq.read_table(out / "duplicates.parquet", columns=["id"]).column("id").to_pylist()
    return {int(name) for name in ids}


def _texts(folder: Path) -> Any:
    for batch in pq.ParquetFile(folder / "kept.parquet").iter_batches(columns=["text"]):
        yield from batch.column(0).to_pylist()


def _shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def rensa(folder: Path) -> set[int]:
    """rensa's RMinHash and LSH index; a row is dropped if the index proposes an earlier one."""
    import rensa as library

    index = library.RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=16)
    dropped = set()
    for row, text in enumerate(_texts(folder)):
        sketch = library.RMinHash(num_perm=128, seed=1)
        sketch.update(_shingles(text))
        if index.query(sketch):
            dropped.add(row)
        else:
            index.insert(row, sketch)
    return dropped


def datasketch(folder: Path) -> set[int]:
    """datasketch's MinHash and LSH index, in the same way."""
    import datasketch as library

    index = library.MinHashLSH(num_perm=128, params=(16, 8))
    dropped = set()
    for row, text in enumerate(_texts(folder)):
        sketch = library.MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in _shingles(text)])
        if index.query(sketch):
            dropped.add(row)
        else:
            index.insert(row, sketch)
    return dropped


def gaoya(folder: Path) -> set[int]:
    """gaoya's MinHash index of strings, which makes the shingles itself."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=THRESHOLD, num_bands=16, band_size=8, num_hashes=128, analyzer="word",
        lowercase=True, ngram_range=(5, 5),
    )  # fmt: skip
    dropped = set()
    for row, text in enumerate(_texts(folder)):
        if index.query(text):
            dropped.add(row)
        else:
            index.insert_document(row, text)
    return dropped


def datatrove(folder: Path) -> set[int]:
    """datatrove's MinHash steps one after the other in this process, without its executor: signatures, buckets,
    clusters. Words are split at white space and lower-cased, and nothing else is done to them, which is faster than its
    default (spaCy, and the removal of punctuation) and gives the shingles that the others have; files are read 1,000
    signatures at a time (default: 5)."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    plain = TextNormConfig(
        norm_whitespace=False, remove_punctuation=False, norm_unicode_diacritics=False, norm_numbers=False
    )
    config = minhash.MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8, norm_config=plain)
    signatures, met, groups = (str(folder / name) for name in ("signatures", "met", "groups"))
    documents = (Document(text=text, id=str(row)) for row, text in enumerate(_texts(folder)))
    minhash.MinhashDedupSignature(signatures, config, Words()).run(documents)
    buckets = minhash.MinhashDedupBuckets(signatures, met, config=config, lines_to_buffer=1000)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    minhash.MinhashDedupCluster(met, groups, config, lines_to_buffer=1000).run(None, 0, 1)
    return set(np.fromfile(Path(groups) / "000000.remove", "<u4").tolist())


def floor(folder: Path) -> float:
    """CPU seconds of the signatures alone."""
    from pipeline import near, near_compiled

    total = 0.0
    for batch in pq.ParquetFile(folder / "kept.parquet").iter_batches(columns=["text"], batch_size=16_384):
        clock = time.process_time()
        near_compiled.sketch(batch.column(0), near.scheme(THRESHOLD))
        total += time.process_time() - clock
    return total


TOOLS = {"seqkd": seqkd, "rensa": rensa, "datasketch": datasketch, "gaoya": gaoya, "datatrove": datatrove}


def measure(tool: str, folder: Path) -> dict[str, float]:
    """Run one tool in this process and say what it took and found."""
    if tool == "seqkd":  # compile before the clock starts: it is done once on a machine
        from pipeline import near, near_compiled

        texts = pa.array(["a b c d e f g", "a b c d e f h"] * 40)
        met = near_compiled.sketch(texts, near.scheme(THRESHOLD))
        sets = near_compiled.shingle_sets(texts, near.word_table(), near.SHINGLE)
        buckets = near.buckets(met.keys, np.arange(len(texts)))
        near.loop(near.components, True, len(texts), buckets.members, buckets.starts)
        none = np.empty(0, np.int64)
        order = np.arange(len(texts))
        near.loop(near.choose, True, order, 0, *buckets, *sets, none.astype(np.uint64), none, THRESHOLD)
    base = resource.getrusage(resource.RUSAGE_SELF)
    clock = time.perf_counter()
    dropped = TOOLS[tool](folder)
    wall = time.perf_counter() - clock
    used = resource.getrusage(resource.RUSAGE_SELF)
    pairs = np.load(folder / "pairs.npy")
    similar = pairs[:, 2] >= THRESHOLD
    # A pair is caught if one of the two is dropped. Precision: of the copies that were dropped, how many are similar to
    # something; an original may be dropped too, as similar to its copy.
    caught = np.array([int(copy) in dropped or int(of) in dropped for copy, of, _ in pairs])
    really: set[int] = set()
    for copy, of, _ in pairs[similar]:
        really |= {int(copy), int(of)}
    return {
        "cpu": used.ru_utime + used.ru_stime - base.ru_utime - base.ru_stime,
        "wall": wall,
        "memory": used.ru_maxrss / 1024,
        "recall": float(caught[similar].mean()),
        "precision": len(dropped & really) / max(1, len(dropped)),
        "floor": floor(folder) if tool == "seqkd" else 0.0,
    }


def main() -> None:
    """Make the data, run each tool in a child process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shared", type=int, default=0, help="words that are the same in all answers")
    parser.add_argument("--tools", nargs="*", choices=sorted(TOOLS), default=list(TOOLS))
    parser.add_argument("--peers", type=Path, help="a virtual environment with the other tools")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), arguments.rows, arguments.shared)
        size = (Path(name) / "kept.parquet").stat().st_size / 2**20
        print(f"{arguments.rows:,} answers of {WORDS} words, {size:,.0f} MiB of Parquet, threshold {THRESHOLD}\n")
        print(f"{'tool':12}{'CPU s':>9}{'wall s':>9}{'peak MiB':>10}{'recall':>9}{'precision':>11}")
        for tool in arguments.tools:
            python = arguments.peers / "bin" / "python" if arguments.peers and tool != "seqkd" else sys.executable
            command = [str(python), __file__, "--measure", tool, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = done.stderr.strip().splitlines()[-1]
                print(f"{tool:12}{'-':>9}  {reason}")
                continue
            found = json.loads(done.stdout)
            print(
                f"{tool:12}{found['cpu']:9.2f}{found['wall']:9.2f}{found['memory']:10,.0f}"
                f"{found['recall']:9.4f}{found['precision']:11.4f}",
                flush=True,
            )
            if found["floor"]:
                each, times = found["floor"] / arguments.rows * 1e6, found["cpu"] / found["floor"]
                print(f"{'':12}{found['floor']:9.2f}  signing alone: {each:.1f} microseconds a text, 1/{times:.1f}")


if __name__ == "__main__":
    main()
