"""The recipe's `train` section as TRL's settings: arguments for its trainers, LoRA for peft, and the YAML that its own
command reads."""

import json
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline import artifacts
from pipeline.errors import UserError, nearest
from pipeline.recipe import Train
from pipeline.tokens import chat_template

# What the run decides itself. TRL would prepare rows in another way for the others, or publish the model.
OWNED = {
    "output_dir": "the run decides where files go",
    "seed": "set train.seed, or `seed` at the top of the recipe",
    "data_seed": "set train.seed, or `seed` at the top of the recipe",
    "resume_from_checkpoint": "a killed training resumes by itself",
    "assistant_only_loss": "set train.loss_on: assistant, which needs no markers in the chat template",
    "chat_template_path": "set train.chat_template, or put the template into the student's folder",
    "eos_token": "set it in the student's tokenizer",
    "dataset_kwargs": "the rows are tokenized before TRL gets them",
    "dataset_num_proc": "the rows are tokenized before TRL gets them",
    "model_init_kwargs": "the student is loaded before TRL gets it",
    "teacher_model_name_or_path": "set train.teacher",
    "teacher_model_init_kwargs": "the teacher is loaded before TRL gets it",
    "push_to_hub": "publish the finished folder yourself, so that nothing leaves this machine by accident",
    "remove_unused_columns": "the rows have no column that the trainer does not use",
    "load_best_model_at_end": "set train.early_stopping",
    "save_only_model": "a killed training could not go on from such a checkpoint as if nothing had happened",
    "truncation_mode": "the rows are cut at their end before TRL gets them; see train.too_long",
    "trust_remote_code": "set train.trust_remote_code",
}
# peft.LoraConfig's fields as trl.ModelConfig calls them; TRL's command line has no others.
_TRL_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "task_type": "lora_task_type",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}

# With 0 of them a training fails in the middle or does nothing; a negative length would cut the ends of all turns off.
_AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "max_completion_length",
    "pad_to_multiple_of",
)
# Settings that may be the path of a file.
_FILES = ("deepspeed", "fsdp_config", "accelerator_config")

# Of train.sft, not in trl_sft.yaml: `trl sft` gets no validation rows, and stops where it is to evaluate without any.
_VALIDATION = ("eval_strategy", "eval_on_start", "do_eval")


def section(config: Train) -> str:
    """The field of the recipe that goes to TRL."""
    return "on_policy" if config.method == "on_policy" else "sft"


def arguments(config: Train, *, seed: int, checkpoints: Path, validated: bool) -> Any:
    """trl.SFTConfig, or trl.DistillationConfig for the method on_policy: defaults for this machine, the recipe's
    settings on top. `validated`: whether there are validation rows. Raises UserError for an unknown or owned key."""
    import dataclasses

    import trl

    field = section(config)
    made = trl.DistillationConfig if field == "on_policy" else trl.SFTConfig
    given: Mapping[str, Any] = getattr(config, field)
    known = {one.name for one in dataclasses.fields(made) if one.init}
    for key in given:
        place = f"train.{field}.{key}"
        if key not in known:
            raise UserError(f"{place}: trl.{made.__name__} has no such setting.{nearest(key, known - set(OWNED))}")
        if key in OWNED:
            raise UserError(f"{place}: cannot be set here: {OWNED[key]}.")
    _check_types(f"train.{field}", given, made)
    for key in _AT_LEAST_ONE:
        if isinstance(given.get(key), int | float) and given[key] < 1:
            raise UserError(f"train.{field}.{key}: {given[key]}: must be 1 or more.")
    defaults: dict[str, Any] = for_this_machine() | {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # it would hide a NaN behind the average of earlier losses
        "logging_first_step": True,
        "save_strategy": "no",  # saved by the clock instead: see pipeline/checkpoints.py
        "save_total_limit": 2,
        "ddp_find_unused_parameters": False,
    }
    if field == "sft":
        defaults["completion_only_loss"] = True
    stopping = config.early_stopping
    if stopping:
        if not validated:
            raise UserError("train.early_stopping needs validation rows: raise assemble.validation_fraction.")
        defaults |= {"eval_strategy": "steps", "eval_steps": stopping.eval_steps, "save_strategy": "steps"}
        # Each evaluated model is a checkpoint, for the best of them is taken in the end.
        defaults |= {"save_steps": stopping.eval_steps, "load_best_model_at_end": True}
        defaults |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
        defaults["restore_callback_states_from_checkpoint"] = True  # how long it has waited
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed settings, still TRL's own defaults
            owned = {"output_dir": str(checkpoints), "seed": seed, "data_seed": seed}
            args = made(**{**defaults, **given, **owned})
    except (TypeError, ValueError, AssertionError, ImportError, OSError) as error:
        raise UserError(f"train.{field}: trl.{made.__name__} refuses these settings: {error}") from error
    if args.save_total_limit == 1:
        args.save_total_limit = 2  # the Trainer removes the old one before it is known that the new one is whole
    return args


def _check_types(section: str, given: Mapping[str, Any], made: type) -> None:
    """Raise UserError for a value of another type than the field of `made` that it goes to. TRL and peft do not look:
    the training would end in the middle, or do what nobody asked for (`packing: "false"` packs)."""
    hints = typing.get_type_hints(made)
    for key, value in given.items():
        if key == "init_lora_weights":  # its type is not all that peft takes
            continue
        number = int(value) if isinstance(value, float) and value.is_integer() else value  # 1e3 steps
        try:
            TypeAdapter(hints[key]).validate_json(json.dumps(number, default=str), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(f"{section}.{key}: {value!r}: {problem[0].lower()}{problem[1:]}.") from None


def lora_config(lora: Mapping[str, Any] | None) -> Any:
    """peft.LoraConfig of train.lora, None without it. Raises UserError for an unknown key."""
    if lora is None:
        return None
    import dataclasses

    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    for key in lora:
        if key not in known:
            raise UserError(f"train.lora.{key}: peft.LoraConfig has no such setting.{nearest(key, known)}")
        if key == "inference_mode" and lora[key]:
            raise UserError("train.lora.inference_mode: nothing would be trained. Remove it.")
    _check_types("train.lora", lora, LoraConfig)
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"train.lora: peft.LoraConfig refuses these settings: {error}") from error


def _as_trl_has_it(lora: Mapping[str, Any]) -> dict[str, Any]:
    """train.lora as fields of trl.ModelConfig, what it leaves out included: TRL's defaults are not peft's."""
    from peft import LoraConfig

    fields = {name: lora.get(name, getattr(LoraConfig(), name)) for name in _TRL_LORA}
    modules = fields["target_modules"]
    if isinstance(modules, list) and len(modules) == 1:
        fields["target_modules"] = modules * 2  # TRL takes a single one out of its list; peft reads that as a pattern
    return {_TRL_LORA[name]: value for name, value in fields.items() if value is not None}


def for_this_machine() -> dict[str, Any]:
    """Settings of TRL that depend on the hardware."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "use_cpu": not cuda and not torch.backends.mps.is_available(),
        "bf16": torch.cuda.is_bf16_supported() if cuda else _fast_bf16_cpu(),
        "gradient_checkpointing": cuda,
        "dataloader_pin_memory": cuda,
    }


def _fast_bf16_cpu() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulated it is slower than float32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def write_yaml(config: Train, out: Path, *, seed: int, rows: Path, context: int) -> None:
    """out/trl_sft.yaml: the same fine-tuning for `trl sft --config trl_sft.yaml`, without seqkd. Its paths are relative
    to `out`, the stage's folder, so it is to be started there, and a run can be moved as a whole; what lies elsewhere
    has its absolute path. `rows`: the training table; a student of random weights lies in out/untrained. `context`:
    tokens that the student can attend to."""
    from trl import SFTConfig

    here = isinstance(config.student, str) and Path(config.student).is_dir()
    student = str(Path(str(config.student)).resolve()) if here else config.student
    table = Path("..") / rows.parent.name / rows.name
    settings: dict[str, Any] = {
        "model_name_or_path": student if isinstance(config.student, str) else "untrained",
        "datasets": [{"path": "parquet", "data_files": str(table), "columns": ["prompt", "completion"]}],
        "output_dir": "../trl_sft",
        "seed": seed,
        "completion_only_loss": True,
        "report_to": "none",
        **for_this_machine(),
        **{name: value for name, value in config.sft.items() if name not in _VALIDATION},
    }
    for name in _FILES:
        if isinstance(settings.get(name), str) and Path(settings[name]).is_file():
            settings[name] = str(Path(settings[name]).resolve())
    # As the stage cuts its rows: TRL's own limit knows nothing of the model.
    settings["max_length"] = min(settings.get("max_length", SFTConfig.max_length) or context, context)
    if config.chat_template:
        artifacts.write_text(out / "chat_template.jinja", chat_template(config.chat_template))
        settings["chat_template_path"] = "chat_template.jinja"
    if config.loss_on == "assistant" and config.sft.get("completion_only_loss", True) is not False:
        # TRL puts the loss where both say so, which would leave the earlier turns out.
        settings |= {"assistant_only_loss": True, "completion_only_loss": False}
    if config.trust_remote_code:
        settings["trust_remote_code"] = True
    if config.lora is not None:
        settings |= {"use_peft": True, **_as_trl_has_it(config.lora)}
    if config.quantize:
        settings |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
    head = (
        "# The fine-tuning of this stage (train.method: sft) for TRL alone. Start it in this folder:\n"
        "#     trl sft --config trl_sft.yaml\n"
    )
    artifacts.write_text(out / "trl_sft.yaml", head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
