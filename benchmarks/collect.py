"""Measure the collect stage against a teacher on this machine and print a table.

    .venv/bin/python benchmarks/collect.py [cpu] [limit] [faults] [kill] [budget] [memory] [file]      (none: all)
    .venv/bin/python benchmarks/collect.py kill=40 memory=1000000     (40 times in place of 200; so many prompts)

Every run is a process of its own, and so is the server; CPU seconds are those of the client alone. A figure of CPU is
the difference between a long and a short run, so that imports and start-up are not in it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pipeline import artifacts  # noqa: E402
from pipeline.records import PROMPTS, facets_of, make_id  # noqa: E402
from teacher_server import FAULTS, running  # noqa: E402

DRIVER = """
import json, resource, sys, time
from pathlib import Path
from pipeline.recipe import Recipe
from pipeline.stages import collect
from pipeline.teachers import provider_of
recipe = Recipe.model_validate(json.loads(sys.argv[1]))
out = Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
if recipe.collect.teachers:
    provider_of(recipe.collect.teachers[0]).connect(recipe.collect.teachers[0], None)
    import aiohttp
cpu, wall = time.process_time(), time.monotonic()
counts = collect.run(recipe, {"prompts": Path(sys.argv[2]), "file": Path(sys.argv[2])}, out)
told = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
print(json.dumps(counts | told | {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""

# The least that can be done: the same requests with plain aiohttp, 256 workers, each body committed to SQLite (WAL,
# synchronous=FULL, 64 a transaction) and nothing else: no intent, pace, retry, budget, parsing or table.
BARE = """
import asyncio, json, sqlite3, sys, time
import aiohttp
import pyarrow.parquet as pq
url, data, store = sys.argv[1:]
chats = pq.read_table(data, columns=["messages"])["messages"].to_pylist()
cpu = time.process_time()
db = sqlite3.connect(store, isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA synchronous = FULL")
db.execute("CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB)")
got = []

def commit():
    db.execute("BEGIN")
    db.executemany("INSERT INTO bodies VALUES (?, ?)", got)
    db.execute("COMMIT")
    got.clear()

async def work(client, rows):
    for number, chat in rows:
        body = json.dumps({"model": "m", "messages": chat, "max_completion_tokens": 512}).encode()
        async with client.post(url + "/chat/completions", data=body) as response:
            got.append((number, await response.read()))
        if len(got) == 64:
            commit()

async def main():
    rows = iter(enumerate(chats))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(work(client, rows) for _ in range(256)))
    commit()

asyncio.run(main())
print(json.dumps({"cpu": time.process_time() - cpu}))
"""

rows: list[tuple[str, str, str]] = []


def report(what: str, measured: str, wanted: str = "") -> None:
    """A row of the table."""
    rows.append((what, measured, wanted))
    print(f"{what:<62} {measured:<40} {wanted}", flush=True)


def prompts(folder: Path, count: int) -> Path:
    """A table of prompts of about 240 characters."""
    path = folder / f"prompts-{count}.parquet"
    if not path.exists():
        chats = ([{"role": "user", "content": f"Who is number {i}? " + "word " * 45}] for i in range(count))
        rest = {"domain": "d", "method": "file", "template": None, "facets": facets_of()}
        made = (rest | {"id": make_id("prompt", "d", chat), "messages": chat} for chat in chats)
        artifacts.write_table(path, PROMPTS, made)
    return path


def command(folder: Path, data: Path, url: str, name: str, collect: dict[str, Any], **teacher: Any) -> list[str]:
    """The command line of one run."""
    one = {"provider": "openai", "model": "m", "base_url": url} | teacher
    recipe = {"domain": "d", "collect": {"teachers": [one]} | collect}
    return [sys.executable, "-c", DRIVER, json.dumps(recipe), str(data), str(folder / "runs" / name / "out")]


def run(arguments: list[str], store: Path) -> dict[str, Any]:
    """Run to the end -> counts, CPU and wall seconds, peak memory."""
    environment = os.environ | {"SEQKD_DATA": str(store), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def answers_fit(out: Path) -> bool:
    """Whether every answer is to its own question."""
    return all(
        row["text"] == "echo: " + row["messages"][-1]["content"]
        for row in artifacts.read_rows(out / "completions.parquet", ["text", "messages"])
    )


def cpu(folder: Path) -> None:
    """CPU a request at 256 in flight, and time against what latency allows."""
    latency, few, many = 0.5, 1_000, 9_000
    told, bare = {}, {}
    with running(latency_s=latency) as server:
        for count in (few, many):
            data = prompts(folder, count)
            arguments = command(folder, data, server.url, f"cpu-{count}", {}, max_in_flight=256)
            told[count] = run(arguments, folder / f"store-cpu-{count}")
            least = [sys.executable, "-c", BARE, server.url, str(data), str(folder / f"bare-{count}.sqlite")]
            bare[count] = run(least, folder)
    spent = (told[many]["cpu"] - told[few]["cpu"]) / (many - few) * 1e3
    least_spent = (bare[many]["cpu"] - bare[few]["cpu"]) / (many - few) * 1e3
    report("CPU a request, 256 in flight, all of the stage", f"{spent:.2f} ms", "at most 0.4")
    report("    of plain aiohttp with a durable store, in the same run", f"{least_spent:.2f} ms", "0.2")
    report("    ratio", f"{spent / least_spent:.2f}", "at most 2")
    ideal = (many - few) * latency / 256
    report(
        "time, as a multiple of N x latency / 256",
        f"{(told[many]['wall'] - told[few]['wall']) / ideal:.2f}",
        "at most 1.3",
    )
    again = run(arguments, folder / f"store-cpu-{many}")
    assert again["usage"]["from_store"] == many
    report(f"the same {many:,} again, from the store", f"{again['cpu'] / many * 1e3:.2f} ms CPU a row, 0 requests")


def limit(folder: Path) -> None:
    """A limit of 3,000 requests a minute that the headers tell."""
    with running(latency_s=0.2, per_minute=3000) as server:
        data = prompts(folder, 9_000)
        process = subprocess.Popen(
            command(folder, data, server.url, "limit", {}),
            env=os.environ | {"SEQKD_DATA": str(folder / "store-limit"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process.wait()
        stats = server.stats()
        minutes = (stats["last_arrival_s"] - stats["first_arrival_s"]) / 60
    report("3,000 requests a minute: used", f"{stats['requests'] / minutes / 3000:.1%}", "at least 95%")
    report("    most in any 60 s, and how many got 429", f"{stats['most_in_60_s']:,}, {stats['limited']}", "3,000, 0")


def faults(folder: Path) -> None:
    """5% of requests meet a fault."""
    count = 4_000
    with running(latency_s=0.1, faults=list(FAULTS), fault_share=0.05) as server:
        collect = {"timeout_s": 5, "deadline_s": 120}
        told = run(command(folder, prompts(folder, count), server.url, "faults", collect), folder / "store-faults")
        stats = server.stats()
    met = sum(stats["faults"].values())
    fit = answers_fit(folder / "runs" / "faults" / "out")
    report(
        f"{met} faults of {len(stats['faults'])} kinds in {count:,} requests: rows lost",
        str(told["outcomes"]["failed"]),
        "0",
    )
    report("    every answer on its own row", "yes" if fit else "NO", "yes")


def kill(folder: Path, times: int = 200) -> None:
    """kill -9 at random moments."""
    count, in_flight, draw = 32_000, 64, random.Random(1)  # enough to be killed 200 times in
    environment = os.environ | {
        "SEQKD_DATA": str(folder / "store-kill"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    data, killed = prompts(folder, count), 0
    with running(latency_s=0.05) as server:
        arguments = command(folder, data, server.url, "kill", {}, max_in_flight=in_flight)
        while killed < times:
            process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before, end = server.stats()["requests"], time.monotonic() + 60
            while server.stats()["requests"] == before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            killed += 1
            if process.wait() == 0:
                break
        run(arguments, folder / "store-kill")
        stats = server.stats()
        run(command(folder, data, server.url, "whole", {}, max_in_flight=in_flight), folder / "store-whole")
    same = all(
        (folder / "runs" / "kill" / "out" / table).read_bytes()
        == (folder / "runs" / "whole" / "out" / table).read_bytes()
        for table in ("completions.parquet", "failures.parquet")
    )
    report(f"kill -9 {killed} times: requests asked again", f"{stats['repeats']:,}", f"at most {killed * in_flight:,}")
    report("    the tables are the bytes of an unbroken run", "yes" if same else "NO", "yes")


def budget(folder: Path) -> None:
    """The spend at any number in flight."""
    for in_flight in (1, 10, 100, 1000):
        with running(latency_s=0.05) as server:
            price = {"input": 10.0, "output": 100.0}
            collect = {"budget_usd": 1.0, "sampling": {"max_tokens": 20}}
            arguments = command(
                folder,
                prompts(folder, 4_000),
                server.url,
                f"budget-{in_flight}",
                collect,
                max_in_flight=in_flight,
                price=price,
            )
            told = run(arguments, folder / f"store-budget-{in_flight}")
        # What the server billed: every answered request.
        billed = told["usage"]["cost_usd"]
        asked = told["outcomes"]["completions"]
        report(f"budget of $1, {in_flight} in flight: spent", f"${billed:.4f} for {asked:,} answers", "at most $1")


def memory(folder: Path, most: int = 100_000) -> None:
    """Peak memory by the number of prompts."""
    for count in (10_000, most):
        with running(latency_s=0.0) as server:
            told = run(
                command(folder, prompts(folder, count), server.url, f"memory-{count}", {}),
                folder / f"store-memory-{count}",
            )
        report(
            f"{count:,} prompts: peak memory",
            f"{told['mb']:.0f} MB in {told['wall']:.0f} s, {told['cpu']:.0f} s CPU",
            "under 600 at 1,000,000",
        )
        shutil.rmtree(folder / f"store-memory-{count}")


def file(folder: Path) -> None:
    """A million answers that somebody has already."""
    path = folder / "answers.jsonl"
    with path.open("w") as out:
        for i in range(1_000_000):
            out.write(
                json.dumps({"prompt": f"Who is number {i}? " + "word " * 30, "completion": "An answer " * 20}) + "\n"
            )
    recipe = {"domain": "d", "collect": {"file": str(path)}}
    told = run(
        [sys.executable, "-c", DRIVER, json.dumps(recipe), str(path), str(folder / "runs" / "file" / "out")],
        folder / "store-file",
    )
    report("a million rows from a file", f"{told['cpu']:.0f} s CPU, {told['wall']:.0f} s, {told['mb']:.0f} MB", "60 s")


ALL: dict[str, Callable[[Path], None]] = {
    "cpu": cpu, "limit": limit, "faults": faults, "kill": kill, "budget": budget, "memory": memory, "file": file,
}  # fmt: skip

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(ALL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        print(f"{'what':<62} {'measured':<40} wanted")
        for name in chosen:
            part = Path(made) / name
            part.mkdir()
            word, _, times = name.partition("=")
            if times:
                {"kill": kill, "memory": memory}[word](part, int(times))
            else:
                ALL[word](part)
            shutil.rmtree(part, ignore_errors=True)
