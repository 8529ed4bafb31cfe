"""Run stages as transactions. The only transaction code: a stage module knows nothing of it.

A stage is a module pipeline/stages/NAME.py with

    VERSION    raised when the same input would give other output, or other checkpoints to go on from
    SECTIONS   the recipe's sections, or single fields (evaluate.limit), that determine its result
    READS      {table, file or folder: the stage that wrote it}; what that stage chose not to write is not in inputs
    sources(recipe) -> {name: path}         what else it reads: templates, facts, a user's files
    check(recipe)                           optional: raises UserError for what the user has to see to beforehand
    run(recipe, inputs, out) -> counts      inputs: {name: path} of READS and sources; out: an empty folder

and counts = {"rows_in", "outcomes": {place: rows}, "reasons": {reason: rows}, "usage": {...}, ...}; where rows_in is
given, the outcomes must add up to it.

On disk, in data/runs/NAME/:

    .lock                held (flock) by the one process that works on the run
    .STAGE.partial/      what a stage is writing; `checkpoints/` in it survives a crash if the fingerprint is the same
    STAGE/               complete: its manifest.json was written last and the folder was renamed into place
"""

import errno
import fcntl
import hashlib
import importlib
import json
import operator
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import artifacts, paths
from pipeline.errors import AccountError, BusyError, SeqkdError, StaleRunError, StorageError, UserError
from pipeline.progress import say
from pipeline.recipe import Recipe, Section
from pipeline.records import TABLES, canonical_json

STAGES = ("generate", "collect", "filter", "dedupe", "assemble", "train", "evaluate")

PACKAGES = ("torch", "transformers", "trl", "datasets", "peft", "tokenizers", "pyarrow", "numpy", "openai", "anthropic")

Manifest = dict[str, Any]

# In a temporary folder, and no part of what is published.
_SCAFFOLDING = ("checkpoints", ".fingerprint")

# The stages that sort rows: what each reads, and the tables of which every one of its rows is in exactly one.
_PARTS = {
    "filter": ("completions", ("kept", "rejected")),
    "dedupe": ("kept", ("kept", "duplicates")),
    "assemble": ("kept", ("train", "validation", "withheld")),
}

# Errors of the operating system that the user, not we, can do something about.
_STORAGE = {
    errno.ENOSPC: "the disk is full. Free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up. Free some space and run the same command again",
    errno.EFBIG: "a file would be larger than is allowed. Raise the limit (`ulimit -f`), or give another --data",
    errno.ENOTDIR: "a file is in the place of a folder. Choose another folder with --data",
    errno.EROFS: "the file system is read-only. Choose another folder with --data",
    errno.EACCES: "permission denied. Choose another folder with --data, or mend its permissions",
    errno.EPERM: "not permitted. Choose another folder with --data, or mend its permissions",
}


def run_folder(name: str) -> Path:
    """data/runs/NAME. Raises UserError for a name that is not a plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name):
        raise UserError(f"--run {name!r}: a run's name has letters, digits, '.', '_' and '-' only.")
    return paths.runs_root() / name


def stage_module(stage: str) -> ModuleType:
    """The module of a stage, imported when it is needed."""
    return importlib.import_module(f"pipeline.stages.{stage}")


def read_manifest(run: Path, stage: str) -> Manifest | None:
    """A complete stage's manifest, or None if the stage is not complete."""
    path = run / stage / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Remove {run / stage} and run it again.") from None


def run_stages(
    recipe: Recipe, run: Path, stages: Sequence[str] = STAGES, *, again: str | None = None, force: bool = False
) -> dict[str, Manifest]:
    """Run stages in turn under the run's lock, skipping those that are complete and match.

    again   make this stage and those after it anew although they match
    force   replace stages that do not match instead of stopping there
    Returns each stage's manifest. Raises SeqkdError.
    """
    with lock(run), storage_errors():
        _look_ahead(recipe, run, stages)
        manifests = {}
        for stage in stages:
            anew = again is not None and STAGES.index(stage) >= STAGES.index(again)
            manifests[stage] = execute(stage, recipe, run, anew=anew, force=force)
        return manifests


def _look_ahead(recipe: Recipe, run: Path, stages: Sequence[str]) -> None:
    """What a stage wants of the user is missed before the first one runs: a later one may come after hours of training
    and paid answers. Raises UserError."""
    for stage in stages:
        if not read_manifest(run, stage):
            _check(stage, recipe)


def _check(stage: str, recipe: Recipe) -> None:
    module = stage_module(stage)
    _sources(stage, module, recipe)
    if hasattr(module, "check"):
        module.check(recipe)


def execute(stage: str, recipe: Recipe, run: Path, *, anew: bool = False, force: bool = False) -> Manifest:
    """Make one stage of a run: skip it if it is complete and matches, else run it in a temporary folder and publish.

    Raises StaleRunError if the complete stage was made from something else and neither `anew` nor `force` is given,
    UserError if a stage before it is not complete or its files were changed since, AccountError if rows were lost.
    """
    module = stage_module(stage)
    _finish_publishing(run, stage)
    inputs, basis = _basis(stage, module, recipe, run)
    fingerprint = _fingerprint(basis)

    finished = read_manifest(run, stage)
    if finished and finished["fingerprint"] == fingerprint and not anew:
        say(f"{stage}: complete, skipped")
        return finished
    if finished and finished["fingerprint"] != fingerprint and not (anew or force):
        raise StaleRunError(
            f"{run / stage} was made from something else: {_difference(finished['basis'], basis)}. "
            f"Give --force to make it anew in its place, or --run NAME to keep it and make another run."
        )

    for name, writer in module.READS.items():
        if name in inputs:
            check_unchanged(inputs[name], writer, basis["inputs"][f"{writer}/{name}"])
    out = _partial(run, stage)
    if _prepare(out, fingerprint):
        say(f"{stage}: an interrupted attempt was made from something else or by another version, so it begins anew")
    say(f"{stage}: {_headline(module)}")
    started, clock, cpu = datetime.now(UTC), time.monotonic(), _cpu_seconds()
    counts = module.run(recipe, inputs, out)
    _check_account(stage, counts)
    if stage in _PARTS:
        source, parts = _PARTS[stage]
        _check_ids(stage, inputs[source], [out / f"{part}.parquet" for part in parts])
    manifest = {
        "stage": stage,
        "fingerprint": fingerprint,
        "basis": basis,
        "counts": counts,
        "files": {path.name: _describe(path) for path in sorted(out.iterdir()) if path.name not in _SCAFFOLDING},
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "cpu_seconds": round(_cpu_seconds() - cpu, 3),
        "code": code_revision(),
        "python": platform.python_version(),
        "packages": _package_versions(),
    }
    _publish(run, stage, manifest)
    say(f"{stage}: {outcomes(manifest)} in {manifest['seconds']:.1f} s")
    return manifest


def check_unchanged(path: Path, writer: str, digest: str) -> None:
    """Raises UserError if a file or folder is not the one, by its digest, that the stage `writer` wrote."""
    if not path.exists() or artifacts.digest(path) != digest:
        raise UserError(
            f"{path}: is not what {writer} wrote; it was changed, damaged or removed since. "
            f"Make it again with --from {writer}."
        )


def link(source: Path, stage: str, run: Path) -> None:
    """Give a run the complete stage of another one, by hard links: published files are never changed in place. The
    stage that the run has is kept if it is the same. The caller holds the run's lock."""
    manifest = read_manifest(source, stage)
    assert manifest, f"{source.name} has no complete {stage}"
    _finish_publishing(run, stage)
    own = read_manifest(run, stage)
    if own and own["fingerprint"] == manifest["fingerprint"] and own["files"] == manifest["files"]:
        return
    partial = run / f".{stage}.linked"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / stage, partial, copy_function=artifacts.link_or_copy)
    artifacts.sync_tree(partial)
    shutil.rmtree(run / stage, ignore_errors=True)
    partial.rename(run / stage)
    artifacts.sync_folder(run)


def link_same(sources: Sequence[Path], stage: str, recipe: Recipe, run: Path) -> None:
    """Link a stage that the run does not have from the first of `sources` that has made it from the same recipe and
    inputs, if one has. The caller holds the run's lock."""
    if read_manifest(run, stage) or _partial(run, stage).exists():
        return
    own = fingerprint(stage, recipe, run)
    for source in sources:
        found = read_manifest(source, stage)
        if found and found["fingerprint"] == own:
            link(source, stage, run)
            return


def fingerprint(stage: str, recipe: Recipe, run: Path) -> str:
    """A hash of all that determines a stage of a run, whose stages before it are complete."""
    return _fingerprint(_basis(stage, stage_module(stage), recipe, run)[1])


def outcomes(manifest: Manifest) -> str:
    """What became of a stage's rows, in words: `1,200 kept, 300 rejected (agreement 290, cut_off 10)`."""
    counts = manifest["counts"]
    text = ", ".join(f"{rows:,} {place}" for place, rows in counts.get("outcomes", {}).items())
    if counts.get("reasons"):
        text += " (" + ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts["reasons"].items())) + ")"
    return "; ".join(part for part in (text, counts.get("note")) if part) or "done"


def plan(recipe: Recipe, run: Path) -> Iterator[tuple[str, str]]:
    """Each stage with what `run_stages` would do about it, as far as that can be known before its inputs exist."""
    ahead = False
    for stage in STAGES:
        finished = read_manifest(run, stage)
        if ahead:
            yield stage, "would be checked again" if finished else _prospect(stage, recipe)
            continue
        basis = _basis(stage, stage_module(stage), recipe, run)[1]
        if finished and finished["fingerprint"] == _fingerprint(basis):
            yield stage, "complete, would be skipped"
            continue
        ahead = True
        changed = finished and _difference(finished["basis"], basis)
        yield stage, f"would stop, without --force: {changed}" if changed else _prospect(stage, recipe)


def _prospect(stage: str, recipe: Recipe) -> str:
    try:
        _check(stage, recipe)
    except UserError as error:
        return f"would stop: {error}"
    return "would run"


def table_if_complete(run: Path, table: str) -> Path | None:
    """The path of a table if the stage that writes it is complete."""
    stage = TABLES[table][0]
    return run / stage / f"{table}.parquet" if read_manifest(run, stage) else None


def account(run: Path) -> dict[str, int]:
    """Where every prompt x sample of a run is now, as far as the run has gone:

        asked = failed + rejected + duplicate + withheld + kept

    `kept` are the rows of train and validation, or of the last complete stage before them.
    Raises AccountError if the stages' counts do not chain up.
    """
    total: dict[str, int] = {}
    rows = 0
    for stage, dropped in (
        ("collect", "failed"),
        ("filter", "rejected"),
        ("dedupe", "duplicate"),
        ("assemble", "withheld"),
    ):
        manifest = read_manifest(run, stage)
        if manifest is None:
            break
        counts = manifest["counts"]
        if stage == "collect":
            total["asked"] = rows = counts["rows_in"]
        if counts["rows_in"] != rows:
            raise AccountError(
                f"{run.name}: {stage} read {counts['rows_in']:,} rows where {rows:,} were written before it."
            )
        total[dropped] = counts["outcomes"][dropped]
        rows -= total[dropped]
    if total:
        total["kept"] = rows
    return total


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run's lock. Raises BusyError, naming the holder, if another process has it. A killed process's lock is
    free at once: the kernel drops it."""
    with storage_errors():
        run.mkdir(parents=True, exist_ok=True)
        # Not truncated on opening: until the lock is ours, the text in it is the holder's.
        file = os.fdopen(os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.1)  # it may have been `holder`, looking
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(
                f"the run {run.name} is in use by {file.read().strip() or 'another process'}. "
                "Wait for it, stop it, or choose another name with --run."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} since {datetime.now(UTC).isoformat(timespec='seconds')}")
        file.flush()
        yield


def holder(run: Path) -> str | None:
    """Who is at work on a run: `process 123 since 2026-01-01T00:00:00+00:00`. None: nobody."""
    try:
        with (run / ".lock").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except (FileNotFoundError, PermissionError):
        pass
    return None


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the operating system says of a full or read-only disk into a sentence for the user."""
    try:
        yield
    except SeqkdError:  # it has its own sentence, which may quote the system's
        raise
    except Exception as error:
        number = getattr(error, "errno", None) or _storage_number(str(error))
        if number not in _STORAGE:
            raise
        name = getattr(error, "filename", None)
        place = f"{name}: " if name else ""
        raise StorageError(f"{place}{_STORAGE[number]}. What was complete before is unharmed.") from error


def _storage_number(message: str) -> int | None:
    """The operating system's error number in what a library that wraps it says: safetensors, torch, shutil."""
    # What torch.save says when it cannot write all of its file, and when it cannot close it after that.
    if "PytorchStreamWriter failed writing" in message or re.search(r"inline_container.*unexpected pos", message):
        return errno.ENOSPC
    found = re.search(r"(?:os error |\[Errno )(\d+)", message)
    return int(found[1]) if found else None


def _basis(stage: str, module: ModuleType, recipe: Recipe, run: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """A stage's inputs, and everything that determines its result, in words that `_difference` can compare."""
    inputs: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for name, writer in module.READS.items():
        before = read_manifest(run, writer)
        if before is None:
            raise UserError(
                f"{stage} reads what {writer} writes, and {run.name} has no complete {writer} stage. "
                f"Run `seqkd {writer}` first, or `seqkd run`, which runs all stages in turn."
            )
        file = next((file for file in (name, f"{name}.parquet") if file in before["files"]), None)
        if file is None:
            continue  # the recipe did not ask for it, such as a baseline's data
        inputs[name] = run / writer / file
        if not inputs[name].exists():
            raise UserError(f"{inputs[name]} is gone. Make it again with --from {writer}.")
        digests[f"{writer}/{name}"] = before["files"][file]["sha256"]
    for name, path in _sources(stage, module, recipe).items():
        inputs[name] = path
        digests[name] = artifacts.digest(path)
    section: dict[str, Any] = {"domain": recipe.domain, "seed": recipe.seed}
    for name in module.SECTIONS:
        part = operator.attrgetter(name)(recipe)
        section[name] = part.fingerprinted() if isinstance(part, Section) else part
    return inputs, {"version": module.VERSION, "recipe": section, "inputs": digests}


def _sources(stage: str, module: ModuleType, recipe: Recipe) -> dict[str, Path]:
    found: dict[str, Path] = module.sources(recipe)
    for path in found.values():
        if not path.exists():
            raise UserError(f"{stage}: {path} does not exist.")
    return found


def _fingerprint(basis: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(basis).encode("utf-8", "surrogatepass")).hexdigest()


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two bases, in words: at most five things."""

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {
                k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}" if name else key).items()
            }
        if isinstance(value, list) and value:
            return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{name}.{i}").items()}
        return {name: value}

    said = []
    if old["version"] != new["version"]:
        said.append(f"the stage's version was {old['version']} and is {new['version']}")
    before, now = flat(old["recipe"]), flat(new["recipe"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            said.append(f"{name} was {json.dumps(before.get(name))} and is {json.dumps(now.get(name))}")
    for name in sorted(old["inputs"].keys() | new["inputs"].keys()):
        if old["inputs"].get(name) != new["inputs"].get(name):
            said.append(f"the input {name} has changed")
    return "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "")


def _partial(run: Path, stage: str) -> Path:
    return run / f".{stage}.partial"


def _prepare(out: Path, fingerprint: str) -> bool:
    """An empty temporary folder, but for the checkpoints of an interrupted attempt at the very same thing. Returns
    whether there were some of another one."""
    mark = out / ".fingerprint"
    same = mark.is_file() and mark.read_text() == fingerprint
    lost = not same and (out / "checkpoints").is_dir()
    if out.exists():
        for path in out.iterdir():
            if same and path.name in _SCAFFOLDING:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(exist_ok=True)
    artifacts.write_text(mark, fingerprint)
    return lost


def _describe(path: Path) -> dict[str, Any]:
    described: dict[str, Any] = {"sha256": artifacts.digest(path)}
    if path.is_file():
        described["bytes"] = path.stat().st_size
    if path.suffix == ".parquet":
        described["rows"] = artifacts.count_rows(path)
    return described


def _publish(run: Path, stage: str, manifest: Manifest) -> None:
    out = _partial(run, stage)
    artifacts.sync_tree(out)
    # Written under another name and renamed, so that manifest.json is never half there.
    artifacts.write_json(out / "manifest.new", manifest)
    (out / "manifest.new").rename(out / "manifest.json")
    artifacts.sync_folder(out)
    _finish_publishing(run, stage)


def _finish_publishing(run: Path, stage: str) -> None:
    """Rename a temporary folder whose manifest is there into place. Also mends a crash between the two renames."""
    out, final, replaced = _partial(run, stage), run / stage, run / f".{stage}.replaced"
    if (out / "manifest.json").is_file():
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        out.rename(final)
        artifacts.sync_folder(run)
    # Only now: until the stage is published, its checkpoints are what a crash would be mended with.
    shutil.rmtree(final / "checkpoints", ignore_errors=True)
    (final / ".fingerprint").unlink(missing_ok=True)
    if replaced.exists() and final.exists():
        shutil.rmtree(replaced)


def _check_account(stage: str, counts: dict[str, Any]) -> None:
    if "rows_in" in counts and counts["rows_in"] != sum(counts["outcomes"].values()):
        raise AccountError(
            f"{stage} read {counts['rows_in']:,} rows and accounts for {sum(counts['outcomes'].values()):,} "
            f"({counts['outcomes']}). This is a defect of seqkd; the stage was not published."
        )


def _check_ids(stage: str, source: Path, parts: list[Path]) -> None:
    """Every row that was read is in exactly one of the tables written. Raises AccountError if one is not."""
    import pyarrow as pa

    read = artifacts.read_table(source, ["id"])
    written = pa.concat_tables([artifacts.read_table(part, ["id"]) for part in parts])
    if not read.sort_by("id").equals(written.sort_by("id")):
        lost = sorted(set(read["id"].to_pylist()) ^ set(written["id"].to_pylist()))[:3]
        raise AccountError(
            f"{stage} read {read.num_rows:,} rows and wrote {written.num_rows:,}, and they are not the same rows "
            f"({', '.join(lost) or 'some twice'}). This is a defect of seqkd; the stage was not published."
        )


def _headline(module: ModuleType) -> str:
    """The first line of a stage's docstring after its name."""
    return (module.__doc__ or "").strip().splitlines()[0].partition(": ")[2].rstrip(".")


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def code_revision() -> str:
    """The commit of the checkout this runs from (with + if it was changed since), or the installed version."""
    root = paths.PACKAGE.parent
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if head.returncode == 0:
            dirty = subprocess.run(
                [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False
            )
            return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    try:
        return f"seqkd {metadata.version('seqkd')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def stage_main(stage: str) -> None:
    """`python -m pipeline.stages.STAGE RECIPE --run NAME`: the same as `seqkd STAGE RECIPE --run NAME`."""
    from pipeline.cli import main

    main([stage, *sys.argv[1:]])
