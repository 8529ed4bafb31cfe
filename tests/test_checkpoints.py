"""Checkpoints: made by the clock, sealed, found again; one that is damaged is not taken for a good one."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import last_checkpoint
from pipeline.recipe import Train
from pipeline.stages.train import fit
from pipeline.training import DivergedError
from stages.test_fit import ROWS, SFT, run, student, weights


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder)
    return weights(folder)


@pytest.mark.parametrize("damage", ["truncate", "flip", "no seal", "missing", "only partial"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    unbroken: bytes, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)

    def stop(event: Any) -> None:
        if event["step"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, log=stop)
    newest = tmp_path / "checkpoints" / "checkpoint-15"
    optimizer = newest / "optimizer.pt"
    if damage == "truncate":
        os.truncate(optimizer, 1000)
    elif damage == "flip":
        data = bytearray(optimizer.read_bytes())
        data[len(data) // 2] ^= 1
        optimizer.write_bytes(data)
    elif damage == "no seal":
        (newest / "complete.json").unlink()
    elif damage == "missing":
        optimizer.unlink()
    else:
        (newest / "complete.json").rename(newest / "complete.json.partial")
    summary = run(tmp_path)
    assert summary["resumed_from"] == 10 and weights(tmp_path) == unbroken


def test_the_newest_whole_one_counts_and_the_others_are_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"%d" % step)
        if step < 100:
            checkpoints._seal(folder)  # a kill came before it was written for the newest
    (tmp_path / "checkpoint-best").mkdir()
    sharded = tmp_path / "checkpoint-20" / "optimizer_0"  # as FSDP writes it
    sharded.mkdir(parents=True)
    (sharded / "__0_0.distcp").write_bytes(b"whole")
    checkpoints._seal(sharded.parent)
    assert last_checkpoint(tmp_path) == sharded.parent
    (sharded / "__0_0.distcp").write_bytes(b"hole")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by name
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-10", "checkpoint-best"}


STEPS = {"save_strategy": "steps", "save_steps": 3}


@pytest.mark.parametrize("strategy", [STEPS, {**STEPS, "save_total_limit": 1}, {"save_strategy": "epoch"}])
@pytest.mark.parametrize("mended", [False, True])
def test_what_is_not_finite_is_never_sealed(tmp_path: Path, strategy: dict[str, Any], mended: bool) -> None:
    sft = {**SFT, **strategy, "max_steps": 20, "logging_steps": 100, "logging_first_step": False}
    first, bad = (3, 5) if "save_steps" in strategy else (8, 15)  # 30 rows by 4 are 8 steps an epoch
    model, tokenizer = student()
    good = [weight.detach().clone() for weight in model.parameters()]

    def poison(event: Any) -> None:
        """Bad weights after one step; with `mended` good ones again after the next, whose loss was bad."""
        if event["step"] == bad:
            next(model.parameters()).data.fill_(float("nan"))
        elif event["step"] == bad + 1 and mended:
            for weight, before in zip(model.parameters(), good, strict=True):
                weight.data.copy_(before)

    places = {"checkpoints": tmp_path / "checkpoints", "log": poison}
    with pytest.raises(DivergedError, match=f"at step {bad + 1}"):
        fit(model, tokenizer, ROWS, [], Train(sft=sft), tmp_path / "out", **places)
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / f"checkpoints/checkpoint-{first}"


def test_bad_weights_after_a_good_loss_are_not_sealed(tmp_path: Path) -> None:
    sft = {**SFT, "save_strategy": "steps", "save_steps": 3, "logging_steps": 100}
    model, tokenizer = student()

    def poison(event: Any) -> None:
        if event["step"] == 6:
            next(model.parameters()).data[0, 0] = float("inf")

    places = {"checkpoints": tmp_path / "checkpoints", "log": poison}
    with pytest.raises(DivergedError, match="at step 6"):
        fit(model, tokenizer, ROWS, [], Train(sft=sft), tmp_path / "out", **places)
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints/checkpoint-3"


def test_a_training_that_is_saved_between_two_logs_resumes_to_the_same_metrics(tmp_path: Path) -> None:
    sft = {**SFT, "save_strategy": "steps", "save_steps": 4}

    def stop(event: Any) -> None:
        if event["step"] == 14:
            raise KeyboardInterrupt

    def losses(folder: Path) -> list[str]:
        return [line for line in (folder / "out/metrics.jsonl").read_text().splitlines() if '"loss"' in line]

    run(tmp_path / "unbroken", sft)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", sft, log=stop)
    assert run(tmp_path / "killed", sft)["resumed_from"] == 12
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")


def test_a_recipe_decides_when_to_save_if_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
    run(tmp_path / "steps", {**SFT, "max_steps": 10, "save_strategy": "steps", "save_steps": 4})
    made = {path.name for path in (tmp_path / "steps/checkpoints").glob("checkpoint-*")}
    assert made == {"checkpoint-8", "checkpoint-10"}  # the Trainer's own: every 4 steps, and at the end
    run(tmp_path / "never", {**SFT, "max_steps": 10, "save_strategy": "no"})
    assert last_checkpoint(tmp_path / "never/checkpoints") is None


@pytest.mark.parametrize("sft", [SFT, {**SFT, "save_strategy": "steps", "save_steps": 5}])
def test_a_kill_between_the_last_step_and_the_end_adds_no_step(
    unbroken: bytes, tmp_path: Path, sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)

    def stop(event: Any) -> None:
        if "eval_loss" in event:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, sft, log=stop)
    summary = run(tmp_path, sft)
    assert (summary["resumed_from"], summary["steps"]) == (25, 30) and weights(tmp_path) == unbroken


def test_a_training_that_logs_once_an_epoch_is_saved_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
    sft = {**SFT, "logging_strategy": "epoch", "max_steps": 20}  # of 8 steps

    def stop(event: Any) -> None:
        if event["step"] == 18:
            raise KeyboardInterrupt

    run(tmp_path / "unbroken", sft)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", sft, log=stop)
    assert run(tmp_path / "killed", sft)["resumed_from"] == 16
    assert weights(tmp_path / "killed") == weights(tmp_path / "unbroken")
