"""fit: TRL's SFTTrainer on a tiny model, killed, damaged and misused."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import last_checkpoint
from pipeline.errors import SeqkdError, UserError
from pipeline.recipe import Train
from pipeline.stages import train
from pipeline.stages.train import fit
from pipeline.tokens import tokenize
from pipeline.training import DivergedError

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,  # so that a resume has to restore the random generators too
}
SFT = {"max_steps": 30, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 5, "bf16": False}
WORDS = ["red", "blue", "green", "gold", "grey", "pink", "teal"]
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is the colour of number {number}?"}],
        "completion": [{"role": "assistant", "content": WORDS[number % 7]}],
    }
    for number in range(30)
]


def student(seed: int = 0) -> tuple[Any, Any]:
    from pipeline.facts import Fact
    from pipeline.recipe import Embedded
    from pipeline.teachers.embedded import _random_model, train_tokenizer

    facts = [
        Fact("", "colour", "", str(i), (WORDS[i % 7],), ("What is the colour of {{ subject }}?",), ()) for i in range(9)
    ]
    tokenizer = train_tokenizer(facts, Embedded(**{"vocab_size": 300}))
    return _random_model(MODEL, tokenizer, seed)


def run(folder: Path, sft: dict[str, Any] | None = None, rows: Any = ROWS, **more: Any) -> dict[str, Any]:
    model, tokenizer = student()
    config = Train(sft=SFT if sft is None else sft, **more.pop("config", {}))
    settings = {"seed": 1, "checkpoints": folder / "checkpoints"} | more
    return fit(model, tokenizer, rows, ROWS[:4], config, folder / "out", **settings)


def weights(folder: Path) -> bytes:
    return (folder / "out" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    folder = tmp_path_factory.mktemp("fit")
    events: list[Any] = []
    return folder, run(folder, log=events.append), events


def test_the_student_is_a_plain_model_folder(unbroken: Any) -> None:
    from pipeline.teachers.local import answer, load

    folder, summary, events = unbroken
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "metrics.jsonl"} <= names
    loaded = load(folder / "out")
    assert loaded.model.num_parameters() == summary["parameters"] == summary["trainable"]
    assert (
        answer(loaded, [ROWS[0]["prompt"]], temperature=0, top_p=1, max_tokens=8, seeds=[0])[0]["finish_reason"]
        == "stop"
    )
    assert (summary["steps"], summary["resumed_from"], summary["dropped"]) == (30, None, 0)
    assert summary["eval_loss"] > 0 and summary["train_loss"] < 6
    assert [event["step"] for event in events if set(event) == {"step", "steps"}] == list(range(1, 31))
    assert all(event["steps"] == 30 for event in events)


def test_metrics_are_lines_of_sorted_json(unbroken: Any) -> None:
    lines = (unbroken[0] / "out" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["step"] for event in events if "loss" in event] == [1, 5, 10, 15, 20, 25, 30]
    assert all(list(event) == sorted(event) for event in events)
    assert {"learning_rate", "grad_norm", "loss", "step"} <= set(events[0]) and "num_tokens" not in events[0]
    assert any("eval_loss" in event for event in events)


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    model, tokenizer = student()
    tokenizer.add_tokens(["the colour"])
    with pytest.raises(UserError, match=r"train.student: .*'the colour'.* is number \d+.*resize_token_embeddings"):
        fit(model, tokenizer, ROWS, [], Train(sft=SFT), tmp_path / "out", checkpoints=tmp_path / "checkpoints")


KILLED = """
import sys, os, signal
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import test_fit
from pipeline import checkpoints
checkpoints.SAVE_EVERY_S = 0.0
def log(event):
    if event["step"] == 22:
        os.kill(os.getpid(), signal.SIGKILL)
test_fit.run(Path(sys.argv[1]), log=log)
"""


def test_killed_and_resumed_gives_the_same_bytes(unbroken: Any, tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    code = KILLED.format(tests=str(here.parent), root=str(here.parent.parent.parent))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-20"
    assert len(list((tmp_path / "checkpoints").glob("checkpoint-*"))) == 2

    summary = run(tmp_path)
    assert summary["resumed_from"] == 20 and summary["steps"] == 30
    assert weights(tmp_path) == weights(unbroken[0])
    losses = [
        [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for folder in (tmp_path, unbroken[0])
    ]
    assert losses[0] == losses[1]


def test_the_seed_decides(unbroken: Any, tmp_path: Path) -> None:
    run(tmp_path / "same")
    run(tmp_path / "other", seed=2)
    assert weights(tmp_path / "same") == weights(unbroken[0]) != weights(tmp_path / "other")


def test_lora_without_settings_of_its_own_is_lora(tmp_path: Path) -> None:
    summary = run(tmp_path, config={"lora": {}})
    assert summary["trainable"] < summary["parameters"] / 2


def test_lora_is_merged_into_a_plain_folder(tmp_path: Path) -> None:
    summary = run(tmp_path, config={"lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}})
    assert summary["trainable"] < summary["parameters"] / 10
    assert not (tmp_path / "out" / "adapter_config.json").exists() and weights(tmp_path)
    from pipeline.teachers.local import load

    assert load(tmp_path / "out").model.num_parameters() == summary["parameters"]


def test_lora_on_the_embedding_alone_is_merged_where_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output has the embedding's weights, and had no adapter: merged into both, the student was another one."""
    import torch

    from pipeline import training
    from pipeline.teachers.local import load

    scores = []
    real, ids = training.save, torch.tensor([[5, 20, 40, 9]])

    def save(trainer: Any, *more: Any) -> None:
        with torch.no_grad():
            scores.append(trainer.model.eval()(ids.to(trainer.model.device)).logits.cpu())
        real(trainer, *more)

    monkeypatch.setattr(training, "save", save)
    run(
        tmp_path, {**SFT, "learning_rate": 0.1}, config={"lora": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}}
    )
    loaded = load(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids.to(loaded.model.device)).logits.cpu(), scores[0])


def test_a_model_that_cannot_leave_out_logits_is_trained_as_trl_does(tmp_path: Path) -> None:
    model, _ = student()
    inner = model.forward

    def forward(input_ids: Any, attention_mask: Any = None, labels: Any = None, use_cache: Any = None) -> Any:
        return inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=use_cache)

    model.forward = forward
    args = train.trl_settings.arguments(Train(sft=SFT), seed=0, checkpoints=tmp_path, validated=False)
    assert train._trainer(args, model).__name__ == "SFTTrainer"
    assert train._trainer(args, student()[0]).__name__ == ("CompletionTrainer" if args.use_cpu else "SFTTrainer")


def test_a_training_of_no_step_is_said(tmp_path: Path) -> None:
    sft = {**SFT, "dataloader_drop_last": True, "per_device_train_batch_size": 64}
    with pytest.raises(UserError, match="nothing was trained: the 30 rows do not fill one batch"):
        run(tmp_path, sft)
    assert run(tmp_path / "few", {**SFT, "dataloader_drop_last": True, "max_steps": 2})["steps"] == 2


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="diverged.*learning_rate") as caught:
        run(tmp_path, {**SFT, "learning_rate": 1e30, "max_grad_norm": 0})
    assert isinstance(caught.value, SeqkdError)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_template_without_end_of_turn_is_refused(tmp_path: Path) -> None:
    model, tokenizer = student()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    with pytest.raises(UserError, match="never learn to stop"):
        fit(model, tokenizer, ROWS, [], Train(sft=SFT), tmp_path / "out", checkpoints=tmp_path / "checkpoints")


def test_labels_are_the_answer_and_its_end() -> None:
    _, tokenizer = student()
    tokens = tokenize(tokenizer, ROWS, limit=64)
    assert (tokens.dropped, tokens.cut) == (0, 0)
    for row, source in zip(tokens.rows, ROWS, strict=True):
        kept = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(kept) == source["completion"][0]["content"] + "<|end|>"
        assert len(row["labels"]) == len(row["input_ids"])


def test_the_cheaper_loss_is_trls_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft = {**SFT, "max_steps": 10}
    ours = run(tmp_path / "ours", sft)
    from trl import SFTTrainer

    monkeypatch.setattr(train, "_trainer", lambda args, student: SFTTrainer)
    theirs = run(tmp_path / "theirs", sft)
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)


def test_a_loss_that_turns_bad_later_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
    model, tokenizer = student()

    def poison(event: Any) -> None:
        if event["step"] == 12:
            next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(DivergedError, match=r"at step 15\. .*\(.*/checkpoint-10\) on\. Lower train.sft.learning_rate"):
        fit(
            model,
            tokenizer,
            ROWS,
            ROWS[:4],
            Train(sft=SFT),
            tmp_path / "out",
            checkpoints=tmp_path / "checkpoints",
            log=poison,
        )
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-10"
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("setting", ["bf16", "gradient_checkpointing"])
def test_settings_for_a_gpu_go_through_on_a_cpu(unbroken: Any, tmp_path: Path, setting: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("compared with what the CPU gives")
    summary = run(tmp_path, {**SFT, setting: True, "use_cpu": True})
    assert summary["train_loss"] == pytest.approx(unbroken[1]["train_loss"], rel=0.05)
    # Activations that are computed a second time are the same; in bfloat16 they are not, but the weights stay float32.
    assert (weights(tmp_path) == weights(unbroken[0])) == (setting == "gradient_checkpointing")
    assert len(weights(tmp_path)) == len(weights(unbroken[0]))
