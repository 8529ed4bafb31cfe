"""Runs as transactions: real stages of the tiny domain, real processes, real kills."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline import artifacts, flow
from pipeline.errors import AccountError, BusyError, StaleRunError, StorageError, UserError
from pipeline.recipe import load_recipe
from tiny import command, hear_ctrl_c, seqkd

DATA_STAGES = ("generate", "collect", "filter", "dedupe", "assemble")


def bytes_of(folder: Path, stages=DATA_STAGES) -> dict[str, str]:
    """Digest of every Parquet file of the data stages."""
    return {
        f"{stage}/{path.name}": artifacts.file_digest(path)
        for stage in stages
        for path in sorted((folder / "data" / "runs" / "tiny" / stage).glob("*.parquet"))
    }


def generated(folder: Path, *overrides: str, monkeypatch, **more):
    """Run the generate stage in this process."""
    monkeypatch.chdir(folder)
    recipe = load_recipe(folder / "tiny.yaml", list(overrides))
    return flow.run_stages(recipe, flow.run_folder("tiny"), ["generate"], **more)["generate"]


def test_the_whole_run_adds_up_and_is_skipped_the_second_time(finished):
    again = seqkd("run", "tiny.yaml", cwd=finished)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("complete, skipped") == len(flow.STAGES)
    account = flow.account(finished / "data" / "runs" / "tiny")
    assert account["asked"] == 48 * 3
    assert account["asked"] == sum(rows for end, rows in account.items() if end != "asked")


def test_a_manifest_tells_what_a_stage_was_made_from(finished):
    run = finished / "data" / "runs" / "tiny"
    manifest = flow.read_manifest(run, "filter")
    assert manifest["basis"]["recipe"]["filter"]["agreement"] == {"min_share": 0.6}
    collected = flow.read_manifest(run, "collect")
    assert manifest["basis"]["inputs"]["collect/completions"] == collected["files"]["completions.parquet"]["sha256"]
    for stage in flow.STAGES:
        manifest = flow.read_manifest(run, stage)
        for name, described in manifest["files"].items():
            assert artifacts.digest(run / stage / name) == described["sha256"]
        assert manifest["packages"]["pyarrow"] and manifest["seconds"] >= 0
    assert not list(run.glob(".*.partial")) and not list(run.glob(".*.replaced"))


def test_the_same_recipe_gives_the_same_bytes_elsewhere(finished, tiny):
    shutil.copytree(finished / "data" / "cache" / "teachers", tiny / "data" / "cache" / "teachers")
    done = seqkd("run", "tiny.yaml", cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tiny) == bytes_of(finished)


@pytest.mark.parametrize("kills", [6])
def test_kill_9_at_any_moment_then_the_same_command_gives_the_same_bytes(finished, tiny, kills):
    """The kills fall anywhere in the run, training of the embedded teacher included."""
    draw = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(command("run", "tiny.yaml"), cwd=tiny, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = seqkd("run", "tiny.yaml", cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tiny) == bytes_of(finished)
    weights = [folder / "data/runs/tiny/train/student/model.safetensors" for folder in (tiny, finished)]
    assert artifacts.file_digest(weights[0]) == artifacts.file_digest(weights[1])


def test_a_crash_between_the_two_renames_is_mended(tiny, monkeypatch):
    first = generated(tiny, monkeypatch=monkeypatch)
    run = tiny / "data" / "runs" / "tiny"
    # As if killed after the old folder was moved away and before the new one took its place.
    (run / "generate").rename(run / ".generate.replaced")
    shutil.copytree(run / ".generate.replaced", run / ".generate.partial")
    assert generated(tiny, monkeypatch=monkeypatch) == first
    assert sorted(path.name for path in run.iterdir()) == [".lock", "generate"]


def test_what_changed_is_said_and_nothing_is_overwritten(tiny, monkeypatch):
    first = generated(tiny, monkeypatch=monkeypatch)
    with pytest.raises(StaleRunError, match="generate.count was 48 and is 40") as error:
        generated(tiny, "generate.count=40", monkeypatch=monkeypatch)
    assert "--force" in str(error.value) and "--run" in str(error.value)
    assert generated(tiny, monkeypatch=monkeypatch) == first
    replaced = generated(tiny, "generate.count=40", monkeypatch=monkeypatch, force=True)
    assert replaced["counts"]["outcomes"] == {"prompts": 40}
    with (tiny / "data/tiny/facts/capitals.yaml").open("a") as file:
        file.write("    Chad: N'Djamena\n")
    with pytest.raises(StaleRunError, match="the input facts has changed"):
        generated(tiny, "generate.count=40", monkeypatch=monkeypatch)


def test_from_makes_a_stage_anew_although_it_matches(tiny, monkeypatch):
    manifest = tiny / "data/runs/tiny/generate/manifest.json"
    first, made = generated(tiny, monkeypatch=monkeypatch), manifest.stat().st_mtime_ns
    assert generated(tiny, monkeypatch=monkeypatch) == first and manifest.stat().st_mtime_ns == made
    again = generated(tiny, monkeypatch=monkeypatch, again="generate")
    assert again["files"] == first["files"] and manifest.stat().st_mtime_ns > made


def test_a_stage_without_the_one_before_it_says_so(tiny):
    done = seqkd("filter", "tiny.yaml", cwd=tiny)
    assert done.returncode == 2
    assert "no complete collect stage" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-5] + b"x" + data[-4:]])
def test_a_file_that_was_changed_since_its_stage_is_named(finished, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    kept = folder / "data" / "runs" / "tiny" / "filter" / "kept.parquet"
    kept.write_bytes(damage(kept.read_bytes()))
    done = seqkd("run", "tiny.yaml", "--from", "dedupe", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "kept.parquet: is not what filter wrote" in done.stderr and "--from filter" in done.stderr
    assert "Traceback" not in done.stderr
    assert seqkd("run", "tiny.yaml", "--from", "filter", cwd=folder).returncode == 0
    assert bytes_of(folder) == bytes_of(finished)


def test_a_damaged_manifest_is_mended_as_the_message_says(tiny):
    assert seqkd("generate", "tiny.yaml", cwd=tiny).returncode == 0
    stage = tiny / "data" / "runs" / "tiny" / "generate"
    (stage / "manifest.json").write_text('{"stage": "gen')
    done = seqkd("generate", "tiny.yaml", cwd=tiny)
    assert done.returncode == 2 and "Remove data/runs/tiny/generate and run it again." in done.stderr
    shutil.rmtree(stage)
    assert seqkd("generate", "tiny.yaml", cwd=tiny).returncode == 0


def test_a_second_process_stops_at_the_lock(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    with flow.lock(flow.run_folder("tiny")):
        second = seqkd("generate", "tiny.yaml", cwd=tiny)
        assert second.returncode == 2
        assert f"the run tiny is in use by process {os.getpid()} since" in second.stderr
        (flow.run_folder("tiny") / ".generate.partial").mkdir()
        told = seqkd("status", "tiny", cwd=tiny).stdout
        assert "running" in told and f"process {os.getpid()} since" in told
    told = seqkd("status", "tiny", cwd=tiny).stdout
    assert "interrupted" in told and "process" not in told
    assert seqkd("generate", "tiny.yaml", cwd=tiny).returncode == 0


def test_a_lock_of_a_killed_process_is_free(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("process 1 since 1970")  # left behind, held by nobody
    with flow.lock(run), (run / ".lock").open() as file:
        with pytest.raises(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BusyError), flow.lock(run):
            pass


def test_lost_rows_fail_the_run():
    with pytest.raises(AccountError, match="read 10 rows and accounts for 9"):
        flow._check_account("filter", {"rows_in": 10, "outcomes": {"kept": 4, "rejected": 5}})


def test_a_row_in_two_tables_or_in_none_fails_the_stage(finished, tmp_path):
    run = finished / "data/runs/tiny"
    completions, kept, rejected = (
        run / "collect/completions.parquet", run / "filter/kept.parquet", run / "filter/rejected.parquet"
    )  # fmt: skip
    flow._check_ids("filter", completions, [kept, rejected])
    with pytest.raises(AccountError, match="not the same rows"):
        flow._check_ids("filter", completions, [kept, kept])
    with pytest.raises(AccountError, match="not the same rows"):
        flow._check_ids("filter", completions, [kept])


def test_counts_that_do_not_chain_up_fail_the_account(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "data/runs/tiny", run)
    path = run / "dedupe" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["rows_in"] -= 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(AccountError, match="dedupe read"):
        flow.account(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_a_sentence_and_harms_nothing(tiny, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        (disk / "filler").write_bytes(b"x" * 60_000)
        done = seqkd("generate", "tiny.yaml", "--data", str(disk), cwd=tiny)
        assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
        (disk / "filler").unlink()
        assert seqkd("generate", "tiny.yaml", "--data", str(disk), cwd=tiny).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only disk needs root")
def test_a_read_only_folder_is_a_sentence(tiny, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        done = seqkd("generate", "tiny.yaml", "--data", str(disk), cwd=tiny)
        assert done.returncode == 2 and "read-only" in done.stderr and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", disk], check=False)


def test_the_errors_of_the_operating_system_that_a_user_can_mend():
    with pytest.raises(StorageError, match="x: the disk is full"), flow.storage_errors():
        raise OSError(28, "No space left on device", "x")
    with pytest.raises(StorageError, match=r"larger than is allowed. Raise the limit"), flow.storage_errors():
        raise OSError(27, "File too large")  # under `ulimit -f`, as dedupe's own files
    with pytest.raises(StorageError, match="a/runs: a file is in the place of a folder"), flow.storage_errors():
        raise OSError(20, "Not a directory", "a/runs")  # --data with the name of a file
    with pytest.raises(OSError, match="nonsense"), flow.storage_errors():
        raise OSError(5, "nonsense")
    # safetensors and torch say it in words of their own.
    for wrapped in (
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[('a', 'b', '[Errno 28] No space left on device: b')]",
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0",
        "[enforce fail at inline_container.cc:672] . unexpected pos 3072 vs 2964",
    ):
        with pytest.raises(StorageError, match="the disk is full"), flow.storage_errors():
            raise RuntimeError(wrapped)
    with pytest.raises(RuntimeError, match="a defect"), flow.storage_errors():
        raise RuntimeError("a defect")
    # A sentence for the user that quotes the system stays as it is.
    with pytest.raises(UserError, match="template.jinja: cannot be read"), flow.storage_errors():
        raise UserError("template.jinja: cannot be read ([Errno 13] Permission denied)")


def test_ctrl_c_is_130_and_resumable(finished, tiny):
    shutil.copytree(finished / "data" / "cache", tiny / "data" / "cache")
    long = command("run", "tiny.yaml", "--set", "train.sft.max_steps=100000")
    process = subprocess.Popen(long, cwd=tiny, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    for line in process.stderr:
        if line.startswith("  train student:"):  # the first line of progress: it is in the middle of training
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130, rest
    assert "the same command continues" in rest and "Traceback" not in rest
    assert "interrupted" in seqkd("status", "tiny", cwd=tiny).stdout
    assert seqkd("run", "tiny.yaml", cwd=tiny).returncode == 0


@pytest.mark.parametrize("name", ["../escape", "", ".hidden", "a/b", "x" * 200, "a\nb"])
def test_a_run_name_is_a_plain_folder_name(name):
    with pytest.raises(UserError, match="a run's name has letters"):
        flow.run_folder(name)
