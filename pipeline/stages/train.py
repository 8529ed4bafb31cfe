"""train: fine-tune the student on the kept answers with one of TRL's trainers.

A method is a function that makes a trainer from a `Job` (student, teacher, rows, settings): see METHODS, and
docs/train.md for which is for what. Everything else is the same for all of them: what makes a training safe and
recorded, from checkpoints to the saved folder, is in pipeline/training.py.

`accelerate launch -m pipeline.stages.train RECIPE --run NAME` trains with several processes: see pipeline/processes.py.
"""

import inspect
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import artifacts, cards, processes, soft_targets, training, trl_settings
from pipeline.errors import UserError
from pipeline.recipe import Recipe, Train
from pipeline.records import Message
from pipeline.teachers import local, local_teacher_folder
from pipeline.teachers.local import Loaded
from pipeline.tokens import IGNORED, Tokens, chat_template, tokenize


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
    return Prepared(_made(_trainer(job.args, job.student), job, **data), _counts(train))


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
            targets = soft_targets.from_stored(tokens, rows, needed=not counts)
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
    if room is None:
        raise UserError("train.on_policy.max_completion_length: give a number of tokens.")
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


def _trainer(args: Any, student: Any) -> Any:
    """SFTTrainer, with a cheaper loss where TRL's is slow and the student's model can give logits of some columns.

    Without Triton (on a CPU), TRL 1.16 scores every position against the whole vocabulary, the prompts' too. Short
    answers after long questions then spend most of the time on positions that carry no loss. This asks the model for
    the logits of the columns that do.
    """
    from trl import SFTTrainer

    if not args.use_cpu or args.loss_type != "nll" or args.label_smoothing_factor or not args.completion_only_loss:
        return SFTTrainer
    if "logits_to_keep" not in inspect.signature(student.forward).parameters:
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


def _made(trainer: Any, job: Job, **data: Any) -> Any:
    """A TRL trainer for a job. Raises UserError for settings that do not go together."""
    if data["eval_dataset"] is None:
        if job.config.early_stopping:
            raise UserError("train.early_stopping: all validation rows are too long, so there is nothing to go by.")
        job.args.eval_strategy = type(job.args.eval_strategy)("no")
    peft = {"peft_config": trl_settings.lora_config(job.config.lora)}
    try:
        made = trainer(model=job.student, args=job.args, processing_class=job.tokenizer, **peft, **data)
    except (ValueError, ImportError, RuntimeError, re.error) as error:
        text = str(error)
        if isinstance(error, re.error):
            raise UserError(f"train.lora: peft reads a name there as a pattern, and it is none: {text}.") from error
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
    if job.config.lora and job.config.lora.get("lora_bias"):
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = (layer.get_base_layer() for layer in made.model.modules() if isinstance(layer, BaseTunerLayer))
        if any(getattr(layer, "bias", None) is None for layer in layers):  # peft would say so after the training
            raise UserError(
                "train.lora.lora_bias: not all layers that get an adapter have a bias, so it could not be merged into "
                "the student. Remove it, or name layers with a bias in train.lora.target_modules."
            )
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
    args.max_length = min(args.max_length or context, context)  # of packs too, as in trl_sft.yaml
    more: dict[str, Any] = {
        "limit": args.max_length,
        "too_long": job.config.too_long,
        "loss_on": job.config.loss_on,
        "whole": args.completion_only_loss is False,  # null: TRL decides, and of rows with a completion takes that
    }
    train = tokenize(job.tokenizer, job.train_rows, **more)
    if not train.rows:
        raise UserError(
            f"nothing to train on: no row has a completion within {args.max_length:,} tokens (train.sft.max_length, or "
            "the student's context)."
        )
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
                f"row {row.get('id', number)}: its prompt of {len(prompt):,} tokens leaves no room for "
                f"train.on_policy.max_completion_length ({job.args.max_completion_length:,}) in the models' context. "
                "Lower it, or set train.too_long: drop."
            )
    return kept, len(rows) - len(kept)


def _counts(tokens: Tokens) -> dict[str, int | None]:
    carrying = sum(label != IGNORED for row in tokens.rows for label in row["labels"])
    return {"tokens": carrying, "dropped": tokens.dropped, "cut": tokens.cut}


def _context(model: Any, tokenizer: Any) -> int:
    return local.context_length(Loaded(model, tokenizer, "student"))


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
    log: training.Log = lambda event: None,
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
    the step whose model was kept, and lost_step, that of a better one of which there is no whole checkpoint (None:
    there was none).

    Raises UserError for a wrong setting, for rows that would not teach the student to end its turn and where memory
    runs out, DivergedError if the loss becomes NaN or infinite.
    """
    begun = time.monotonic()
    training.quiet_libraries()
    args = trl_settings.arguments(config, seed=seed, checkpoints=checkpoints, validated=bool(validation_rows))
    job = Job(student, tokenizer, train_rows, validation_rows, config, args, teacher, system)
    parameters = student.num_parameters()  # not the sum over tensors: two weights of 4 bits are one number there
    with training.memory_errors():
        trainer, counts = METHODS[config.method](job)
        trained = training.run(trainer, config, out, checkpoints, log)
        training.save(trainer, student, tokenizer, config, out)
    return {
        **trained,
        **counts,
        "context": _context(student, tokenizer),
        "parameters": parameters,
        "seconds": round(time.monotonic() - begun, 3),
    }


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


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """Where a student given as a config gets its tokenizer: train.tokenizer, or the first local teacher's."""
    if isinstance(recipe.train.student, str):
        return None
    if recipe.train.tokenizer not in (None, "teacher"):
        return Path(str(recipe.train.tokenizer))
    teacher = next((teacher for teacher in recipe.collect.teachers if teacher.provider == "local"), None)
    return Path(local_teacher_folder(recipe, teacher)) if teacher else None


def student_seed(recipe: Recipe) -> int:
    """The seed of the students' random weights and of their training: train.seed, or the recipe's."""
    return recipe.seed if recipe.train.seed is None else recipe.train.seed


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
        except local.UNREADABLE as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"train.logits.source: stored: the tokenizer of {place} cannot be opened, so nobody knows what its "
                f"tokens are ({reason}). Name a folder with it in train.teacher."
            ) from error
        soft_targets.check_same_tokenizer(tokenizer, theirs, name=f"the teacher {place}")
    return None


VERSION = 5
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


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Train the student, then each baseline in the same way on other rows.

    Reads train, validation and random_subset; writes student/, baselines/NAME/ (plain model folders, the student's with
    a model card), adapter/ (with lora, of a student that is no config: the LoRA by itself), metrics.jsonl (one JSON
    object a log event, with the model's name) and trl_sft.yaml. Each training resumes from its last checkpoint.
    """
    for baseline in recipe.train.baselines:
        if baseline not in inputs:
            raise UserError(
                f"train.baselines: {baseline}: the run's assemble was made without it. Make it again: `seqkd assemble "
                "--force`, or `seqkd run`, which looks at all stages in turn."
            )
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
    for name in ("untrained", "adapter"):
        if (made := out / "checkpoints" / "student" / name).is_dir():
            shutil.copytree(made, out / name, copy_function=artifacts.link_or_copy)
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

    training.quiet_libraries()
    config, seed = recipe.train, student_seed(recipe)
    data = {"student": inputs["train"]} | {name: inputs[name] for name in config.baselines}
    system = system_message(recipe)
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    validation = _read(inputs["validation"])
    summaries: dict[str, Any] = {}
    for name, table in data.items():
        work = out / "checkpoints" / name
        done = work / "summary.json"
        if done.is_file():
            summaries[name] = json.loads(done.read_text())
            continue
        rows = _read(table)
        model, tokenizer = open_student(recipe, quantize=config.quantize)
        if name == "student" and not isinstance(config.student, str) and processes.rank() == 0:
            model.save_pretrained(work / "untrained")  # what trl_sft.yaml begins with
            tokenizer.save_pretrained(work / "untrained")
        shown = (
            training.training_progress(f"train {name}") if processes.rank() == 0 else nullcontext(lambda event: None)
        )
        with shown as log, training.tensorboard_files(out.parent / "tensorboard" / name):
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
        summaries[name] = {**summary, "rows": len(rows)}
        if processes.rank() == 0:
            artifacts.sync_tree(work)  # or a power cut could keep the summary and lose the weights
            # Renamed, for a full disk would leave one that is there and cannot be read.
            artifacts.write_json(work / "summary.new", summaries[name])
            (work / "summary.new").rename(done)
    return summaries


def _read(table: Path) -> list[dict[str, Any]]:
    """The rows of a training table: id, prompt, completion, and logprobs where collect stored the likeliest tokens."""
    import pyarrow.parquet as pq

    names = [name for name in ("id", "prompt", "completion", "logprobs") if name in pq.read_schema(table).names]
    return list(artifacts.read_rows(table, names))


def _note(summary: dict[str, Any]) -> str:
    note = f"student of {summary['parameters']:,} parameters, {summary['steps']:,} steps on {summary['rows']:,} rows"
    if summary["eval_loss"] is not None:
        note += f", validation loss {summary['eval_loss']:.3f}"
    if summary.get("best_step"):
        lost = summary.get("lost_step")
        said = "" if lost is None else f", for the better one of step {lost:,} has no whole checkpoint"
        note += f" ({'lowest, ' if lost is None else ''}at step {summary['best_step']:,}{said})"
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
