"""train: methods beyond sft, rows that are too long, packing, early stopping, what cannot be done."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoints, training
from pipeline.errors import SeqkdError, UserError
from pipeline.recipe import Train
from pipeline.stages import train
from pipeline.stages.train import fit
from pipeline.teachers.local import Loaded, prepare
from pipeline.tokens import tokenize
from stages.test_fit import ROWS, SFT, WORDS, student, weights

FEW = {**SFT, "max_steps": 6, "logging_steps": 1}
ON_POLICY = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "bf16": False,
    "max_completion_length": 6,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A student that has learnt the colours, so that its probabilities say something."""
    folder = tmp_path_factory.mktemp("teacher")
    model, tokenizer = student(7)
    config = Train(sft={**SFT, "max_steps": 60})
    fit(model, tokenizer, ROWS, [], config, folder / "out", checkpoints=folder / "checkpoints")
    return prepare(model, tokenizer)


def trained(folder: Path, config: dict[str, Any], rows: Any = ROWS, **more: Any) -> dict[str, Any]:
    model, tokenizer = student()
    settings = {"seed": 1, "checkpoints": folder / "checkpoints"} | more
    return fit(model, tokenizer, rows, ROWS[:4], Train(**{"sft": FEW, **config}), folder / "out", **settings)


def logged(folder: Path, key: str) -> list[float]:
    events = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [event[key] for event in events if key in event]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_logits_brings_the_student_nearer_to_its_teacher(tmp_path: Path, teacher: Loaded, divergence: str) -> None:
    settings = {"divergence": divergence, "alpha": 1.0, "temperature": 2.0}
    config = {"method": "logits", "logits": settings, "sft": {**FEW, "max_steps": 20}}
    summary = trained(tmp_path, config, teacher=teacher)
    assert summary["soft_tokens"] == summary["tokens"] > 0
    apart = logged(tmp_path, "divergence")
    assert apart[-1] < apart[0] / 2 and all(value >= 0 for value in apart)


def test_without_its_share_the_teacher_changes_nothing(tmp_path: Path, teacher: Loaded) -> None:
    trained(tmp_path / "sft", {})
    trained(tmp_path / "logits", {"method": "logits", "logits": {"alpha": 0.0}}, teacher=teacher)
    assert logged(tmp_path / "logits", "loss") == pytest.approx(logged(tmp_path / "sft", "loss"), rel=1e-4)


def test_a_teacher_with_padded_rows_teaches_the_same(tmp_path: Path, teacher: Loaded) -> None:
    import copy

    wide = copy.deepcopy(teacher.model)
    wide.resize_token_embeddings(320)
    config = {"method": "logits", "logits": {"alpha": 0.7}}
    trained(tmp_path / "same", config, teacher=teacher)
    trained(tmp_path / "wide", config, teacher=Loaded(wide, teacher.tokenizer, "wide"))
    assert logged(tmp_path / "wide", "loss") == pytest.approx(logged(tmp_path / "same", "loss"), rel=1e-4)


def test_every_token_stored_is_the_whole_distribution(tmp_path: Path, teacher: Loaded) -> None:
    import torch

    _, tokenizer = student()
    tokens = tokenize(tokenizer, ROWS)
    rows = []
    for row, ids, start in zip(ROWS, tokens.rows, tokens.start, strict=True):
        with torch.no_grad():
            read = torch.tensor([ids["input_ids"]], device=teacher.model.device)
            scores = teacher.model(read).logits[0, start - 1 : -1].log_softmax(-1)
        logprobs = [
            {"token": None, "id": token, "logprob": 0.0}
            | {"top": [{"id": i, "logprob": value} for i, value in enumerate(place.tolist())]}
            for token, place in zip(ids["input_ids"][start:], scores, strict=True)
        ]
        rows.append({**row, "logprobs": logprobs})
    model, tokenizer = student()
    for name, source in (("teacher", "teacher"), ("stored", "stored")):
        model, tokenizer = student()
        config = Train(method="logits", logits={"source": source}, sft=FEW)
        folder = tmp_path / name
        fit(
            model,
            tokenizer,
            rows,
            [],
            config,
            folder / "out",
            teacher=teacher if source == "teacher" else None,
            seed=1,
            checkpoints=folder / "checkpoints",
        )
    assert logged(tmp_path / "stored", "loss") == pytest.approx(logged(tmp_path / "teacher", "loss"), rel=1e-3)


def test_a_batch_without_any_stored_token_keeps_the_plain_loss(tmp_path: Path) -> None:
    _, tokenizer = student()
    tokens = tokenize(tokenizer, ROWS)
    tops = [{"id": 7, "logprob": -0.5}, {"id": 9, "logprob": -2.0}]
    said = tokens.rows[0]["input_ids"][tokens.start[0] :]
    stored = [{"token": None, "id": token, "logprob": -0.5, "top": tops} for token in said]
    rows = [{**ROWS[0], "logprobs": stored}, *ROWS[1:]]
    config = {"method": "logits", "logits": {"source": "stored"}, "sft": {**FEW, "per_device_train_batch_size": 1}}
    model, tokenizer = student()
    places = {"checkpoints": tmp_path / "checkpoints", "seed": 1}
    summary = fit(model, tokenizer, rows, rows[:4], Train(**config), tmp_path / "out", **places)
    assert (summary["steps"], summary["soft_tokens"]) == (6, len(said)) and summary["eval_loss"] > 0


def stopped_and_resumed(folder: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """An unbroken training and one that was interrupted at step 5 end in the same bytes."""
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
    trained(folder / "whole", config, **more)

    def stop(event: Any) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder / "broken", config, log=stop, **more)
    assert trained(folder / "broken", config, **more)["resumed_from"] == 4
    assert weights(folder / "broken") == weights(folder / "whole")


def test_logits_resumes_to_the_same_bytes(tmp_path: Path, teacher: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_and_resumed(tmp_path, {"method": "logits"}, monkeypatch, teacher=teacher)


def test_on_policy_resumes_to_the_same_bytes(tmp_path: Path, teacher: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_and_resumed(tmp_path, {"method": "on_policy", "on_policy": ON_POLICY}, monkeypatch, teacher=teacher)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in (tmp_path / "whole" / "out").iterdir()
    }


def test_on_policy_brings_the_student_nearer_to_its_teacher(tmp_path: Path, teacher: Loaded) -> None:
    settings = {**ON_POLICY, "max_steps": 25, "per_device_train_batch_size": 8}
    trained(tmp_path, {"method": "on_policy", "on_policy": settings}, teacher=teacher)
    losses = logged(tmp_path, "loss")
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "on_policy", "on_policy": {"output_dir": "x"}}, "train.on_policy.output_dir: cannot be set here"),
        ({"method": "on_policy", "on_policy": {"betta": 1}}, "DistillationConfig has no such setting. Did you mean"),
        ({"method": "on_policy"}, "nothing to train on: no prompt leaves room.*max_completion_length .512."),
        ({"method": "on_policy", "on_policy": {"max_completion_length": None}}, "give a number of tokens"),
        ({"method": "on_policy", "too_long": "error"}, "row 0: its prompt of 17 tokens leaves no room for .*\\(512\\)"),
        (
            {"method": "on_policy", "on_policy": {**ON_POLICY, "per_device_train_batch_size": 64}},
            "nothing was trained: the 30 rows do not fill one batch",
        ),
        ({"method": "logits", "sft": {**FEW, "packing": True}}, "take packing"),
        ({"early_stopping": {}, "sft": {**FEW, "metric_for_best_model": "x"}}, "metric_for_best_model: .*'eval_x'"),
        ({"early_stopping": {}, "sft": {**FEW, "eval_steps": 0.3}}, "TRL refuses|refuses these settings"),
        ({"sft": {**FEW, "report_to": "clearml"}}, "report_to: .*clearml"),
        ({"sft": {**FEW, "packing": True, "packing_strategy": "tight"}}, "Invalid packing strategy 'tight'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, teacher: Loaded, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(tmp_path, config, teacher=teacher)


LONG = [
    *ROWS[:6],
    {
        "id": "long",
        "prompt": [{"role": "user", "content": "What is the colour of number 1?"}],
        "completion": [{"role": "assistant", "content": "red blue green gold grey pink teal"}],
    },
]


def test_rows_that_are_too_long_are_cut_dropped_or_an_error() -> None:
    _, tokenizer = student()
    whole = tokenize(tokenizer, LONG)
    limit = max(len(row["input_ids"]) for row in whole.rows[:6])
    assert len(whole.rows[6]["input_ids"]) > limit
    cut = tokenize(tokenizer, LONG, limit=limit)
    assert (len(cut.rows), cut.cut, cut.dropped) == (7, 1, 0)
    kept = [label for label in cut.rows[6]["labels"] if label != -100]
    # It goes on and does not end: nothing teaches the student to stop in the middle.
    assert kept and tokenizer.eos_token_id not in kept and cut.rows[6]["input_ids"][-1] == kept[-1]
    assert all(row["labels"][-1] == tokenizer.eos_token_id for row in cut.rows[:6])
    dropped = tokenize(tokenizer, LONG, limit=limit, too_long="drop")
    assert (len(dropped.rows), dropped.cut, dropped.dropped) == (6, 0, 1) and 6 not in dropped.source
    nothing_left = tokenize(tokenizer, LONG, limit=whole.start[6])
    assert nothing_left.dropped == 7
    with pytest.raises(UserError, match="row long has .* tokens, and only .* train.too_long"):
        tokenize(tokenizer, LONG, limit=limit, too_long="error")


def test_the_students_context_is_a_limit_too(tmp_path: Path) -> None:
    endless = {"prompt": ROWS[0]["prompt"], "completion": [{"role": "assistant", "content": "red " * 100}]}
    summary = trained(tmp_path, {}, [*ROWS, endless])
    assert (summary["cut"], summary["dropped"]) == (1, 0)
    assert "1 rows longer than the context were cut" in train._note({**summary, "rows": 31})


CHAT = {
    "prompt": [
        {"role": "user", "content": "What is the colour of number 1?"},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And of number 2?"},
    ],
    "completion": [{"role": "assistant", "content": "green"}],
}


def test_the_loss_can_be_on_every_turn_of_the_assistant() -> None:
    _, tokenizer = student()

    def said(loss_on: str) -> str:
        (row,) = tokenize(tokenizer, [CHAT], loss_on=loss_on).rows
        return tokenizer.decode([label for label in row["labels"] if label != -100])

    assert said("completion") == "green<|end|>"
    assert said("assistant") == "blue<|end|>green<|end|>"
    # The same tokens as TRL finds by the generation markers of this template.
    marked = tokenizer.apply_chat_template(
        [*CHAT["prompt"], *CHAT["completion"]], return_assistant_tokens_mask=True, return_dict=True
    )
    (row,) = tokenize(tokenizer, [CHAT], loss_on="assistant").rows
    assert [int(label != -100) for label in row["labels"]] == marked["assistant_masks"]
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message.content +", "(message.content if loop.last else '') +"
    )
    with pytest.raises(UserError, match="loss_on: assistant does not go with this student"):
        tokenize(tokenizer, [CHAT], loss_on="assistant")


def test_a_conversation_may_begin_with_the_assistant() -> None:
    _, tokenizer = student()
    greeted = {**CHAT, "prompt": [{"role": "assistant", "content": "gold"}, *CHAT["prompt"]]}
    (row,) = tokenize(tokenizer, [greeted], loss_on="assistant").rows
    said = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert said == "gold<|end|>blue<|end|>green<|end|>"


def test_a_turn_without_its_end_is_refused_in_the_middle_too() -> None:
    _, tokenizer = student()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{- message.content + '<|end|>' -}}", "{{- message.content + ('<|end|>' if loop.last else '<|user|>') -}}"
    )
    assert tokenize(tokenizer, [CHAT]).rows
    with pytest.raises(UserError, match="never learn to stop|earlier turn in another way"):
        tokenize(tokenizer, [CHAT], loss_on="assistant")


def test_packed_rows_do_not_see_each_other(tmp_path: Path) -> None:
    sft = {**FEW, "max_length": 64, "per_device_train_batch_size": 30, "max_steps": 1, "learning_rate": 1e-9}
    trained(tmp_path / "apart", {"sft": sft})
    packed = {**sft, "packing": True, "eval_packing": False}
    trained(tmp_path / "packed", {"sft": packed})
    # One step over all rows, in one order or another: the loss of a row is the same wherever it lies. Dropout is what
    # differs, so it is off.
    assert logged(tmp_path / "packed", "loss")[0] == pytest.approx(logged(tmp_path / "apart", "loss")[0], rel=2e-2)


def test_packing_gives_each_row_the_loss_it_has_alone(tmp_path: Path) -> None:
    import torch
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model, tokenizer = student()
    model.eval()
    tokens = tokenize(tokenizer, ROWS[:6])
    packed = pack_dataset(train._dataset(tokens.rows), 64, "bfd")
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=True)(list(packed))
    with torch.no_grad():
        together = model(**{name: batch[name] for name in ("input_ids", "position_ids")}, use_cache=False).logits[0]
        alone = torch.cat([model(torch.tensor([row])).logits[0] for row in _rows_of(batch)])
    assert together.allclose(alone, atol=1e-4) and (batch["position_ids"] == 0).sum() == 6


def _rows_of(batch: Any) -> list[list[int]]:
    bounds = batch["cu_seq_lens_q"].tolist()
    return [batch["input_ids"][0, a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


STOPPING = {
    "sft": {**SFT, "max_steps": 60, "learning_rate": 0.2, "lr_scheduler_type": "constant"},
    "early_stopping": {"patience": 2, "eval_steps": 2},
}


def test_early_stopping_keeps_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = trained(tmp_path / "whole", STOPPING)
    losses = logged(tmp_path / "whole", "eval_loss")
    assert summary["steps"] == summary["best_step"] + 4 < 60
    assert summary["eval_loss"] == pytest.approx(min(losses)) == losses[-1] < losses[-2]
    assert f"(lowest, at step {summary['best_step']:,})" in train._note({**summary, "rows": 30})

    def stop(event: Any) -> None:
        if event["step"] == summary["best_step"] + 3:  # one evaluation has been waited for
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", STOPPING, log=stop)
    resumed = trained(tmp_path / "broken", STOPPING)
    assert resumed["steps"] == summary["steps"] and weights(tmp_path / "broken") == weights(tmp_path / "whole")
    model, tokenizer = student()
    with pytest.raises(UserError, match="early_stopping needs validation rows"):
        fit(model, tokenizer, ROWS, [], Train(early_stopping={}), tmp_path / "x", checkpoints=tmp_path / "y")
    long = [{**ROWS[0], "prompt": [{"role": "user", "content": "red " * 100}]}]
    with pytest.raises(UserError, match="early_stopping: all validation rows are too long"):
        fit(model, tokenizer, ROWS, long, Train(early_stopping={}), tmp_path / "x", checkpoints=tmp_path / "y")


SHORT = {**STOPPING, "sft": {**STOPPING["sft"], "max_steps": 6}}  # the model of step 2 is the best of 2, 4 and 6


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_best_model_that_is_lost_before_a_resume_is_not_said_to_be_the_student(tmp_path: Path, damage: str) -> None:
    def stop(event: Any) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, SHORT, log=stop)
    lost = tmp_path / "checkpoints/checkpoint-2/model.safetensors"  # the best one; 4 is whole
    os.truncate(lost, 1000) if damage == "cut off" else lost.unlink()
    summary = trained(tmp_path, SHORT)
    losses = dict(zip(range(2, summary["steps"] + 1, 2), logged(tmp_path, "eval_loss"), strict=False))
    assert (summary["resumed_from"], summary["lost_step"], min(losses, key=losses.__getitem__)) == (4, 2, 2)
    assert summary["eval_loss"] == pytest.approx(losses[summary["best_step"]])
    assert summary["best_step"] == min((step for step in losses if step > 2), key=losses.__getitem__)
    said = f"(at step {summary['best_step']}, for the better one of step 2 has no whole checkpoint)"
    assert said in train._note({**summary, "rows": 30})


def test_a_best_model_that_is_lost_in_the_training_stops_it(tmp_path: Path) -> None:
    for damage in ("cut off", "gone"):
        weights = tmp_path / damage / "checkpoints/checkpoint-2/model.safetensors"

        def lose(event: Any, weights: Path = weights, damage: str = damage) -> None:
            if event["step"] == 6 and weights.exists():  # before the end, where it is taken
                os.truncate(weights, 1000) if damage == "cut off" else weights.unlink()

        with pytest.raises(SeqkdError, match="checkpoint-2, .*best model, is damaged. Run the same command again"):
            trained(tmp_path / damage, SHORT, log=lose)
        assert not (tmp_path / damage / "out/model.safetensors").exists()
        again = trained(tmp_path / damage, SHORT)  # from the start: that of step 4 had made room for that of 6
        assert (again["resumed_from"], again["best_step"], again["lost_step"]) == (None, 2, None)


def test_a_better_model_after_the_lost_one_is_the_best(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, STOPPING, log=stop)
    (tmp_path / "checkpoints/checkpoint-2/model.safetensors").unlink()
    summary = trained(tmp_path, STOPPING)
    assert summary["lost_step"] is None and summary["best_step"] > 6
    assert summary["eval_loss"] == pytest.approx(min(logged(tmp_path, "eval_loss")))


def test_a_best_model_that_was_never_saved_is_not_said_to_be_the_student(tmp_path: Path) -> None:
    sft = {**SHORT["sft"], "save_steps": 4}
    summary = trained(tmp_path, {**SHORT, "sft": sft})
    losses = dict(zip((2, 4, 6), logged(tmp_path, "eval_loss"), strict=False))
    assert losses[2] < losses[6] < losses[4]
    assert (summary["best_step"], summary["lost_step"]) == (6, 2)
    assert summary["eval_loss"] == pytest.approx(losses[6])


def test_a_training_with_early_stopping_can_be_moved(tmp_path: Path) -> None:
    def stop(event: Any) -> None:
        if event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "here", STOPPING, log=stop)
    (tmp_path / "here").rename(tmp_path / "there")
    summary = trained(tmp_path / "there", STOPPING)
    assert (summary["best_step"], summary["lost_step"]) == (2, None)
    assert summary["eval_loss"] == pytest.approx(min(logged(tmp_path / "there", "eval_loss")))


@pytest.mark.parametrize(
    "error",
    [
        "CUDA",
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_three_settings(error: Any) -> None:
    import torch

    with pytest.raises(UserError) as caught, training.memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB") if error == "CUDA" else error
    for setting in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_length",
    ):
        assert setting in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"), training.memory_errors():
        raise RuntimeError("shapes cannot be multiplied")


def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    import torch

    with pytest.raises(UserError, match="ran out of memory.*can't allocate"), training.memory_errors():
        torch.empty(2**50)


def test_a_base_model_gets_a_chat_template(tmp_path: Path) -> None:
    from pipeline.teachers.local import answer, load

    model, tokenizer = student()
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="no chat template, so it is a base model. Set train.chat_template"):
        train.load_student(str(tmp_path / "base"), None, 0)
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    _, mine = train.load_student(str(tmp_path / "base"), None, 0, template=str(tmp_path / "mine.jinja"))
    assert mine.chat_template.startswith("{% for m")
    with pytest.raises(UserError, match="chat_template: .*none.jinja: cannot be read"):
        train.load_student(str(tmp_path / "base"), None, 0, template=str(tmp_path / "none.jinja"))

    model, tokenizer = train.load_student(str(tmp_path / "base"), None, 0, template="plain")
    config = Train(sft={**SFT, "max_steps": 60})
    fit(model, tokenizer, ROWS, [], config, tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    loaded = load(tmp_path / "out")  # the template is saved with it
    (reply,) = answer(loaded, [ROWS[3]["prompt"]], temperature=0, top_p=1, max_tokens=8, seeds=[0])
    assert reply["text"] in WORDS and reply["finish_reason"] == "stop"


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize goes with lora"):
        Train(quantize="4bit")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        train.load_student("seqkd-nobody/no-such-model", None, 0)
    model, tokenizer = student()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (tmp_path / "own").mkdir()
    for path in tmp_path.glob("*.*"):
        (tmp_path / "own" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(UserError, match="set trust_remote_code: true"):
        train.load_student(str(tmp_path / "own"), None, 0)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        train.load_student(str(tmp_path), None, 0)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64},
    "qwen2": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64},
    "qwen3": {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
    "stablelm": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_train_save_reload_and_answer(tmp_path: Path, teacher: Loaded, family: str) -> None:
    from pipeline.teachers.embedded import _random_model
    from pipeline.teachers.local import answer, load

    _, tokenizer = student()
    for method in ("logits", "on_policy"):  # sft: test_families.py
        model, tokenizer = _random_model({"model_type": family, **FAMILIES[family]}, tokenizer, 0)
        settings = {"sft": {**FEW, "max_steps": 2}, "on_policy": {**ON_POLICY, "max_steps": 2}}
        folder = tmp_path / method
        config = Train(method=method, **settings)
        fit(model, tokenizer, ROWS, [], config, folder / "out", teacher=teacher, checkpoints=folder / "checkpoints")
        loaded = load(folder / "out")
        assert type(loaded.model) is type(model)
        (reply,) = answer(loaded, [ROWS[0]["prompt"]], temperature=0, top_p=1, max_tokens=4, seeds=[0])
        assert reply["finish_reason"] in ("stop", "length")
