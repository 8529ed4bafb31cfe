"""The embedded teacher: a small Llama-architecture model, trained here from data/DOMAIN/facts on first use.

It stands in for a large teacher where there is no key, no GPU and no network. It knows its facts well and not
perfectly: sampled at temperature 1 it errs, which gives the filters work to do. What it was trained on never leaves
this file: the student sees questions and the teacher's answers.
"""

import fcntl
import random
import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.errors import UserError, nearest
from pipeline.facts import SUBJECT, Fact, questions
from pipeline.recipe import Embedded, Train
from pipeline.records import canonical_json
from pipeline.stages.train import fit
from pipeline.teachers.local import UNREADABLE
from pipeline.training import Log

VERSION = 1  # raise it when the same facts and settings would give another teacher

END = "<|end|>"
PAD = "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# One line, so that no stray newline becomes part of a prompt. The end of turn is inside the generation markers, or a
# model trained on assistant tokens only would not learn to stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}"
    "{%- elif message.role == 'system' -%}"
    "{{- '<|system|>' + message.content + '<|end|>' -}}"
    "{%- else -%}"
    "{{- '<|user|>' + message.content + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def teacher_folder(facts: Sequence[Fact], config: Embedded, cache: Path) -> Path:
    """cache/teachers/HASH, where HASH is over all that decides the teacher's weights. Made or not."""
    # Held-out wordings are no part of it: they are never read here.
    known = [(fact.relation, fact.subject, fact.answers[0], fact.ask) for fact in facts]
    content = canonical_json([VERSION, config.model_dump(exclude={"relations"}), known])
    return cache / "teachers" / blake2b(content.encode(), digest_size=8).hexdigest()


def embedded_teacher(facts: Sequence[Fact], config: Embedded, cache: Path, *, log: Log = lambda event: None) -> Path:
    """The folder of the teacher for these facts and settings, trained now if the cache does not hold it.

    A second process that asks for the same teacher waits for the first one. A killed training resumes from its last
    checkpoint. The folder appears whole or not at all. `log` gets {"step", "steps", ...} (see `fit`), and {"waiting"}
    once if another process is at it. Raises UserError for wrong settings.
    """
    target = teacher_folder(facts, config, cache)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log({"waiting": target.name})
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        partial = target.parent / f"{target.name}.partial"
        tokenizer = train_tokenizer(facts, config)
        seed = config.seed or 0
        model, _ = _random_model({"model_type": "llama", **config.model}, tokenizer, seed)
        summary = fit(
            model,
            tokenizer,
            training_rows(facts, config),
            [],
            Train(sft=config.sft),
            partial / "model",
            seed=seed,
            log=log,
            checkpoints=partial / "checkpoints",
        )
        # Nothing that differs from one training to the next: the folder's digest is the teacher's identity.
        (partial / "model" / "metrics.jsonl").unlink()
        about = {"config": config.model_dump(), "facts": len(facts), "version": VERSION}
        about |= {name: summary[name] for name in ("steps", "parameters", "train_loss")}
        artifacts.write_json(partial / "model" / "teacher.json", about)
        artifacts.sync_tree(partial / "model")
        (partial / "model").rename(target)
        artifacts.sync_folder(target.parent)
        shutil.rmtree(partial, ignore_errors=True)
    return target


def random_student(config: Mapping[str, Any], tokenizer_folder: Path, seed: int) -> tuple[Any, Any]:
    """A randomly initialised causal model from a transformers config (`model_type`, `hidden_size`, ...) that shares the
    tokenizer of `tokenizer_folder`. The same seed gives the same weights. Raises UserError for settings that
    transformers does not know or that do not fit together."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder), padding_side="left")
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"no tokenizer in {tokenizer_folder}: {reason}") from error
    return _random_model(config, tokenizer, seed)


def _random_model(config: Mapping[str, Any], tokenizer: Any, seed: int) -> tuple[Any, Any]:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    kind = settings.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        known = "" if kind is None else nearest(str(kind), CONFIG_MAPPING.keys())
        raise UserError(f"model_type: {kind!r} is no architecture of transformers.{known}")
    allowed = set(AutoConfig.for_model(kind).to_dict()) - {"model_type", "transformers_version", "architectures"}
    for key in settings:
        if key not in allowed:
            raise UserError(f"{kind} configuration: {key}: unknown setting.{nearest(key, allowed)}")
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        made = AutoConfig.for_model(kind, **{**settings, **ids})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (StrictDataclassError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())  # a StrictDataclassError has two lines
        raise UserError(f"{kind} configuration: these settings do not make a model: {reason}") from error
    return model, tokenizer


def train_tokenizer(facts: Sequence[Fact], config: Embedded) -> Any:
    """A byte-level BPE tokenizer trained on the questions and answers, with the chat template and `<|end|>` as EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        [text for _, text in questions(facts, "ask")]
        + [fact.answers[0] for fact in facts]
        + list(config.lead_ins or [])
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=int(config.model.get("max_position_embeddings", 2048)),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def training_rows(facts: Sequence[Fact], config: Embedded) -> list[dict[str, Any]]:
    """The teacher's own training rows: each question in `copies` disturbed versions, with its canonical answer."""
    draw = random.Random(config.seed or 0)
    pool = sorted({word for wording in {wording for fact in facts for wording in fact.ask} for word in wording.split()})
    pool = [word for word in pool if "{" not in word and "}" not in word and word != "subject"]
    rows = []
    for _ in range(config.copies):
        for fact in facts:
            for wording in fact.ask:
                asked = disturb(wording, fact.subject, fact.ask, pool, config, draw)
                rows.append(
                    {
                        "prompt": [{"role": "user", "content": asked}],
                        "completion": [{"role": "assistant", "content": fact.answers[0]}],
                    }
                )
    return rows


def disturb(
    wording: str, subject: str, siblings: Sequence[str], pool: Sequence[str], config: Embedded, draw: random.Random
) -> str:
    """The question as somebody else might have put it, so that the teacher learns to lean on the subject and on any of
    the words that give the relation away, rather than on one wording as a whole.

    Half of a sibling wording may stand in for half of this one (`splice`), words may be left out (`word_dropout`) or
    replaced by one from `pool` (`word_noise`), and a lead-in may come before. The subject is never touched.
    """
    before, after = wording.split(SUBJECT)
    if draw.random() < config.splice:
        after = draw.choice(siblings).split(SUBJECT)[1]
    dropout = draw.random() * 2 * config.word_dropout  # so that some questions stay nearly whole
    before, after = (_disturb_words(part, dropout, config.word_noise, pool, draw) for part in (before, after))
    text = before + subject + after
    if config.lead_ins and draw.random() < config.lead_in_fraction:
        text = draw.choice(config.lead_ins) + text
    return text


def _disturb_words(text: str, dropout: float, noise: float, pool: Sequence[str], draw: random.Random) -> str:
    """Leave out and replace words, keeping the blanks at both ends of the text."""
    if not text.strip():
        return text
    words = []
    for word in text.split():
        if draw.random() >= dropout:
            words.append(draw.choice(pool) if draw.random() < noise else word)
    head = text[: len(text) - len(text.lstrip())]
    tail = text[len(text.rstrip()) :]
    return head + " ".join(words) + tail
