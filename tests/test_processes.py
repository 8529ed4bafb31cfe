"""Several processes train one student: torchrun and accelerate launch, on CPUs (gloo)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def test_two_processes_train_as_one_does(finished_copy: Path) -> None:
    run = finished_copy / "data/runs/tiny"
    before = losses(run)
    for stage in ("train", "evaluate"):
        shutil.rmtree(run / stage)
    # Two halves of each batch: the same batches as one process has.
    sets = ["train.sft.per_device_train_batch_size=8", "train.sft.max_steps=100", "train.baselines=[]"]
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "pipeline.stages.train", "tiny.yaml"]
    command += [word for one in sets for word in ("--set", one)]
    where = {"cwd": finished_copy, "capture_output": True, "text": True, "timeout": 240, "check": False}
    done = subprocess.run(command, **where)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train: student of") + done.stdout.count("train: student of") == 1  # only one speaks
    assert losses(run)[:3] == pytest.approx(before[:3], rel=1e-2)
    assert json.loads((run / "train/manifest.json").read_text())["counts"]["training"]["student"]["steps"] == 100
    # A stage that is complete is skipped, and nobody waits for the other.
    assert subprocess.run(command, **where).returncode == 0


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["model"] == "student" and "loss" in event]
