"""The recipe as TRL's settings: what is wrong is named, what is not said has a default, and TRL alone can read them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import flow
from pipeline.errors import UserError
from pipeline.recipe import Train, load_recipe
from pipeline.tokens import PLAIN, tokenize
from pipeline.trl_settings import arguments, lora_config, write_yaml
from stages.test_fit import SFT, run, student
from stages.test_methods import CHAT

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"learning_rat": 1}, "train.sft.learning_rat: .* Did you mean 'learning_rate'"),
        ({"output_dir": "x"}, "train.sft.output_dir: cannot be set here"),
        ({"lr_scheduler_type": "cosinus"}, "train.sft: trl.SFTConfig refuses"),
        ({"max_length": 3}, "nothing to train on: no row has a completion within 3 tokens"),
        ({"max_length": -1}, "train.sft.max_length: -1: must be 1 or more"),
        ({"max_steps": "ten"}, "train.sft.max_steps: 'ten': input should be a valid integer"),
        ({"learning_rate": None}, "train.sft.learning_rate: None: input should be a valid number"),
        ({"packing": "false"}, "train.sft.packing: 'false': input should be a valid boolean"),
        ({"per_device_train_batch_size": 0}, "train.sft.per_device_train_batch_size: 0: must be 1 or more"),
        ({"save_only_model": True}, "train.sft.save_only_model: cannot be set here"),
        ({"truncation_mode": "keep_end"}, "train.sft.truncation_mode: cannot be set here: .*too_long"),
        ({"deepspeed": "missing.json"}, "train.sft: trl.SFTConfig refuses these settings"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot begin with these settings: One of min_lr"),
        ({"lr_scheduler_kwargs": {"nope": 1}}, "cannot begin with these settings: .*'nope'"),
        ({"optim": "galore_adamw"}, "cannot begin with these settings: .*galore_torch"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"x": 1}}, "cannot begin .*: x"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, {**SFT, **more})


@pytest.mark.parametrize(
    ("wanted", "packages", "told"),
    [
        ("tensorboard", ["tensorboard", "tensorboardX"], "pip install 'seqkd\\[tensorboard\\]'"),
        ("wandb", ["wandb"], "pip install wandb"),
        ("trackio", ["trackio"], "pip install trackio"),
        ("flyte", ["flytekit"], "pip install flytekit"),
    ],
)
def test_a_report_without_its_package_says_what_to_install(
    tmp_path: Path, wanted: str, packages: list[str], told: str
) -> None:
    if any(importlib.util.find_spec(name) for name in packages):
        pytest.skip(f"{wanted} is here")
    with pytest.raises(UserError, match=f"^train.sft.report_to: .*{told}"):
        run(tmp_path, {**SFT, "report_to": wanted})


def test_wrong_lora_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.lora.rr: .* Did you mean 'r'|train.lora.rr: "):
        run(tmp_path, config={"lora": {"rr": 4}})
    for wrong in ({"r": "x"}, {"modules_to_save": "lm_head"}, {"rank_pattern": "x"}, {"bias": "nope"}):
        with pytest.raises(UserError, match=f"train.lora.{next(iter(wrong))}: .*: input should be"):
            lora_config(wrong)
    with pytest.raises(UserError, match=r"train\.lora\.inference_mode: nothing would be trained"):
        lora_config({"inference_mode": True})
    with pytest.raises(UserError, match=r"train\.lora: peft reads a name there as a pattern"):
        run(tmp_path, config={"lora": {"target_modules": "q_proj("}})
    with pytest.raises(UserError, match=r"train\.lora\.lora_bias: .* could not be merged"):
        run(tmp_path, config={"lora": {"lora_bias": True}})
    assert lora_config({"init_lora_weights": "pissa_niter_4"}).init_lora_weights == "pissa_niter_4"


def test_numbers_may_be_written_as_they_are_thought(tmp_path: Path) -> None:
    sft = {"max_steps": 1e3, "warmup_steps": 0.1, "learning_rate": 1, "eval_steps": None, "lr_scheduler_kwargs": None}
    assert arguments(Train(sft=sft), seed=0, checkpoints=tmp_path, validated=False).max_steps == 1000


def test_nothing_is_reported_anywhere_by_default(tmp_path: Path) -> None:
    args = arguments(Train(), seed=0, checkpoints=tmp_path, validated=False)
    assert (
        args.report_to in ("none", [])
        and not args.push_to_hub
        and args.disable_tqdm
        and not args.logging_nan_inf_filter
    )


def test_trl_trains_from_the_yaml_as_it_is(finished_copy: Path) -> None:
    stage = finished_copy / "data/runs/tiny/train"
    settings = yaml.safe_load((stage / "trl_sft.yaml").read_text())
    assert settings["max_steps"] == 100 and settings["datasets"][0]["data_files"] == "../assemble/train.parquet"
    assert settings["max_length"] == 64  # the student's context, below TRL's default
    # Moved as a whole, it runs where it is.
    (finished_copy / "data/runs/tiny").rename(finished_copy / "moved")
    command = [str(BIN / "trl"), "sft", "--config", "trl_sft.yaml", "--max_steps", "2"]
    done = subprocess.run(
        command, cwd=finished_copy / "moved/train", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (finished_copy / "moved/trl_sft/model.safetensors").is_file()


def read_by_trl(settings: Train, out: Path, context: int = 2048) -> tuple[Any, Any]:
    """What `trl sft --config trl_sft.yaml` makes of these settings: its SFTConfig and its peft.LoraConfig."""
    from trl import get_peft_config
    from trl.scripts.sft import make_parser

    write_yaml(settings, out, seed=0, rows=out.parent / "assemble" / "train.parquet", context=context)
    _, args, model, _ = make_parser().parse_args_and_config(["--config", str(out / "trl_sft.yaml")])
    return args, get_peft_config(model)


@pytest.mark.parametrize("lora", [{}, {"r": 4}, {"lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj"]}])
def test_trl_alone_trains_the_same_lora(tmp_path: Path, lora: dict[str, Any]) -> None:
    _, theirs = read_by_trl(Train(lora=lora), tmp_path)
    assert theirs.to_dict() == lora_config(lora).to_dict()


@pytest.mark.parametrize("template", [None, PLAIN])
def test_trl_alone_puts_the_loss_on_the_same_turns(tmp_path: Path, template: str | None) -> None:
    import datasets
    from trl import SFTTrainer

    model, tokenizer = student()
    tokenizer.chat_template = template or tokenizer.chat_template
    for loss_on in ("completion", "assistant"):
        args, _ = read_by_trl(Train(loss_on=loss_on, sft={"use_cpu": True}), tmp_path)
        rows = datasets.Dataset.from_list([CHAT])
        theirs = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer).train_dataset[0]
        (ours,) = tokenize(tokenizer, [CHAT], loss_on=loss_on).rows
        assert theirs["input_ids"] == ours["input_ids"] and theirs["labels"] == ours["labels"]


def test_no_word_on_the_loss_is_trls_own(tmp_path: Path) -> None:
    run(tmp_path / "silent", {**SFT, "max_steps": 2})
    run(tmp_path / "null", {**SFT, "max_steps": 2, "completion_only_loss": None})
    lines = [(tmp_path / name / "out/metrics.jsonl").read_text().splitlines()[0] for name in ("silent", "null")]
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_trl_alone_finds_the_files_that_the_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accelerator.json").write_text('{"even_batches": false}')
    (tmp_path / "stage").mkdir()
    args, _ = read_by_trl(Train(sft={"accelerator_config": "accelerator.json"}), tmp_path / "stage")
    assert args.accelerator_config.even_batches is False
    assert str(tmp_path / "accelerator.json") in (tmp_path / "stage/trl_sft.yaml").read_text()


def test_trl_alone_does_not_ask_for_rows_that_it_does_not_get(tmp_path: Path) -> None:
    sft = {"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True, "do_eval": True, "max_steps": 10}
    args, _ = read_by_trl(Train(sft=sft), tmp_path)
    assert args.eval_strategy == "no" and not args.eval_on_start and args.max_steps == 10


@pytest.mark.parametrize(
    ("sft", "context", "limit"),
    [({}, 64, 64), ({}, 4096, 1024), ({"max_length": 32}, 64, 32), ({"max_length": None}, 64, 64)],
)
def test_trl_alone_cuts_rows_where_the_stage_does(tmp_path: Path, sft: Any, context: int, limit: int) -> None:
    args, _ = read_by_trl(Train(sft=sft), tmp_path, context)
    assert args.max_length == limit


@pytest.mark.parametrize(
    ("packing", "context"),
    [({}, 12), ({"packing": True}, 12), ({"packing": True, "packing_strategy": "wrapped"}, 13)],
)
def test_trl_alone_trains_a_student_of_a_small_context_on_long_rows(
    finished_copy: Path, packing: dict[str, Any], context: int
) -> None:
    """On the same batches, or packs: the losses are the stage's."""
    student = {"model_type": "gpt2", "n_positions": context, "n_embd": 16, "n_layer": 1, "n_head": 1}
    sft = {"max_steps": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 8, **packing}
    recipe = load_recipe(Path("tiny.yaml"), ["train.baselines=[]", f"train.student={student}", f"train.sft={sft}"])
    manifest = flow.run_stages(recipe, flow.run_folder("tiny"), ["train"], force=True)
    assert bool(manifest["train"]["counts"]["training"]["student"]["cut"]) == (context == 12)
    command = [str(BIN / "trl"), "sft", "--config", "trl_sft.yaml"]
    stage = finished_copy / "data/runs/tiny/train"
    done = subprocess.run(command, cwd=stage, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    history = json.loads((stage.parent / "trl_sft/checkpoint-8/trainer_state.json").read_text())["log_history"]
    ours = [event["loss"] for line in (stage / "metrics.jsonl").open() if "loss" in (event := json.loads(line))]
    assert ours == pytest.approx([event["loss"] for event in history if "loss" in event], rel=1e-3)
