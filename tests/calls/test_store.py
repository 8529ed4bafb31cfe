"""The response store: what is committed stays, the first answer stays, money is accounted for."""

import asyncio
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calls import store as stores
from pipeline.calls.store import Fault, GroupCommit, Intent, Received, Settle, Store, new_id, request_key
from pipeline.errors import UserError


def received(key: bytes, body: bytes = b"{}", usd: float | None = None, keys: tuple[bytes, ...] = ()) -> Received:
    return Received(new_id(), "run", "openai", "m", b"{}", 200, body, usd, None, 1, keys or (key,))


def test_an_answer_is_there_after_it_was_committed_and_the_first_one_stays(tmp_path):
    key = request_key("openai", "", "{}", 0)
    with Store(tmp_path / "s.sqlite") as store:
        assert store.answers([key]) == {}
        store.commit([received(key, b"one")])
        store.commit([received(key, b"two")])
    with Store(tmp_path / "s.sqlite") as store:
        assert store.answers([key])[key].body == b"one"


def test_keys_differ_by_everything_that_determines_an_answer():
    request = '{"messages":[{"content":"x","role":"user"}],"temperature":0.5}'
    base = request_key("openai", "", request, 0)
    others = [
        request_key("vllm", "", request, 0),
        request_key("openai", "other", request, 0),
        request_key("openai", "", request.replace("0.5", "0.6"), 0),
        request_key("openai", "", request, 1),
    ]
    assert len({base, *others}) == 5
    assert request_key("openai", "", "\ud800\0", 0)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=50))
def test_any_body_and_any_text_survive(tmp_path_factory, body, text):
    path = tmp_path_factory.mktemp("s") / "s.sqlite"
    with Store(path) as store:
        store.commit([received(b"k", body), Fault((b"f",), "reason", text.encode("utf-8", "replace").decode(), 2)])
        assert store.answers([b"k"])[b"k"].body == body
        assert store.faults([b"f"])[b"f"][2] == 2


def test_what_was_sent_counts_as_spent_until_it_is_settled(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        lost, refused, answered = new_id(), new_id() + 1, new_id() + 2
        store.commit([Intent(i, "run", "openai", "m", b"k", 1.0) for i in (lost, refused, answered)])
        assert store.spent("run") == 3.0
        done = Received(answered, "run", "openai", "m", b"", 200, b"", 0.25, None, 1, (b"k",))
        store.commit([Settle(lost, may_be_billed=True), Settle(refused, may_be_billed=False), done])
        assert store.spent("run") == 1.25
        assert store.spent("another run") == 0


def test_ids_are_all_different_and_in_the_order_of_time():
    ids = [new_id() for _ in range(100_000)]
    assert ids == sorted(set(ids)) and ids[-1] < 2**63


def test_one_commit_serves_many_coroutines(tmp_path):
    commits = 0

    class Counted(Store):
        def commit(self, writes):
            nonlocal commits
            commits += 1
            super().commit(writes)

    async def write_all(store):
        async with GroupCommit(store) as group:
            await asyncio.gather(*(group.write(received(str(i).encode())) for i in range(500)))

    with Counted(tmp_path / "s.sqlite") as store:
        asyncio.run(write_all(store))
        assert len(store.answers([str(i).encode() for i in range(500)])) == 500
    assert commits <= 10


def test_a_failed_commit_reaches_everybody_who_waits(tmp_path):
    async def write(store):
        async with GroupCommit(store) as group:
            store._writer.execute("DROP TABLE answers")
            with pytest.raises(sqlite3.OperationalError):
                await group.write(received(b"k"))

    with Store(tmp_path / "s.sqlite") as store, pytest.raises(sqlite3.OperationalError):
        asyncio.run(write(store))


WRITER = """
import sys
from pathlib import Path
from pipeline.calls.store import *
with Store(Path(sys.argv[1])) as store:
    for i in range(int(sys.argv[3])):
        key = f"{sys.argv[2]}-{i}".encode()
        store.commit([Received(new_id(), "run", "p", "m", b"", 200, key * 20, None, None, 1, (key, b"shared-%d" % i))])
        print(key.decode(), flush=True)
"""


def test_two_processes_share_a_store(tmp_path):
    path = tmp_path / "s.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, "40"], stdout=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with Store(path) as store:
        keys = [f"{name}-{i}".encode() for name in "ab" for i in range(40)] + [b"shared-%d" % i for i in range(40)]
        assert len(store.answers(keys)) == 120


OPENER = """
import sys
from pathlib import Path
from pipeline.calls.store import Store
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    with Store(Path(sys.argv[1] + str(number))):
        pass
"""


def test_processes_may_make_a_store_at_the_same_moment(tmp_path):
    arguments = [sys.executable, "-c", OPENER, str(tmp_path / "s.sqlite")]
    openers = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for opener in openers:
        assert opener.stdout and opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [opener.wait(60) for opener in openers] == [0] * 4


def test_what_was_reported_as_committed_survives_kill_9(tmp_path):
    path = tmp_path / "s.sqlite"
    reported = []
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(attempt), "100000"], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        reported += [writer.stdout.readline().strip() for _ in range(5 + 7 * attempt)]
        os.kill(writer.pid, signal.SIGKILL)
        reported += writer.stdout.read().split("\n")[:-1]
        writer.wait()
    with Store(path) as store:
        answers = store.answers([key.encode() for key in reported])
        assert len(answers) == len(set(reported)) >= 60
        assert all(answer.body == key * 20 for key, answer in answers.items())


def test_a_full_disk_is_an_oserror(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store._writer.execute("PRAGMA max_page_count = 20")
        with pytest.raises(OSError) as caught:
            for i in range(100):
                store.commit([received(b"%d" % i, b"x" * 10_000)])
        assert caught.value.errno == errno.ENOSPC
        store._writer.execute("PRAGMA max_page_count = 100000")
        store.commit([received(b"after", b"y")])
        assert store.answers([b"after"])


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    (tmp_path / "s.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(UserError, match="not a response store"):
        Store(tmp_path / "s.sqlite")
    newer = sqlite3.connect(tmp_path / "n.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(UserError, match="another version"):
        Store(tmp_path / "n.sqlite")


def test_summary_export_and_prune(tmp_path):
    path = tmp_path / "s.sqlite"
    assert stores.summary(path)["models"] == []
    with pytest.raises(UserError, match="no response store"):
        stores.export(path, tmp_path / "e.jsonl")
    with Store(path) as store:
        store.commit([received(b"a", b'{"x": "\\ud800"}', 0.5), received(b"b", b"<html>", 0.25)._replace(model="n")])
        store.commit([Intent(new_id(), "run", "openai", "m", b"c", 0.1), Fault((b"c",), "timeout", "", 3)])
    told = stores.summary(path)
    assert [(m["model"], m["answers"], m["usd"]) for m in told["models"]] == [("m", 1, 0.5), ("n", 1, 0.25)]
    assert (told["open_intents"], told["open_usd"], told["faults"]) == (1, 0.1, 1)
    assert stores.export(path, tmp_path / "e.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["body"] for line in lines] == [{"x": "\ud800"}, "<html>"]
    with pytest.raises(UserError, match="nothing to prune"):
        stores.prune(path)
    assert stores.prune(path, older_than_days=1) == 0
    assert stores.prune(path, model="m") == 1
    with Store(path) as store:
        assert set(store.answers([b"a", b"b"])) == {b"b"}
        assert store.spent("run") == pytest.approx(0.5 + 0.25 + 0.1)  # a budget counts what was deleted, too
        store.commit([received(b"a", b"{}", 1.0)])
    assert stores.prune(path, model="m") == 1
    with Store(path) as store:
        assert store.spent("run") == pytest.approx(0.5 + 0.25 + 0.1 + 1.0)


def test_a_store_of_the_format_before_is_brought_up_to_date(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.commit([received(b"a", b"{}", 0.5)])
        store._writer.execute("DROP TABLE pruned")
        store._writer.execute("PRAGMA user_version = 1")
    with Store(path) as store:
        assert store.spent("run") == 0.5 and store.answers([b"a"])
    assert stores.prune(path, model="m") == 1
