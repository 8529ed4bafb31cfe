"""The stage train in a whole run: soft targets from what collect stored, the seeds of several students."""

import errno
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from pipeline import artifacts, flow
from pipeline.checkpoints import last_checkpoint
from pipeline.errors import StorageError, UserError
from pipeline.recipe import Recipe, Sampling, Teacher, Train, load_recipe
from pipeline.stages import train
from pipeline.teachers import openai, vllm
from pipeline.training import DivergedError


def recipe(*overrides: str) -> Recipe:
    return load_recipe(Path("tiny.yaml"), ["train.sft.max_steps=6", "train.baselines=[]", *overrides])


STORED = ("train.method=logits", "train.logits.source=stored", "collect.sampling.logprobs=true")


def test_soft_targets_from_what_collect_stored(finished_copy: Path) -> None:
    wanted = recipe(*STORED, "collect.sampling.top_logprobs=4")
    manifests = flow.run_stages(wanted, flow.run_folder("soft"), flow.STAGES[:6])
    rows = artifacts.read_table(finished_copy / "data/runs/soft/assemble/train.parquet").to_pylist()
    for row in rows:
        for place in row["logprobs"]:
            best = [top["logprob"] for top in place["top"]]
            assert len(best) == 4 and best == sorted(best, reverse=True)
            assert place["logprob"] <= best[0] + 1e-6
    counts = manifests["train"]["counts"]
    # The teacher's words are all the student's, but where it chose another way to spell one in tokens.
    assert counts["training"]["student"]["soft_tokens"] > 0.9 * counts["training"]["student"]["tokens"]
    assert "of the answers' tokens have soft targets" in counts["note"]
    # Without them nothing is stored, and the table is as ever.
    plain = artifacts.read_table(finished_copy / "data/runs/tiny/assemble/train.parquet")
    assert "logprobs" not in plain.schema.names
    without = recipe(*STORED[:2])
    with pytest.raises(UserError, match="top_logprobs: 20"):
        train.run(without, inputs(finished_copy), finished_copy)


def inputs(folder: Path) -> dict[str, Path]:
    tables = folder / "data/runs/tiny/assemble"
    return {name: tables / f"{name}.parquet" for name in ("train", "validation", "random_subset")}


def test_a_student_is_done_only_when_it_is_on_the_disk(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, synced = finished_copy / "done" / "out", []
    out.mkdir(parents=True)
    real_sync, real_write = artifacts.sync_tree, artifacts.write_json

    def sync_tree(path: Path) -> None:
        synced.extend(path.rglob("model.safetensors"))
        real_sync(path)

    def write_json(path: Path, value: Any) -> None:
        if path.name == "summary.new":
            assert path.parent / "model" / "model.safetensors" in synced
        real_write(path, value)

    monkeypatch.setattr(artifacts, "sync_tree", sync_tree)
    monkeypatch.setattr(artifacts, "write_json", write_json)
    train.run(recipe(), inputs(finished_copy), out)
    assert (out / "checkpoints/student/summary.json").is_file()


@pytest.mark.parametrize("file", ["summary", "manifest"])
def test_a_trained_student_is_not_trained_again(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A full disk or a kill while what says that it is done is written."""
    run, wanted = flow.run_folder("tiny"), recipe("train.seed=3")
    real = artifacts.write_json

    def full(path: Path, value: Any) -> None:
        if path.name.startswith(file):
            path.write_text('{"steps"')
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, value)

    monkeypatch.setattr(artifacts, "write_json", full)
    with pytest.raises(StorageError, match="the disk is full"):
        flow.run_stages(wanted, run, ["train"], force=True)
    monkeypatch.setattr(artifacts, "write_json", real)
    trained = run / ".train.partial/checkpoints/student/model/model.safetensors"
    before = trained.stat().st_mtime_ns
    monkeypatch.setattr(flow, "_publish", lambda *args: None)  # which removes it
    flow.run_stages(wanted, run, ["train"], force=True)
    assert (trained.stat().st_mtime_ns == before) == (file == "manifest")
    monkeypatch.undo()
    monkeypatch.chdir(finished_copy)
    flow.run_stages(wanted, run, ["train"], force=True)
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} == {".lock"}
    assert not [path for path in (run / "train").iterdir() if path.name.startswith(".")]


def test_an_attempt_of_an_earlier_version_is_not_gone_on_with(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its summary of a finished student had fewer keys: the stage ended in a KeyError."""
    run, wanted = flow.run_folder("tiny"), recipe("train.seed=4")
    with monkeypatch.context() as earlier:
        earlier.setattr(train, "VERSION", train.VERSION - 1)
        earlier.setattr(flow, "_publish", lambda *args: None)  # interrupted
        flow.run_stages(wanted, run, ["train"], force=True)
    done = run / ".train.partial/checkpoints/student/summary.json"
    summary = json.loads(done.read_text())
    assert (train.VERSION, summary.pop("context")) == (5, 64)
    done.write_text(json.dumps(summary))
    capsys.readouterr()
    flow.run_stages(wanted, run, ["train"], force=True)
    assert "train: an interrupted attempt was made from something else or by another version" in capsys.readouterr().err
    # Whoever changes what is in it raises VERSION.
    assert (train.VERSION, sorted(summary)) == (
        5,
        ["cut", "dropped", "eval_loss", "parameters", "resumed_from", "rows", "seconds", "steps", "tokens",
         "train_loss", "trainable"],
    )  # fmt: skip


def test_a_student_in_the_home_folder(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(finished_copy))
    (finished_copy / "data/runs/tiny/train/student").rename(finished_copy / "mine")
    (finished_copy / "template.jinja").write_text((finished_copy / "mine/chat_template.jinja").read_text())
    wanted = recipe("train.student=~/mine", "train.chat_template=~/template.jinja")
    out = finished_copy / "home" / "out"
    out.mkdir(parents=True)
    assert set(train.sources(wanted)) == {"student", "chat_template"}
    train.run(wanted, inputs(finished_copy), out)
    assert (out / "student/model.safetensors").is_file()
    assert f"model_name_or_path: {finished_copy / 'mine'}" in (out / "trl_sft.yaml").read_text()


def test_what_a_diverged_training_needs_is_what_it_says(finished_copy: Path) -> None:
    folder = finished_copy / "data/runs/tiny"
    for stage in ("train", "evaluate"):
        shutil.rmtree(folder / stage)
    wild = {"train.sft.learning_rate": 1e6, "train.sft.max_grad_norm": 0, "train.sft.max_steps": 20}
    wild |= {"train.sft.save_strategy": "steps", "train.sft.save_steps": 1}
    same = recipe(*(f"{name}={value}" for name, value in wild.items()))
    steps = folder / ".train.partial/checkpoints/student/steps"
    for attempt in (1, 2):  # as it is, it diverges again, from the last good checkpoint on
        with pytest.raises(
            DivergedError, match=r"last good checkpoint \(.*steps/checkpoint-\d+\) on.*begins anew"
        ) as told:
            flow.run_stages(same, folder, ["train"])
        assert "--force" not in str(told.value), attempt
        kept = last_checkpoint(steps)
        assert kept and str(kept) in str(told.value)
        weights = safetensors.torch.load_file(kept / "model.safetensors").values()
        assert all(weight.isfinite().all() for weight in weights)
    # With another learning rate it begins anew, without --force.
    manifest = flow.run_stages(recipe(), folder, ["train"])["train"]
    assert manifest["counts"]["training"]["student"]["resumed_from"] is None


def test_the_other_methods_find_the_teacher(finished_copy: Path) -> None:
    for method in ("logits", "on_policy"):
        out = finished_copy / method / "out"
        out.mkdir(parents=True)
        more = "train.on_policy={max_steps: 2, max_completion_length: 6, per_device_train_batch_size: 4}"
        counts = train.run(recipe(f"train.method={method}", more), inputs(finished_copy), out)
        assert counts["training"]["student"]["steps"] in (2, 6) and (out / "student/model.safetensors").is_file()


@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")), reason="no TensorBoard here"
)
def test_tensorboard_files_outlive_the_checkpoints(finished_copy: Path) -> None:
    out = finished_copy / "reported" / "out"
    out.mkdir(parents=True)
    train.run(recipe("train.sft.report_to=tensorboard"), inputs(finished_copy), out)
    assert list((out.parent / "tensorboard" / "student").glob("events.out.tfevents.*"))
    assert not list(out.rglob("events.out.tfevents.*"))


def test_a_teacher_that_cannot_score_is_named(finished_copy: Path) -> None:
    from pipeline.teachers.embedded import train_tokenizer
    from teachers.conftest_models import make_facts

    _, tokenizer = train.open_student(recipe())
    hosted = Teacher(provider="openai", model="some-model")
    wanted = recipe("train.method=on_policy")
    wanted = wanted.model_copy(update={"collect": wanted.collect.model_copy(update={"teachers": [hosted]})})
    with pytest.raises(
        UserError, match="on_policy needs the probabilities of a teacher on this machine.*train.teacher"
    ):
        train.open_teacher(wanted, tokenizer)
    other = train_tokenizer(make_facts(), wanted.collect.teachers[0].embedded or _embedded())
    with pytest.raises(UserError, match="different tokenizers.*method: sft"):
        train.open_teacher(recipe("train.method=logits"), other)
    own = recipe("train.method=on_policy", "train.teacher=data/runs/tiny/train/student")
    assert train.open_teacher(own, tokenizer) is not None
    tokenizer.chat_template = tokenizer.chat_template.replace("<|user|>", "<|system|>")
    with pytest.raises(UserError, match="student's chat template, which is not its own"):
        train.open_teacher(own, tokenizer)


def _embedded() -> Any:
    from pipeline.recipe import Embedded

    return Embedded(vocab_size=400)


def test_a_baseline_without_rows_is_said(finished_copy: Path) -> None:
    """`seqkd train` after train.baselines changed: assemble, which draws the rows, is not looked at."""
    run = flow.run_folder("tiny")
    flow.run_stages(recipe(), run, ["assemble"], force=True)
    with pytest.raises(
        UserError, match="train.baselines: random_subset: the run's assemble .* `seqkd assemble --force`"
    ):
        flow.run_stages(recipe("train.baselines=[random_subset]"), run, ["train"], force=True)


def test_a_seed_of_its_own(finished_copy: Path) -> None:
    assert train.student_seed(recipe()) == 0 and train.student_seed(recipe("train.seed=5")) == 5
    first, again, other = (train.open_student(recipe(f"train.seed={seed}"))[0] for seed in (5, 5, 6))
    weights = [next(model.parameters()) for model in (first, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    # What is null is no part of a stage's identity, so that a new field makes no finished run stale.
    assert "seed" not in Train().fingerprinted() and Train(seed=5).fingerprinted()["seed"] == 5


def test_likeliest_tokens_are_asked_for_with_their_ids() -> None:
    sampling = Sampling(logprobs=True, top_logprobs=5)
    teacher = Teacher(provider="openai", model="m")
    assert openai.request(teacher, [], sampling, 0)["top_logprobs"] == 5
    assert "top_logprobs" not in openai.request(teacher, [], Sampling(logprobs=True), 0)
    asked = vllm.request(Teacher(provider="vllm", model="m", base_url="http://127.0.0.1:1/v1"), [], sampling, 0)
    assert asked["top_logprobs"] == 5 and asked["return_tokens_as_token_ids"] is True
    content = {"token": "token_id:17", "logprob": -0.5, "top_logprobs": [{"token": "token_id:9", "logprob": -1}]}
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": [content]}}
    (reply,) = openai.parse(200, json.dumps({"choices": [choice]}).encode()).replies
    top = {"token": None, "id": 9, "logprob": -1.0, "top": None}
    assert reply.logprobs == [{"token": None, "id": 17, "logprob": -0.5, "top": [top]}]
