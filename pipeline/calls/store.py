"""The response store: every answer that was ever received, keyed by what was asked.

One SQLite file (WAL, synchronous=FULL) is shared by all runs and safe for several processes. The order of events is
what makes it useful: an intent is committed before its request is sent, and the raw body before anybody parses it. So
after a crash at most what was in flight is asked again, and a parser that fails has lost nothing.

    intents   sent and not answered: in flight, or lost with its process, or a fault that may have been billed
    bodies    what came back, as it came, with what it cost
    answers   key of one sample -> the body it is in (a request for n samples brings one body for n keys)
    faults    why a key has no answer, the last time it was asked; such a key is asked again
    batches   batch jobs at a provider, and the intents that are in them
    pruned    what the answers that were deleted had cost, by run: a budget counts it all the same

Raises UserError for a file that is no store, OSError with its errno where the disk refuses.
"""

import asyncio
import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import paths
from pipeline.calls.budget import Rates
from pipeline.errors import UserError

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY, received REAL NOT NULL, job TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    request BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL, usd REAL, rates TEXT,
    attempts INTEGER NOT NULL);
CREATE TABLE answers (
    key BLOB PRIMARY KEY, body INTEGER NOT NULL REFERENCES bodies (id), choice INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE intents (
    id INTEGER PRIMARY KEY, sent REAL NOT NULL, job TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    key BLOB NOT NULL, usd REAL, batch TEXT, request BLOB);
CREATE TABLE faults (
    key BLOB PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL, attempts INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    tag TEXT PRIMARY KEY, created REAL NOT NULL, job TEXT NOT NULL, teacher TEXT NOT NULL, rows INTEGER NOT NULL,
    remote TEXT, ended REAL) WITHOUT ROWID;
CREATE INDEX intents_batch ON intents (batch) WHERE batch IS NOT NULL;
CREATE TABLE pruned (job TEXT PRIMARY KEY, usd REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX bodies_job ON bodies (job, usd);
"""

# Under load a commit waits a moment for more writes: fewer fsyncs, and fewer changes between the threads, which cost a
# fifth of all CPU time otherwise. A lone write is never kept waiting.
MANY, GATHER_S = 8, 0.02

LOCK_WAIT_S = 300.0  # how long a commit of another process is waited for


class Intent(NamedTuple):
    """About to be sent. `usd` is the most that it can cost, None where no price is known."""

    id: int  # of new_id
    job: str  # the run, to whose budget it counts
    provider: str
    model: str
    key: bytes
    usd: float | None
    batch: str | None = None  # the tag of the batch it is in
    request: bytes | None = None  # the wire JSON, for a batch, whose results may come to another process


class Received(NamedTuple):
    """A body that ends a request: an answer, or a refusal of the provider that will not change."""

    intent: int  # becomes the body's id
    job: str
    provider: str
    model: str
    request: bytes  # the wire JSON
    status: int
    body: bytes
    usd: float | None  # what it cost, or the most that it can have cost
    rates: Rates | None  # US dollars a million tokens, by which its cost is computed
    attempts: int
    keys: tuple[bytes, ...]  # one a choice


class Fault(NamedTuple):
    """A request that was given up for now."""

    keys: tuple[bytes, ...]
    reason: str
    detail: str
    attempts: int


class Settle(NamedTuple):
    """An intent that brought no answer. Without `may_be_billed` it is forgotten, else its worst case stays spent."""

    intent: int
    may_be_billed: bool


class Sql(NamedTuple):
    """Any other statement, for batches."""

    statement: str
    parameters: tuple[Any, ...]


Write = Intent | Received | Fault | Settle | Sql


class Answer(NamedTuple):
    """What the store holds for a key."""

    status: int
    body: bytes
    choice: int  # which of the body's choices
    body_id: int
    usd: float | None  # as the account has it
    rates: Rates | None
    attempts: int


_id_lock = threading.Lock()


def request_key(provider: str, identity: str, request: str, sample: int) -> bytes:
    """16 bytes that identify one sample of one request: provider, model identity, and `request`, the canonical JSON of
    the messages and every parameter."""
    return blake2b(
        f"{_asked(provider, identity, sample)}{request}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


@lru_cache(1024)
def _asked(provider: str, identity: str, sample: int) -> str:
    return json.dumps([provider, identity, sample])


_last_id = 0


def new_id() -> int:
    """An id for an intent, later its body's, 61 bits in the order of time: the microsecond, or one after the last id's,
    and ten bits of this process. So no two of a process are equal, and processes need not agree on anything."""
    global _last_id
    with _id_lock:
        _last_id = max(time.time_ns() // 1000, _last_id + 1)
        return _last_id << 10 | os.getpid() * 0x9E3779B1 >> 22 & 0x3FF


def default_path() -> Path:
    """data/cache/responses.sqlite."""
    return paths.cache_root() / "responses.sqlite"


class Store:
    """An open store. `commit` may be called from any one thread at a time, `answers` and `faults` likewise."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        with sqlite_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = _connect(self.path)
            _make_schema(self._writer, self.path)
            self._reader = _connect(self.path)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._writer.close()

    def commit(self, writes: Sequence[Write]) -> None:
        """Make all of `writes` durable in one transaction."""
        with sqlite_errors(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for write in writes:
                    _apply(self._writer, write)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # SQLite may have rolled back by itself
                    self._writer.execute("ROLLBACK")
                raise

    def answers(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """What is stored for `keys` (any number); keys without an answer are left out."""
        sql = (
            "SELECT a.key, b.status, b.body, a.choice, b.id, b.usd, b.rates, b.attempts "
            "FROM answers a JOIN bodies b ON b.id = a.body WHERE a.key IN "
        )
        return {
            key: Answer(status, body, choice, body_id, usd, tuple(json.loads(rates)) if rates else None, attempts)
            for key, status, body, choice, body_id, usd, rates, attempts in self._select(sql, keys)
        }

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of `keys` have an answer."""
        return {row[0] for row in self._select("SELECT key FROM answers WHERE key IN ", keys)}

    def faults(self, keys: Sequence[bytes]) -> dict[bytes, tuple[str, str, int]]:
        """key -> (reason, detail, attempts) of the last time that it was given up."""
        return {
            row[0]: row[1:]
            for row in self._select("SELECT key, reason, detail, attempts FROM faults WHERE key IN ", keys)
        }

    def spent(self, job: str) -> float:
        """US dollars that a job has spent. What may have been billed without an answer counts at its worst case."""
        with sqlite_errors(self.path):
            parts = [f"(SELECT total(usd) FROM {table} WHERE job = ?1)" for table in ("bodies", "intents", "pruned")]
            return float(self._reader.execute("SELECT " + " + ".join(parts), (job,)).fetchone()[0])

    def select(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of any query."""
        with sqlite_errors(self.path):
            return self._reader.execute(sql, parameters).fetchall()

    def _select(self, sql: str, keys: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        with sqlite_errors(self.path):
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                yield from self._reader.execute(f"{sql}({','.join('?' * len(some))})", some)


class GroupCommit:
    """Commits for many coroutines: all that is handed in while one commit is under way goes into the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "store")
        self._pending: list[Write] = []
        self._done: asyncio.Future[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._failed: Exception | None = None

    async def __aenter__(self) -> "GroupCommit":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._drain:
            await self._drain
        self._thread.shutdown()
        if self._failed:
            raise self._failed

    def add(self, write: Write) -> asyncio.Future[None]:
        """Hand in a write. The future, shared by all of one commit, is done when it is durable."""
        self._pending.append(write)
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
        if self._drain is None:
            self._drain = asyncio.create_task(self._commit_all())
        return self._done

    async def write(self, write: Write) -> None:
        """Hand in a write and wait until it is durable."""
        # Shielded: a coroutine that is cancelled must not cancel what others wait for.
        await asyncio.shield(self.add(write))

    async def _commit_all(self) -> None:
        loop, last = asyncio.get_running_loop(), 0
        while self._pending:
            if last >= MANY:
                await asyncio.sleep(GATHER_S)
            writes, done = self._pending, self._done
            assert done is not None
            self._pending, self._done, last = [], None, len(writes)
            try:
                await loop.run_in_executor(self._thread, self._store.commit, writes)
            except Exception as error:
                self._failed = error
                done.set_exception(error)
                done.exception()  # looked at, so that asyncio does not complain where nobody waits
            else:
                done.set_result(None)
        self._drain = None


def _apply(db: sqlite3.Connection, write: Write) -> None:
    now = time.time()
    match write:
        case Intent():
            db.execute(
                "INSERT INTO intents (id, sent, job, provider, model, key, usd, batch, request) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (write.id, now, *write[1:]),
            )
        case Received():
            rates = json.dumps(write.rates) if write.rates else None
            db.execute(
                "INSERT INTO bodies (id, received, job, provider, model, request, status, body, usd, rates, attempts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (write.intent, now, *write[1:8], rates, write.attempts),
            )
            for choice, key in enumerate(write.keys):
                # The first answer to a key stays: another process may have been quicker.
                db.execute(
                    "INSERT OR IGNORE INTO answers (key, body, choice) VALUES (?, ?, ?)", (key, write.intent, choice)
                )
            db.execute("DELETE FROM intents WHERE id = ?", (write.intent,))
        case Fault():
            for key in write.keys:
                db.execute("INSERT OR REPLACE INTO faults VALUES (?, ?, ?, ?)", (key, *write[1:]))
        case Settle():
            if not write.may_be_billed:
                db.execute("DELETE FROM intents WHERE id = ?", (write.intent,))
        case Sql():
            db.execute(write.statement, write.parameters)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # While another process makes the file, SQLite does not wait, whatever the timeout.
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = FULL")
    return db


def _make_schema(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        for statement in SCHEMA.split(";"):
            db.execute(statement)
    if version == 1:
        db.execute(next(statement for statement in SCHEMA.split(";") if "TABLE pruned" in statement))
    if version in (0, 1):
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")
    if version not in (0, 1, SCHEMA_VERSION):
        raise UserError(
            f"{path}: was written by another version of seqkd (format {version}). Move it away, or use that version."
        )


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Say what SQLite says of the disk as the operating system would, so that the user gets one kind of message."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _disk_is_full(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from error
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise UserError(
                f"{path}: is not a response store, or is damaged ({error}). Move it away to begin a new one."
            ) from error
        if name.startswith("SQLITE_BUSY"):
            raise UserError(
                f"{path}: another process has been writing for {LOCK_WAIT_S:.0f} s. Try again when it is done."
            ) from error
        raise


def _disk_is_full(path: Path) -> bool:
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False


def summary(path: Path) -> dict[str, Any]:
    """What a store holds: {"path", "bytes", "models": [{"provider", "model", "answers", "bytes", "usd"}],
    "open_intents", "open_usd", "faults"}. `open`: sent without an answer, which may have been billed."""
    if not path.is_file():
        return {"path": str(path), "bytes": 0, "models": [], "open_intents": 0, "open_usd": 0.0, "faults": 0}
    with Store(path) as store:
        models = store.select(
            "SELECT provider, model, count(*), sum(length(body) + length(request)), sum(usd) FROM bodies "
            "GROUP BY provider, model ORDER BY provider, model"
        )
        open_intents, open_usd = store.select("SELECT count(*), total(usd) FROM intents")[0]
        names = ("provider", "model", "answers", "bytes", "usd")
        return {
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in path.parent.glob(path.name + "*")),
            "models": [dict(zip(names, row, strict=True)) for row in models],
            "open_intents": open_intents,
            "open_usd": open_usd,
            "faults": store.select("SELECT count(*) FROM faults")[0][0],
        }


def export(path: Path, target: Path, model: str | None = None) -> int:
    """Write the stored answers (of one model) as JSON lines {received, provider, model, request, status, body, usd} and
    return how many there were."""
    if not path.is_file():
        raise UserError(f"{path}: there is no response store yet.")
    written = 0
    with Store(path) as store, target.open("w", encoding="utf-8") as file:
        with sqlite_errors(path):
            rows = store._reader.execute(
                "SELECT received, provider, model, request, status, body, usd FROM bodies "
                "WHERE ?1 IS NULL OR model = ?1 ORDER BY id",
                (model,),
            )
            for received, provider, name, request, status, body, usd in rows:
                line = {
                    "received": received,
                    "provider": provider,
                    "model": name,
                    "request": _json_or_text(request),
                    "status": status,
                    "body": _json_or_text(body),
                    "usd": usd,
                }
                file.write(json.dumps(line) + "\n")  # ASCII: a lone surrogate in an answer stays an escape
                written += 1
    return written


def prune(path: Path, *, older_than_days: float | None = None, model: str | None = None) -> int:
    """Delete stored answers that are older, or are of one model (both given: both must hold), and give the space back.
    Returns how many bodies went. What each run had spent on them is kept, for its budget. Raises UserError if neither
    is given."""
    if older_than_days is None and model is None:
        raise UserError("nothing to prune: say which answers, by age (days) or by model.")
    if not path.is_file():
        return 0
    before = time.time() - older_than_days * 86400 if older_than_days is not None else None
    which = "(?1 IS NULL OR received < ?1) AND (?2 IS NULL OR model = ?2)"
    with Store(path) as store, sqlite_errors(path):
        db = store._writer
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"DELETE FROM answers WHERE body IN (SELECT id FROM bodies WHERE {which})", (before, model))
        db.execute(
            f"INSERT INTO pruned SELECT job, total(usd) FROM bodies WHERE usd > 0 AND {which} GROUP BY job "
            "ON CONFLICT DO UPDATE SET usd = usd + excluded.usd",
            (before, model),
        )
        gone = db.execute(f"DELETE FROM bodies WHERE {which}", (before, model)).rowcount
        db.execute("COMMIT")
        db.execute("VACUUM")
    return gone


def _json_or_text(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
