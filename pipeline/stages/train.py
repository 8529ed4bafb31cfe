"""train: fine-tune the student on the kept answers with one of TRL's trainers.

A method is a function that makes a trainer from a `Job` (student, teacher, rows, settings): see METHODS. Everything
else, from checkpoints to the saved folder, is the same for all of them and is in `fit`. docs/train.md says which method
is for what.

`accelerate launch -m pipeline.stages.train RECIPE --run NAME` trains with several processes: see pipeline/processes.py.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artifacts, cards, processes, soft_targets, trl_settings
from pipeline.checkpoints import best_steps, check_best, last_checkpoint, saving
from pipeline.errors import SeqkdError, UserError
from pipeline.progress import progress
from pipeline.recipe import Recipe, Train
from pipeline.records import Message
from pipeline.teachers import local
from pipeline.teachers.local import Loaded
from pipeline.tokens import IGNORED, Tokens, chat_template, tokenize

Log = Callable[[Mapping[str, Any]], None]


class DivergedError(SeqkdError):
    """The loss is not a finite number any more."""


class Job(NamedTuple):
    """What a method makes its trainer from."""

    student: Any  # transformers model
    tokenizer: Any  # the student's, with a chat template
    train_rows: Sequence[Mapping[str, Any]]  # {"prompt": messages, "completion": messages}
    validation_rows: Sequence[Mapping[str, Any]]
    config: Train
    args: Any  # trl.SFTConfig, or trl.DistillationConfig for on_policy
    teacher: Loaded | None  # where the method needs its probabilities
    system: Sequence[Message]  # what the teacher was told before each prompt: a system message, or nothing


class Prepared(NamedTuple):
    """What a method gives back."""

    trainer: Any  # transformers.Trainer
    counts: dict[str, int | None]  # of rows and tokens, for the summary: tokens, dropped, cut and the method's own


def sft(job: Job) -> Prepared:
    """Sequence-level distillation (Kim & Rush, 2016): the teacher's answers are the targets. TRL's SFTTrainer."""
    train, validation = _tokenized(job)
    data = {"train_dataset": _dataset(train.rows), "eval_dataset": _dataset(validation.rows)}
    return Prepared(_made(_trainer(job.args), job, **data), _counts(train))


def logits(job: Job) -> Prepared:
    """The teacher's probabilities beside its answers; see pipeline/soft_targets.py."""
    settings, args = job.config.logits, job.args
    if args.packing or args.padding_free or not args.completion_only_loss or args.label_smoothing_factor:
        raise UserError(
            "train.method: logits needs one row after another and the loss on the answers: take packing, padding_free, "
            "completion_only_loss and label_smoothing_factor out of train.sft."
        )
    datasets: list[Any] = []
    counts: dict[str, int | None] = {}
    for rows, tokens in zip((job.train_rows, job.validation_rows), _tokenized(job), strict=True):
        if not tokens.rows:
            datasets.append(None)
            continue
        if settings.source == "stored":
            targets = soft_targets.from_stored(tokens, rows)
        else:
            assert job.teacher
            asked = [{**row, "prompt": [*job.system, *row["prompt"]]} for row in rows]
            targets = soft_targets.from_teacher(tokens, asked, job.teacher, job.config.loss_on)
        datasets.append(_dataset(tokens.rows, targets.columns))
        if not counts:
            counts = _counts(tokens) | {"soft_tokens": targets.covered}
    args.remove_unused_columns = False
    teacher = job.teacher.model.to(args.device) if job.teacher else None
    made = soft_targets.trainer_class(settings, teacher, soft_targets.real_vocabulary(job.tokenizer))
    trainer = _made(made, job, train_dataset=datasets[0], eval_dataset=datasets[1])
    trainer.data_collator = soft_targets.collator(trainer.data_collator, job.tokenizer.pad_token_id)
    return Prepared(trainer, counts)


def on_policy(job: Job) -> Prepared:
    """The student answers, the teacher's probabilities score its tokens (Agarwal et al., 2024). TRL's
    DistillationTrainer. Only the rows' prompts are used."""
    from trl import DistillationTrainer

    assert job.teacher
    room = job.args.max_completion_length
    limit = min(_context(job.student, job.tokenizer), local.context_length(job.teacher)) - room
    train, dropped = _prompts(job, job.train_rows, limit)
    validation, _ = _prompts(job, job.validation_rows, limit)
    if not train:
        raise UserError(
            "nothing to train on: no prompt leaves room for train.on_policy.max_completion_length "
            f"({room:,}) tokens in the models' context. Lower it."
        )

    class OnPolicyTrainer(DistillationTrainer):
        def _tokenize_prompts(self, prompts: Any) -> Any:
            # As everywhere here: control tokens in a message are text.
            return local.encode(job.tokenizer, prompts, add_generation_prompt=True), None, {}

    soft_targets.fit_vocabulary(job.teacher.model, job.student, soft_targets.real_vocabulary(job.tokenizer))
    job.tokenizer.padding_side = "left"
    data = {"train_dataset": _dataset(train), "eval_dataset": _dataset(validation)}
    trainer = _made(OnPolicyTrainer, job, teacher_model=job.teacher.model, **data)
    return Prepared(trainer, {"tokens": None, "dropped": dropped, "cut": 0})


METHODS = {"sft": sft, "logits": logits, "on_policy": on_policy}
"""Method -> the function that makes its trainer. Another method is another function."""


def fit(
    student: Any,
    tokenizer: Any,
    train_rows: Sequence[Mapping[str, Any]],
    validation_rows: Sequence[Mapping[str, Any]],
    config: Train,
    out: Path,
    *,
    teacher: Loaded | None = None,
    system: Sequence[Message] = (),
    seed: int = 0,
    log: Log = lambda event: None,
    checkpoints: Path,
) -> dict[str, Any]:
    """Train `student` (a transformers model, changed in place) on rows {"prompt": messages, "completion": messages}.

    `config` is the recipe's section; its `sft` or `on_policy` goes to TRL over defaults for this hardware. `teacher`
    and the `system` message it was asked with: for the methods that need its probabilities. Writes `out`/ as a plain
    model folder (safetensors, the tokenizer, LoRA merged) and `out`/metrics.jsonl with a JSON line for each log event.
    Resumes from the newest whole checkpoint in `checkpoints`, which must belong to this very training; a damaged one is
    removed and the one before taken. `log` gets {"step", "steps", ...} after each step, with loss and learning_rate
    when they were logged.

    Returns {"steps", "resumed_from", "train_loss", "eval_loss", "tokens", "dropped", "cut", "context", "parameters",
    "trainable", "seconds"}; tokens are those that carried loss in one pass over the rows (None for on_policy, where the
    student writes them), dropped and cut are rows that were too long, context is how many tokens the student can attend
    to; with the method logits also soft_tokens, those with a teacher's distribution, and with early stopping best_step,
    the step whose model was kept, and lost_step, that of a better one whose checkpoint was damaged (None: there was
    none).

    Raises UserError for a wrong setting, for rows that would not teach the student to end its turn and where memory
    runs out, DivergedError if the loss becomes NaN or infinite.
    """
    begun = time.monotonic()
    _quiet_libraries()
    from safetensors import SafetensorError
    from transformers import EarlyStoppingCallback, PrinterCallback

    validated = bool(validation_rows)
    args = trl_settings.arguments(config, seed=seed, checkpoints=checkpoints, validated=validated)
    job = Job(student, tokenizer, train_rows, validation_rows, config, args, teacher, system)

    def diverged(step: int) -> DivergedError:
        return _diverged(step, trl_settings.section(config), last_checkpoint(checkpoints))

    parameters = student.num_parameters()  # not the sum over tensors: two weights of 4 bits are one number there
    with _memory_errors():
        trainer, counts = METHODS[config.method](job)
        if trainer.is_deepspeed_enabled:  # or ZeRO-3 refuses to say its weights, when all the work is done
            zero = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config.setdefault("zero_optimization", {})
            zero["stage3_gather_16bit_weights_on_model_save"] = True
        # Without tqdm the Trainer prints its logs; `log` is the only voice here.
        trainer.remove_callback(PrinterCallback)
        if config.early_stopping:
            stopping = config.early_stopping
            trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
        by_time = "save_strategy" not in getattr(config, trl_settings.section(config)) and not config.early_stopping
        # In this order: what is not finite ends the training before it is sealed as a checkpoint.
        trainer.add_callback(_watch(log, out / "metrics.jsonl", trainer.accelerator.is_main_process, diverged))
        trainer.add_callback(saving(by_time, trainer.accelerator))
        with trainer.accelerator.main_process_first():
            resume = last_checkpoint(checkpoints)
            out.mkdir(parents=True, exist_ok=True)
            checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except SafetensorError:
            check_best(trainer.state)
            raise
        best = {}
        if config.early_stopping:
            check_best(trainer.state)
            best = dict(zip(("best_step", "lost_step"), best_steps(trainer.state, args), strict=True))
        if not _finite(trainer.model):
            raise diverged(trainer.state.global_step)
        eval_loss = trainer.evaluate()["eval_loss"] if trainer.eval_dataset else None
        trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
        _save(trainer, job, out)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": int(resume.name.split("-")[1]) if resume else None,
        "train_loss": _last(trainer.state.log_history, "loss", result.training_loss),
        "eval_loss": eval_loss,
        **counts,
        **best,
        "context": _context(student, tokenizer),
        "parameters": parameters,
        "trainable": trainable,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _save(trainer: Any, job: Job, out: Path) -> None:
    """The trained student as a plain folder: safetensors, LoRA merged, the tokenizer with its chat template."""
    accelerator, model = trainer.accelerator, trainer.model
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # every process has a part of it
    if not accelerator.is_main_process:
        return
    if job.config.quantize:
        model = _merged_at_full_precision(model, job, out.parent / "adapter")
    elif job.config.lora is not None:
        model = (_whole(model, job, state) if state else model).merge_and_unload()
        state = None
    elif state:
        state = {name: weight for name, weight in state.items() if name not in model.all_tied_weights_keys}
    model.generation_config.do_sample = False
    model.save_pretrained(out, safe_serialization=True, **({"state_dict": state} if state else {}))
    job.tokenizer.save_pretrained(out)


def _whole(model: Any, job: Job, state: Mapping[str, Any]) -> Any:
    """A LoRA model with the gathered weights `state`: the trained one has a part of each, which cannot be merged."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # ZeRO-3 would shard this model too, among processes that do not make it
    base = AutoModelForCausalLM.from_config(job.student.config, trust_remote_code=job.config.trust_remote_code)
    whole = get_peft_model(base, model.peft_config[model.active_adapter])
    whole.load_state_dict(state)
    return whole


def _merged_at_full_precision(model: Any, job: Job, adapter: Path) -> Any:
    """A LoRA that was trained on 4-bit weights, merged into the weights they were made from: merging into the 4-bit
    ones would round a second time, and leave a folder that needs bitsandbytes."""
    from peft import PeftModel

    model.save_pretrained(adapter)
    trust = job.config.trust_remote_code
    base = local.load(str(job.config.student), dtype="bfloat16", device="cpu", chat=False, trust_remote_code=trust)
    merged = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    shutil.rmtree(adapter)
    return merged


def load_student(
    student: str | Mapping[str, Any],
    tokenizer_folder: Path | None,
    seed: int,
    *,
    template: str | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> tuple[Any, Any]:
    """The model and tokenizer of `train.student`: a folder or hub id, or a mapping of a transformers config
    (model_type, hidden_size, ...) for a randomly initialised student that shares the teacher's tokenizer.

    template: train.chat_template; quantize: 4bit, on the GPU if there is one. Raises UserError if they cannot be had.
    """
    from pipeline.teachers.embedded import random_student

    if isinstance(student, str):
        loaded = local.load(
            student,
            dtype="float32",  # bf16 is autocast
            device="cpu",  # the Trainer moves it
            chat=False,
            trust_remote_code=trust_remote_code,
            quantization=_four_bits() if quantize else None,
        )
        model, tokenizer = loaded.model, loaded.tokenizer
    elif tokenizer_folder is None:
        raise UserError("train.student is a model configuration: it needs the tokenizer of a `local` teacher.")
    else:
        model, tokenizer = random_student(student, tokenizer_folder, seed)
    if template:
        tokenizer.chat_template = chat_template(template)
    elif not tokenizer.chat_template:
        raise UserError(
            f"train.student: {student if isinstance(student, str) else tokenizer_folder}: its tokenizer has no chat "
            "template, so it is a base model. Set train.chat_template to a file with one, or to `plain`; it is saved "
            "with the student."
        )
    return model, tokenizer


def _four_bits() -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if torch.backends.mps.is_available():
        raise UserError("train.quantize: 4bit is for NVIDIA GPUs and CPUs. Remove it; lora goes without.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.quantize: 4bit needs bitsandbytes: pip install 'seqkd[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _made(trainer: Any, job: Job, **data: Any) -> Any:
    """A TRL trainer for a job. Raises UserError for settings that do not go together."""
    if data["eval_dataset"] is None:
        job.args.eval_strategy = type(job.args.eval_strategy)("no")
    peft = {"peft_config": trl_settings.lora_config(job.config.lora)}
    try:
        made = trainer(model=job.student, args=job.args, processing_class=job.tokenizer, **peft, **data)
    except (ValueError, ImportError, RuntimeError) as error:
        text = str(error)
        if "Callback requires" in text:
            if "TensorBoard" in text:  # it would need a package that it does not name, or another PyTorch
                text = "what writes TensorBoard's files is not installed. Run `pip install 'seqkd[tensorboard]'`."
            raise UserError(f"train.{trl_settings.section(job.config)}.report_to: {text}") from error
        if isinstance(error, RuntimeError):
            raise
        if job.config.lora is not None and "target_modules" in text:
            raise UserError(
                f"train.lora: peft does not know the layers of a {job.student.config.model_type} model, or not these. "
                f"Set train.lora.target_modules: all-linear, or name them. ({text})"
            ) from error
        raise UserError(f"train: TRL refuses these settings: {text}") from error
    if job.config.quantize:
        # TRL makes the adapter bfloat16, and peft reads one from a checkpoint as float32: a resumed training would be
        # another one.
        for weight in made.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return made


def _dataset(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, list[Any]] | None = None) -> Any:
    """datasets.Dataset of rows of one form, None if there is none."""
    import datasets

    if not rows:
        return None
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]} | dict(columns or {}))


def _tokenized(job: Job) -> tuple[Tokens, Tokens]:
    """The rows for training and for validation as tokens."""
    args, context = job.args, _context(job.student, job.tokenizer)
    more: dict[str, Any] = {
        "limit": context if args.max_length is None else min(args.max_length, context),
        "too_long": job.config.too_long,
        "loss_on": job.config.loss_on,
        "whole": not args.completion_only_loss,
    }
    train = tokenize(job.tokenizer, job.train_rows, **more)
    if not train.rows:
        raise UserError("nothing to train on: no row has a completion within sft.max_length tokens.")
    # Not weight.shape: under ZeRO-3 the weights are elsewhere, and the shape is (0,).
    known = job.student.get_input_embeddings().num_embeddings
    largest = max(job.tokenizer.pad_token_id or 0, *(max(row["input_ids"]) for row in train.rows))
    if largest >= known:
        token = job.tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"train.student: its tokenizer is not the model's: {token!r} is number {largest:,}, and the model knows "
            f"those below {known:,}. Take the tokenizer that came with the model, or give the model more of them "
            "(model.resize_token_embeddings)."
        )
    return train, tokenize(job.tokenizer, job.validation_rows, **more)


def _prompts(job: Job, rows: Sequence[Mapping[str, Any]], limit: int) -> tuple[list[dict[str, Any]], int]:
    """The prompts of at most `limit` tokens, and how many are longer. Each prompt once for each of its rows."""
    kept = []
    ids = local.encode(job.tokenizer, [row["prompt"] for row in rows], add_generation_prompt=True)
    for number, (row, prompt) in enumerate(zip(rows, ids, strict=True)):
        if len(prompt) <= limit:
            kept.append({"prompt": list(row["prompt"])})
        elif job.config.too_long == "error":
            raise UserError(
                f"row {row.get('id', number)}: its prompt has {len(prompt):,} tokens, and {limit:,} leave room for an "
                "answer. Lower train.on_policy.max_completion_length, or set train.too_long: drop."
            )
    return kept, len(rows) - len(kept)


def _counts(tokens: Tokens) -> dict[str, int | None]:
    carrying = sum(label != IGNORED for row in tokens.rows for label in row["labels"])
    return {"tokens": carrying, "dropped": tokens.dropped, "cut": tokens.cut}


def _context(model: Any, tokenizer: Any) -> int:
    return local.context_length(Loaded(model, tokenizer, "student"))


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Say which settings help when memory runs out."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        known = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory", "out of memory")
        ours = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in text for words in known)
        if not ours:
            raise
        raise UserError(
            "the training ran out of memory. Three settings help, the first without changing the result: a smaller "
            "train.sft.per_device_train_batch_size with as many times more gradient_accumulation_steps; "
            "gradient_checkpointing: true, or train.lora; a smaller train.sft.max_length. "
            f"({text.splitlines()[0] if text else 'no further word'})"
        ) from error


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
            columns = (labels != IGNORED).any(0).nonzero().squeeze(1)
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                logits_to_keep=columns,  # (columns,) of the unshifted sequence: each predicts the next token
            ).logits
            mask = labels[:, columns] != IGNORED
            chosen, targets = logits[mask].float(), labels[:, columns][mask]  # (tokens, vocabulary), (tokens,)
            mode = "train" if model.training else "eval"
            accuracy = (chosen.detach().argmax(-1) == targets).float().mean().item()
            self._metrics[mode]["mean_token_accuracy"].append(accuracy)
            loss = nn.functional.cross_entropy(chosen, targets, reduction="sum")
            if num_items_in_batch is None:
                return loss / len(targets)
            # The count is that of all processes, and DDP divides by their number.
            across = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return loss * across / num_items_in_batch

    from torch import nn

    return CompletionTrainer


def _watch(log: Log, metrics: Path, first: bool, diverged: Callable[[int], DivergedError]) -> Any:
    """The Trainer's callback: progress, metrics.jsonl (only the first of several processes writes it), an end when the
    loss or the weights to be saved are not finite."""
    from transformers import TrainerCallback

    def write(history: Iterable[Mapping[str, Any]], mode: str) -> None:
        if not first:
            return
        with metrics.open(mode) as file:
            file.writelines(json.dumps(_metrics(event), sort_keys=True) + "\n" for event in history)

    class Watch(TrainerCallback):
        """Methods are the Trainer's hooks; see transformers.TrainerCallback."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            write(state.log_history, "w")  # after a resume: what was logged up to the checkpoint

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            log({"step": state.global_step, "steps": state.max_steps})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            event = dict(logs or {})
            write([{**event, "step": state.global_step}], "a")
            if any(not math.isfinite(event[key]) for key in ("loss", "grad_norm", "eval_loss") if key in event):
                raise diverged(state.global_step)
            if "loss" in event or "eval_loss" in event:
                log({"step": state.global_step, "steps": state.max_steps, **_metrics(event)})

        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            # The last step may have had a finite loss and yet a gradient that was not.
            if not _finite(model):
                raise diverged(state.global_step)

    return Watch()


def _finite(model: Any) -> bool:
    """Whether all weights are finite numbers."""
    import torch

    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def _metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    # num_tokens starts again at zero after a resume (TRL 1.16), so it would say something false.
    return {key: value for key, value in event.items() if key not in ("num_tokens", "eval_num_tokens")}


def _diverged(step: int, section: str, checkpoint: Path | None) -> DivergedError:
    """What happened, and what helps. `section`: that of TRL's settings; `checkpoint`: the last good one."""
    kept = f" from its last good checkpoint ({checkpoint}) on" if checkpoint else ""
    return DivergedError(
        f"training diverged: the loss is not finite any more at step {step}. With the same settings it would diverge "
        f"again{kept}. Lower train.{section}.learning_rate or max_grad_norm, or raise warmup_steps, and run the same "
        "command again: with other settings the training begins anew."
    )


def _last(history: Iterable[Mapping[str, Any]], key: str, otherwise: Any) -> Any:
    return next((event[key] for event in reversed(list(history)) if key in event), otherwise)


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
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


VERSION = 3
SECTIONS = ("train",)
READS = {"train": "assemble", "validation": "assemble", "random_subset": "assemble"}


def sources(recipe: Recipe) -> dict[str, Path]:
    """The student's folder, the teacher's and the chat template's file, where they are such. The embedded teacher is
    none: it is determined by what determines its answers, and those are read."""
    config = recipe.train
    found = {"student": Path(config.student)} if isinstance(config.student, str) else {}
    if config.chat_template not in (None, "plain"):
        found["chat_template"] = Path(str(config.chat_template))
    if needs_teacher(config):
        place = config.teacher or next(
            (teacher.model for teacher in recipe.collect.teachers if teacher.provider == "local"), ""
        )
        found["teacher"] = Path(place)
    return {name: path for name, path in found.items() if path.is_dir() or name == "chat_template"}


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """Where a student given as a config gets its tokenizer: train.tokenizer, or the first local teacher's."""
    if isinstance(recipe.train.student, str):
        return None
    if recipe.train.tokenizer not in (None, "teacher"):
        return Path(str(recipe.train.tokenizer))
    from pipeline.stages.collect import local_teacher_folder

    teacher = next((teacher for teacher in recipe.collect.teachers if teacher.provider == "local"), None)
    return Path(local_teacher_folder(recipe, teacher)) if teacher else None


def student_seed(recipe: Recipe) -> int:
    """The seed of the students' random weights and of their training: train.seed, or the recipe's."""
    return recipe.seed if recipe.train.seed is None else recipe.train.seed


def open_student(recipe: Recipe, *, quantize: str | None = None) -> tuple[Any, Any]:
    """The student of a recipe as it is before training: model and tokenizer. `quantize`: as of `load_student`."""
    config = recipe.train
    return load_student(
        config.student,
        tokenizer_folder(recipe),
        student_seed(recipe),
        template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        quantize=quantize,
    )


def needs_teacher(config: Train) -> bool:
    """Whether the teacher's model takes part in the training itself."""
    return config.method == "on_policy" or (config.method == "logits" and config.logits.source == "teacher")


def open_teacher(recipe: Recipe, tokenizer: Any) -> Loaded | None:
    """The teacher whose probabilities the method needs, None if it needs none. `tokenizer`: the student's.

    Raises UserError if there is no such teacher here, or if its tokenizer is another one.
    """
    config = recipe.train
    if config.method == "sft":
        return None
    from transformers import AutoTokenizer

    from pipeline.stages.collect import local_teacher_folder

    trust = config.trust_remote_code
    places = [config.teacher] if config.teacher else []
    for teacher in [] if config.teacher else recipe.collect.teachers:
        if teacher.provider == "local" and (not places or not needs_teacher(config)):
            places.append(local_teacher_folder(recipe, teacher))
            trust = trust or teacher.trust_remote_code
        elif teacher.provider == "vllm" and not needs_teacher(config):
            places.append(teacher.model)
    if not places:
        raise UserError(
            f"train.method: {config.method} needs the probabilities of a teacher on this machine, and collect.teachers "
            "has none that is `local`. Name the teacher's folder or hub id in train.teacher, or use method: sft."
        )
    if needs_teacher(config):
        loaded = local.load(places[0], trust_remote_code=trust)
        soft_targets.check_same_tokenizer(tokenizer, loaded.tokenizer, name=f"the teacher {places[0]}")
        if config.method == "on_policy":
            soft_targets.check_same_prompts(tokenizer, loaded.tokenizer)
        return loaded
    for place in places:
        try:
            theirs = AutoTokenizer.from_pretrained(place, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            raise UserError(
                f"train.logits.source: stored: the tokenizer of {place} cannot be opened, so nobody knows what its "
                f"tokens are ({str(error).splitlines()[0]}). Name a folder with it in train.teacher."
            ) from error
        soft_targets.check_same_tokenizer(tokenizer, theirs, name=f"the teacher {place}")
    return None


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

    Reads train, validation and random_subset; writes student/, baselines/NAME/ (plain model folders, the student's with
    a model card), metrics.jsonl (one JSON object a log event, with the model's name) and trl_sft.yaml. Each training
    resumes from its last checkpoint.
    """
    processes.tell((recipe, inputs, out, os.environ.get("SEQKD_DATA", "")))
    summaries = train_all(recipe, inputs, out)
    metrics: list[str] = []
    for name in summaries:
        model = out / "checkpoints" / name / "model"
        for line in (model / "metrics.jsonl").read_text().splitlines():
            metrics.append(json.dumps({"model": name, **json.loads(line)}, sort_keys=True))
        target = out / "student" if name == "student" else out / "baselines" / name
        target.parent.mkdir(exist_ok=True)
        # Linked, not moved: until the stage is published, an interrupted attempt must find them where they were.
        shutil.copytree(model, target, copy_function=artifacts.link_or_copy)
        (target / "metrics.jsonl").unlink()
    artifacts.write_text(out / "metrics.jsonl", "\n".join(metrics) + "\n")
    untrained = out / "checkpoints" / "student" / "untrained"
    if untrained.is_dir():
        shutil.copytree(untrained, out / "untrained", copy_function=artifacts.link_or_copy)
    context = summaries["student"]["context"]
    trl_settings.write_yaml(recipe.train, out, seed=student_seed(recipe), rows=inputs["train"], context=context)
    counts = {"training": summaries, "note": _note(summaries["student"])}
    # What became of the other answers may change while the rows do not: that is for the card that evaluate writes.
    sections = cards.sections_of(recipe, "collect", "train")
    told = cards.Story(sections, {"train": counts}, base_model=cards.hub_id(recipe.train.student))
    artifacts.write_text(out / "student" / "README.md", cards.model_card(told))
    return counts


def train_all(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Train the student and the baselines into out/checkpoints/NAME/model, which the flow keeps if this attempt is
    interrupted. Returns what `fit` says of each, and the number of its rows."""
    from pipeline.stages.collect import system_message

    _quiet_libraries()
    config, seed = recipe.train, student_seed(recipe)
    data = {"student": inputs["train"]} | {name: inputs[name] for name in config.baselines}
    system = system_message(recipe)
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    validation = _read(inputs["validation"])
    summaries: dict[str, Any] = {}
    for name, table in data.items():
        work = out / "checkpoints" / name
        done = work / "summary.json"
        if not done.is_file():
            rows = _read(table)
            model, tokenizer = open_student(recipe, quantize=config.quantize)
            if name == "student" and not isinstance(config.student, str) and processes.rank() == 0:
                model.save_pretrained(work / "untrained")  # what trl_sft.yaml begins with
                tokenizer.save_pretrained(work / "untrained")
            with training_progress(f"train {name}") if processes.rank() == 0 else nullcontext(_silent) as log:
                with _tensorboard(out.parent / "tensorboard" / name):
                    summary = fit(
                        model,
                        tokenizer,
                        rows,
                        validation,
                        config,
                        work / "model",
                        teacher=open_teacher(recipe, tokenizer),
                        system=first,
                        seed=seed,
                        log=log,
                        checkpoints=work / "steps",
                    )
            if processes.rank() == 0:
                artifacts.sync_tree(work)  # or a power cut could keep the summary and lose the weights
                # Renamed, for a full disk would leave one that is there and cannot be read.
                artifacts.write_json(work / "summary.new", {**summary, "rows": len(rows)})
                (work / "summary.new").rename(done)
            summaries[name] = {**summary, "rows": len(rows)}
        else:
            summaries[name] = json.loads(done.read_text())
    return summaries


def _read(table: Path) -> list[dict[str, Any]]:
    """The rows of a training table: id, prompt, completion, and logprobs where collect stored the likeliest tokens."""
    import pyarrow.parquet as pq

    names = [name for name in ("id", "prompt", "completion", "logprobs") if name in pq.read_schema(table).names]
    return list(artifacts.read_rows(table, names))


def _silent(event: Mapping[str, Any]) -> None:
    pass


@contextmanager
def _tensorboard(folder: Path) -> Iterator[None]:
    """Where TensorBoard's files go with report_to: tensorboard, unless the environment says otherwise: beside the
    stages, for the Trainer would put them among the checkpoints, which are removed."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = name in os.environ
    if not given:
        os.environ[name] = str(folder)
    try:
        yield
    finally:
        if not given:
            del os.environ[name]


def _note(summary: dict[str, Any]) -> str:
    note = f"student of {summary['parameters']:,} parameters, {summary['steps']:,} steps on {summary['rows']:,} rows"
    if summary["eval_loss"] is not None:
        note += f", validation loss {summary['eval_loss']:.3f}"
    if summary.get("best_step"):
        lost = summary.get("lost_step")
        said = "lowest, at" if lost is None else f"that of step {lost:,} was lower, but its checkpoint was damaged;"
        note += f" ({said} step {summary['best_step']:,})"
    if "soft_tokens" in summary:
        note += f"; {summary['soft_tokens'] / summary['tokens']:.1%} of the answers' tokens have soft targets"
    for name, what in (("dropped", "were dropped"), ("cut", "were cut")):
        if summary[name]:
            note += f"; {summary[name]:,} rows longer than the context {what}"
    return note


def main() -> None:
    """`python -m pipeline.stages.train RECIPE --run NAME`, alone or under `accelerate launch`."""
    from pipeline.flow import stage_main

    processes.together(lambda: stage_main("train"), _train_along)


def _train_along(work: Any) -> None:
    """What the other processes do once the first one has said the recipe, the stage's inputs and its folder."""
    recipe, inputs, out, os.environ["SEQKD_DATA"] = work
    train_all(recipe, inputs, out)


if __name__ == "__main__":
    from pipeline.stages import train  # this very file, but as the module that the flow runs

    train.main()
