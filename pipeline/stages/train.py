"""train: fine-tune the student on the kept answers with TRL's SFTTrainer."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.errors import SeqkdError, UserError, nearest
from pipeline.progress import progress
from pipeline.recipe import Recipe

Log = Callable[[Mapping[str, Any]], None]

SAVE_EVERY_S = 30.0  # a killed training loses at most about this much work
# What the run decides itself. TRL would prepare rows in another way for the others, or publish the model.
OWNED = {
    "output_dir": "the run decides where files go",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "resume_from_checkpoint": "a killed training resumes by itself",
    "assistant_only_loss": "the loss is on the completion already, which is what the assistant said",
    "chat_template_path": "put the template into the student's folder",
    "eos_token": "set it in the student's tokenizer",
    "dataset_kwargs": "the rows are tokenized before TRL gets them",
    "dataset_num_proc": "the rows are tokenized before TRL gets them",
    "model_init_kwargs": "the student is loaded before TRL gets it",
    "push_to_hub": "publish the finished folder yourself, so that nothing leaves this machine by accident",
    "remove_unused_columns": "the rows have no column that the trainer does not use",
}


class DivergedError(SeqkdError):
    """The loss is not a finite number any more."""


def fit(
    student: Any,
    tokenizer: Any,
    train_rows: Sequence[Mapping[str, Any]],
    validation_rows: Sequence[Mapping[str, Any]],
    sft: Mapping[str, Any],
    out: Path,
    *,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    log: Log = lambda event: None,
    checkpoints: Path,
) -> dict[str, Any]:
    """Train `student` (a transformers model, changed in place) on rows {"prompt": messages, "completion": messages}.

    `sft` goes to trl.SFTConfig over defaults for this hardware. Writes `out`/ as a plain model folder (safetensors, the
    tokenizer, LoRA merged) and `out`/metrics.jsonl with one JSON line for each log event. Resumes from the newest whole
    checkpoint in `checkpoints`, which must belong to this very training; a damaged one is removed and the one before
    taken. `log` gets {"step", "steps", ...} after each step, with loss and learning_rate when they were logged.

    Returns {"steps", "resumed_from", "train_loss", "eval_loss", "tokens", "dropped", "parameters", "trainable",
    "seconds"}; tokens are those that carried loss in one pass over the rows, dropped are rows that max_length cut off
    before their completion. Raises UserError for a wrong `sft` or `lora` key or value and for rows that would not teach
    the student to end its turn, DivergedError if the loss becomes NaN or infinite.
    """
    begun = time.monotonic()
    _quiet_libraries()
    import datasets
    import torch

    args = sft_config(sft, checkpoints, seed)
    rows, dropped = _tokenize(tokenizer, train_rows, args)
    if not rows:
        raise UserError("nothing to train on: no row has a completion within sft.max_length tokens.")
    validation, _ = _tokenize(tokenizer, validation_rows, args)
    if not validation:
        args.eval_strategy = type(args.eval_strategy)("no")
    resume = last_checkpoint(checkpoints)
    out.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    columns = ("input_ids", "labels")
    trainer = _trainer(args)(
        model=student,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({column: [row[column] for row in rows] for column in columns}),
        eval_dataset=datasets.Dataset.from_dict({column: [row[column] for row in validation] for column in columns})
        if validation
        else None,
        peft_config=_lora_config(lora),
        callbacks=[_watch(log, out / "metrics.jsonl", save_by_time="save_strategy" not in sft)],
    )
    # Without tqdm the Trainer prints its logs; `log` is the only voice here.
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not all(bool(torch.isfinite(weight).all()) for weight in trainer.model.parameters()):
        raise DivergedError(_diverged(trainer.state.global_step))
    eval_loss = trainer.evaluate()["eval_loss"] if validation else None
    model = trainer.model.merge_and_unload() if lora else trainer.model
    model.generation_config.do_sample = False
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": int(resume.name.split("-")[1]) if resume else None,
        "train_loss": _last(trainer.state.log_history, "loss", result.training_loss),
        "eval_loss": eval_loss,
        "tokens": sum(sum(label != -100 for label in row["labels"]) for row in rows),
        "dropped": dropped,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trainable": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "seconds": round(time.monotonic() - begun, 3),
    }


def load_student(student: str | Mapping[str, Any], tokenizer_folder: Path | None, seed: int) -> tuple[Any, Any]:
    """The model and tokenizer of `train.student`: a folder or hub id, or a mapping of a transformers config
    (model_type, hidden_size, ...) for a randomly initialised student that shares the teacher's tokenizer."""
    from pipeline.teachers.embedded import random_student
    from pipeline.teachers.local import load

    if isinstance(student, str):
        loaded = load(student, dtype="float32", device="cpu")  # the Trainer moves it, bf16 is autocast
        return loaded.model, loaded.tokenizer
    if tokenizer_folder is None:
        raise UserError("train.student is a model configuration: it needs the tokenizer of a `local` teacher.")
    return random_student(student, tokenizer_folder, seed)


def sft_config(sft: Mapping[str, Any], checkpoints: Path, seed: int) -> Any:
    """trl.SFTConfig with defaults for this machine, `sft` on top. Raises UserError for an unknown or owned key."""
    _quiet_libraries()
    import dataclasses

    import torch
    from trl import SFTConfig

    known = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    for key in sft:
        if key not in known:
            raise UserError(f"train.sft.{key}: trl.SFTConfig has no such setting.{nearest(key, known - set(OWNED))}")
        if key in OWNED:
            raise UserError(f"train.sft.{key}: cannot be set here: {OWNED[key]}.")
    cuda = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "use_cpu": not cuda and not torch.backends.mps.is_available(),
        "bf16": torch.cuda.is_bf16_supported() if cuda else _fast_bf16_cpu(),
        "gradient_checkpointing": cuda,
        "dataloader_pin_memory": cuda,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # it would hide a NaN behind the average of earlier losses
        "logging_first_step": True,
        "save_strategy": "no",  # saved by the clock instead: see _watch
        "save_total_limit": 2,
        "completion_only_loss": True,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed settings, still TRL's own defaults
            return SFTConfig(**{**defaults, **sft}, output_dir=str(checkpoints), seed=seed, data_seed=seed)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"train.sft: trl.SFTConfig refuses these settings: {error}") from error


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`. Those that were cut off or damaged are removed, so that they neither
    count when the Trainer drops old ones nor are mistaken for a good one."""
    best: Path | None = None
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
        elif best is None:
            best = path
    return best


# The Trainer writes a checkpoint file by file and in place. This list, written when all of them are on the disk, is
# what makes one complete: name -> digest.
_COMPLETE = "complete.json"


def _seal(checkpoint: Path) -> None:
    artifacts.sync_tree(checkpoint)
    files = {path.name: artifacts.file_digest(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    partial = checkpoint / (_COMPLETE + ".partial")
    artifacts.write_json(partial, files)
    partial.rename(checkpoint / _COMPLETE)
    for folder in (checkpoint, checkpoint.parent):
        artifacts.sync_folder(folder)


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / _COMPLETE).read_text())
        return all(artifacts.file_digest(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _fast_bf16_cpu() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulated it is slower than float32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _trainer(args: Any) -> Any:
    """SFTTrainer, with a cheaper loss where TRL's is slow.

    Without Triton (on a CPU), TRL 1.16 scores every position against the whole vocabulary, the prompts' too. Short
    answers after long questions then spend most of the time on positions that carry no loss. This asks the model for
    the logits of the columns that do.
    """
    from trl import SFTTrainer

    if not args.use_cpu or args.loss_type != "nll" or args.label_smoothing_factor or not args.completion_only_loss:
        return SFTTrainer

    class CompletionTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if return_outputs or self.aux_loss_enabled or "position_ids" in inputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels = inputs["labels"][:, 1:]
            columns = (labels != -100).any(0).nonzero().squeeze(1)
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                logits_to_keep=columns,  # (columns,) of the unshifted sequence: each predicts the next token
            ).logits
            mask = labels[:, columns] != -100
            chosen, targets = logits[mask].float(), labels[:, columns][mask]  # (tokens, vocabulary), (tokens,)
            mode = "train" if model.training else "eval"
            accuracy = (chosen.detach().argmax(-1) == targets).float().mean().item()
            self._metrics[mode]["mean_token_accuracy"].append(accuracy)
            count = len(targets) if num_items_in_batch is None else num_items_in_batch
            return nn.functional.cross_entropy(chosen, targets, reduction="sum") / count

    from torch import nn

    return CompletionTrainer


def _watch(log: Log, metrics: Path, save_by_time: bool) -> Any:
    """The Trainer's callback: progress, metrics.jsonl, checkpoints by the clock, an end when the loss is not finite."""
    from transformers import TrainerCallback

    saved = time.monotonic()

    def write(history: Iterable[Mapping[str, Any]], mode: str) -> None:
        with metrics.open(mode) as file:
            file.writelines(json.dumps(_metrics(event), sort_keys=True) + "\n" for event in history)

    class Watch(TrainerCallback):
        """Methods are the Trainer's hooks; see transformers.TrainerCallback."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            write(state.log_history, "w")  # after a resume: what was logged up to the checkpoint

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal saved
            # Only at steps that log: the running mean of the loss is not part of a checkpoint.
            if save_by_time and control.should_log and time.monotonic() - saved > SAVE_EVERY_S:
                control.should_save = True
                saved = time.monotonic()
            log({"step": state.global_step, "steps": state.max_steps})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            event = dict(logs or {})
            write([{**event, "step": state.global_step}], "a")
            if any(not math.isfinite(event[key]) for key in ("loss", "grad_norm", "eval_loss") if key in event):
                raise DivergedError(_diverged(state.global_step))
            if "loss" in event or "eval_loss" in event:
                log({"step": state.global_step, "steps": state.max_steps, **_metrics(event)})

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watch()


def _metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    # num_tokens starts again at zero after a resume (TRL 1.16), so it would say something false.
    return {key: value for key, value in event.items() if key not in ("num_tokens", "eval_num_tokens")}


def _diverged(step: int) -> str:
    return (
        f"training diverged: the loss is not finite any more at step {step}. Lower train.sft.learning_rate or "
        "max_grad_norm, or raise warmup_steps; then run again with --force."
    )


def _last(history: Iterable[Mapping[str, Any]], key: str, otherwise: Any) -> Any:
    return next((event[key] for event in reversed(list(history)) if key in event), otherwise)


def _tokenize(tokenizer: Any, rows: Sequence[Mapping[str, Any]], args: Any) -> tuple[list[dict[str, list[int]]], int]:
    """Rows as input_ids and labels (-100 where there is no loss), and how many max_length left without a completion.

    The same token ids as TRL makes of the conversational form, but in one pass, and with control tokens in a message
    encoded as text. Raises UserError if a completion does not end in the end-of-turn token.
    """
    from pipeline.teachers.local import common_prefix, encode

    prompts = encode(tokenizer, [row["prompt"] for row in rows], add_generation_prompt=True)
    turns = encode(tokenizer, [[*row["prompt"], *row["completion"]] for row in rows], add_generation_prompt=False)
    end, limit = tokenizer.eos_token_id, args.max_length
    made, dropped = [], 0
    for prompt, ids in zip(prompts, turns, strict=True):
        start = common_prefix(prompt, ids)
        if end is None or end not in ids[start:]:
            raise UserError(
                f"the student would never learn to stop: its chat template does not put the tokenizer's end-of-turn "
                f"token ({tokenizer.eos_token!r}) after an answer. Set eos_token to the token that ends a turn, in the "
                "student's tokenizer_config.json, or mend its chat_template.jinja."
            )
        labels = [-100] * start + ids[start:] if args.completion_only_loss else list(ids)
        if limit is not None:
            ids, labels = ids[:limit], labels[:limit]
        if len(ids) <= start:
            dropped += 1
            continue
        made.append({"input_ids": ids, "labels": labels})
    return made, dropped


def _lora_config(lora: Mapping[str, Any] | None) -> Any:
    if not lora:
        return None
    import dataclasses

    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    for key in lora:
        if key not in known:
            raise UserError(f"train.lora.{key}: peft.LoraConfig has no such setting.{nearest(key, known)}")
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
    except (TypeError, ValueError) as error:
        raise UserError(f"train.lora: peft.LoraConfig refuses these settings: {error}") from error


def _quiet_libraries() -> None:
    """No progress bars of their own, no warnings about versions, no telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


VERSION = 1
SECTIONS = ("train",)
READS = {"train": "assemble", "validation": "assemble", "random_subset": "assemble"}


def sources(recipe: Recipe) -> dict[str, Path]:
    """The student's folder, where it is one."""
    student = recipe.train.student
    return {"student": Path(student)} if isinstance(student, str) and Path(student).is_dir() else {}


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """Where a student given as a config gets its tokenizer: train.tokenizer, or the first local teacher's."""
    if isinstance(recipe.train.student, str):
        return None
    if recipe.train.tokenizer not in (None, "teacher"):
        return Path(str(recipe.train.tokenizer))
    from pipeline.stages.collect import local_teacher_folder

    teacher = next((teacher for teacher in recipe.collect.teachers if teacher.provider == "local"), None)
    return Path(local_teacher_folder(recipe, teacher)) if teacher else None


@contextmanager
def training_progress(label: str) -> Iterator[Log]:
    """A `log` for `fit` that shows a progress bar."""
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        shown = 0

        def log(event: Mapping[str, Any]) -> None:
            nonlocal advance, shown
            if "steps" not in event:
                return
            if advance is None:
                advance = stack.enter_context(progress(label, event["steps"], "steps"))
            advance(event["step"] - shown)
            shown = event["step"]

        yield log


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Train the student, then each baseline in the same way on other rows.

    Reads train, validation and random_subset; writes student/, baselines/NAME/ (plain model folders) and metrics.jsonl
    (one JSON object a log event, with the model's name). Each training resumes from its last checkpoint.
    """
    config = recipe.train
    data = {"student": inputs["train"]}
    data |= {name: inputs[name] for name in config.baselines}
    validation = list(artifacts.read_rows(inputs["validation"], ["prompt", "completion"]))
    summaries: dict[str, Any] = {}
    metrics: list[str] = []
    for name, table in data.items():
        work = out / "checkpoints" / name  # the flow keeps it if this attempt is interrupted
        done = work / "summary.json"
        if not done.is_file():
            shutil.rmtree(work / "model", ignore_errors=True)
            rows = list(artifacts.read_rows(table, ["prompt", "completion"]))
            model, tokenizer = load_student(config.student, tokenizer_folder(recipe), recipe.seed)
            with training_progress(f"train {name}") as log:
                summary = fit(
                    model,
                    tokenizer,
                    rows,
                    validation,
                    config.sft,
                    work / "model",
                    lora=config.lora,
                    seed=recipe.seed,
                    log=log,
                    checkpoints=work / "steps",
                )
            artifacts.write_json(done, {**summary, "rows": len(rows)})
        summaries[name] = json.loads(done.read_text())
        for line in (work / "model" / "metrics.jsonl").read_text().splitlines():
            metrics.append(json.dumps({"model": name, **json.loads(line)}, sort_keys=True))
    for name in data:
        target = out / "student" if name == "student" else out / "baselines" / name
        target.parent.mkdir(exist_ok=True)
        # Linked, not moved: until the stage is published, an interrupted attempt must find them where they were.
        shutil.copytree(out / "checkpoints" / name / "model", target, copy_function=_link)
        (target / "metrics.jsonl").unlink()
    artifacts.write_text(out / "metrics.jsonl", "\n".join(metrics) + "\n")
    return {"training": summaries, "note": _note(summaries["student"])}


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _note(summary: dict[str, Any]) -> str:
    note = f"student of {summary['parameters']:,} parameters, {summary['steps']:,} steps on {summary['rows']:,} rows"
    if summary["eval_loss"] is not None:
        note += f", validation loss {summary['eval_loss']:.3f}"
    if summary["dropped"]:
        note += f"; {summary['dropped']:,} rows longer than sft.max_length were dropped"
    return note


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("train")
