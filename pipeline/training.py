"""A training made safe and recorded: it resumes, it is watched, its student is saved as a plain folder.

What is trained, and by which of TRL's trainers, is for pipeline/stages/train.py; what makes a checkpoint whole, for
pipeline/checkpoints.py.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline import trl_settings
from pipeline.checkpoints import best_steps, check_best, last_checkpoint, saving
from pipeline.errors import SeqkdError, UserError
from pipeline.progress import progress
from pipeline.recipe import Train
from pipeline.teachers import local

Log = Callable[[Mapping[str, Any]], None]


class DivergedError(SeqkdError):
    """The loss is not a finite number any more."""


def run(trainer: Any, config: Train, out: Path, checkpoints: Path, log: Log) -> dict[str, Any]:
    """Train, from the newest whole checkpoint on if there is one, and evaluate. `trainer`: a transformers.Trainer; the
    rest as of `fit`. Returns {"steps", "resumed_from", "train_loss", "eval_loss", "trainable"}, with early stopping
    also best_step and lost_step. Raises DivergedError."""
    from safetensors import SafetensorError
    from transformers import EarlyStoppingCallback, PrinterCallback

    section = trl_settings.section(config)

    def diverged(step: int) -> DivergedError:
        return _diverged(step, section, last_checkpoint(checkpoints))

    if trainer.is_deepspeed_enabled:  # or ZeRO-3 refuses to say its weights, when all the work is done
        zero = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config.setdefault("zero_optimization", {})
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    # Without tqdm the Trainer prints its logs; `log` is the only voice here.
    trainer.remove_callback(PrinterCallback)
    if config.early_stopping:
        stopping = config.early_stopping
        trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
    by_time = "save_strategy" not in getattr(config, section) and not config.early_stopping
    # In this order: what is not finite ends the training before it is sealed as a checkpoint.
    trainer.add_callback(_watch(log, out / "metrics.jsonl", trainer.accelerator.is_main_process, diverged))
    trainer.add_callback(saving(by_time, trainer.accelerator))
    with trainer.accelerator.main_process_first():
        resume = last_checkpoint(checkpoints)
        out.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
    begun = int(resume.name.split("-")[1]) if resume else None
    try:
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except SafetensorError:
        check_best(trainer.state)
        raise
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise UserError(f"train.{section}.metric_for_best_model: {str(error.args[0]).rstrip('.')}.") from error
    except (ImportError, ValueError, TypeError, ArithmeticError) as error:
        # A package that an optimizer needs, a schedule that does not know its arguments: nothing has been trained yet.
        if trainer.state.global_step > (begun or 0):
            raise
        raise UserError(f"train.{section}: the trainer cannot begin with these settings: {error}") from error
    if trainer.state.max_steps > 0 and not trainer.state.global_step:
        raise UserError(
            f"train.{section}: nothing was trained: the {len(trainer.train_dataset):,} rows do not fill one batch. "
            "Lower per_device_train_batch_size or gradient_accumulation_steps."
        )
    best = {}
    if config.early_stopping:
        check_best(trainer.state)
        best = dict(zip(("best_step", "lost_step"), best_steps(trainer.state, trainer.args), strict=True))
    if not _finite(trainer.model):
        raise diverged(trainer.state.global_step)
    # None, too, where dataloader_drop_last leaves no batch.
    eval_loss = trainer.evaluate().get("eval_loss") if trainer.eval_dataset else None
    trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": begun,
        "train_loss": _last(trainer.state.log_history, "loss", result.training_loss),
        "eval_loss": eval_loss,
        "trainable": trainable,
        **best,
    }


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


def _metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    # num_tokens starts again at zero after a resume (TRL 1.16), so it would say something false.
    return {key: value for key, value in event.items() if key not in ("num_tokens", "eval_num_tokens")}


def _finite(model: Any) -> bool:
    """Whether all weights are finite numbers."""
    import torch

    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


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


def save(trainer: Any, student: Any, tokenizer: Any, config: Train, out: Path) -> None:
    """Write the trained student as a plain folder: safetensors, LoRA merged, the tokenizer with its chat template; the
    LoRA of a student that has a base to go with beside it, as `adapter`. `student`: the model that the trainer was
    given."""
    accelerator, model = trainer.accelerator, trainer.model
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # every process has a part of it
    if not accelerator.is_main_process:
        return
    if config.lora is not None:
        model, state = _whole(model, student, config, state) if state else model, None
        if isinstance(config.student, str):
            _save_adapter(model, tokenizer, out.parent / "adapter")
        if config.quantize:
            model = _at_full_precision(config, out.parent / "adapter")
        model = _merged(model)
    elif state:
        state = {name: weight for name, weight in state.items() if name not in model.all_tied_weights_keys}
    model.generation_config.do_sample = False
    model.save_pretrained(out, safe_serialization=True, **({"state_dict": state} if state else {}))
    tokenizer.save_pretrained(out)
    for weights in (*out.glob("*.safetensors"), *(out.parent / "adapter").glob("*.safetensors")):
        shutil.copymode(
            out / "config.json", weights
        )  # safetensors lets nobody else read its files, so no server either


def _whole(model: Any, student: Any, config: Train, state: Mapping[str, Any]) -> Any:
    """A LoRA model with the gathered weights `state`: the trained one has a part of each, which cannot be merged."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # ZeRO-3 would shard this model too, among processes that do not make it
    base = AutoModelForCausalLM.from_config(student.config, trust_remote_code=config.trust_remote_code)
    whole = get_peft_model(base, model.peft_config[model.active_adapter])
    whole.load_state_dict(state)
    return whole


def _save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """A LoRA as peft's folder, which names its base, with the tokenizer and its chat template."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink()  # a form for a card, with nothing filled in
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for name in ("target_modules", "exclude_modules"):  # peft has them as sets, and so in any order
        if isinstance(config[name], list):
            config[name].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _merged(model: Any) -> Any:
    """A LoRA model with the adapter in its weights."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    if isinstance(model.get_input_embeddings(), BaseTunerLayer) and not isinstance(head, BaseTunerLayer):
        # Trained on the embedding alone. Where the output has the same weights, merging would change those as well;
        # peft then writes that they are no longer tied.
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return model.merge_and_unload()


def _at_full_precision(config: Train, adapter: Path) -> Any:
    """A LoRA that was trained on 4-bit weights, on the weights they were made from: merged into the 4-bit ones it
    would be rounded a second time, and leave a folder that needs bitsandbytes."""
    from peft import PeftModel

    trust = config.trust_remote_code
    base = local.load(str(config.student), dtype="bfloat16", device="cpu", chat=False, trust_remote_code=trust)
    return PeftModel.from_pretrained(base.model, str(adapter))


SAVING = (
    "Three settings help, the first without changing the result: a smaller train.sft.per_device_train_batch_size with "
    "as many times more gradient_accumulation_steps; gradient_checkpointing: true, or train.lora; a smaller "
    "train.sft.max_length."
)
"""What helps where a training runs out of memory."""


@contextmanager
def memory_errors(what: str = "the training", helps: str = SAVING) -> Iterator[None]:
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
            f"{what} ran out of memory. {helps} ({text.splitlines()[0] if text else 'no further word'})"
        ) from error


def quiet_libraries() -> None:
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


@contextmanager
def tensorboard_files(folder: Path) -> Iterator[None]:
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
