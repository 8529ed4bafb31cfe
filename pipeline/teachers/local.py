"""Provider `local`: any Hugging Face causal model with a chat template, answered through transformers in this process.

`load` opens a folder or a hub id (safetensors only), `answer` samples, `nll` scores. Sampling is by the Gumbel-max
trick (Gumbel, 1954): the noise of a token is a hash of (the row's seed, its position, the token), so a row's answer
depends on its own seed and not on the state of a random generator or on what else is in the batch.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.calls.reply import Parsed, Problem, Reply, Usage
from pipeline.errors import UserError
from pipeline.recipe import Sampling, Teacher

Messages = Sequence[dict[str, str]]  # [{"role": ..., "content": ...}, ...]


SAMPLES_AT_ONCE = 1

# What transformers raises for files that are not what they should be, JSON of another form included.
UNREADABLE = (OSError, ValueError, LookupError, ImportError, TypeError, AttributeError)


def request(teacher: Teacher, messages: Messages, sampling: Sampling, seed: int) -> dict[str, Any]:
    """What determines an answer besides the sample's own seed."""
    return {
        "model": teacher.called,
        "messages": messages,
        "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "logprobs": sampling.logprobs,
        "seed": seed,
        **({"top_logprobs": sampling.top_logprobs} if sampling.logprobs and sampling.top_logprobs else {}),
    }


def parse(status: int, body: bytes) -> Parsed | Problem:
    """What `answer` returned, from the store."""
    answer = json.loads(body)
    if answer["finish_reason"] == "error":
        return Problem("final", "context_length", answer["error"])
    scores = answer["logprobs"]
    logprobs = [{"token": None, "id": None, "logprob": score, "top": None} for score in scores] if scores else None
    for entry, token, top in zip(logprobs or (), answer.get("ids", ()), answer.get("top", ()), strict=False):
        entry["id"] = token
        entry["top"] = [{"token": None, "id": other, "logprob": value, "top": None} for other, value in top]
    reply = Reply(answer["text"], answer["finish_reason"], None, logprobs)
    return Parsed([reply], Usage(answer["input_tokens"], 0, answer["output_tokens"]))


class Loaded(NamedTuple):
    """A model ready to answer."""

    model: Any  # transformers.PreTrainedModel in eval mode
    tokenizer: Any  # transformers.PreTrainedTokenizerBase with a chat template, padding on the left
    name: str


def load(
    model: str | Path,
    *,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    chat: bool = True,
    quantization: Any = None,
) -> Loaded:
    """Open a model folder or hub id. `dtype` "auto": float32 on a CPU, the model's own elsewhere; `device` "auto": CUDA
    or MPS where there is one. `quantization`: a transformers quantization config; the model is on the first CUDA GPU
    then, if there is one.

    Raises UserError if there is no such folder or hub id (or no network), if the weights are pickled, if the model
    needs code of its own and `trust_remote_code` is false, or (unless `chat` is false) if there is no chat template.
    """
    network, tokenizer = open_model("AutoModelForCausalLM", model, trust_remote_code, dtype, device, quantization)
    if chat:
        _needs_chat_template(str(model), tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return prepare(network, tokenizer, str(model))


def load_reward(model: str | Path, *, trust_remote_code: bool = False) -> Loaded:
    """Open a reward model: a sequence classifier with one output and a chat template. Raises UserError as `load`
    does, and if it has another number of outputs."""
    network, tokenizer = open_model("AutoModelForSequenceClassification", model, trust_remote_code)
    _needs_chat_template(str(model), tokenizer)
    if network.config.num_labels != 1:
        raise UserError(
            f"local model {model}: is a classifier with {network.config.num_labels} outputs; a reward model has one."
        )
    return Loaded(network.eval(), tokenizer, str(model))


def open_model(
    kind: str,
    model: str | Path,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    quantization: Any = None,
) -> tuple[Any, Any]:
    """(network, tokenizer) of a folder or hub id, as `load` says. kind: the name of one of transformers' AutoModel
    classes."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of texts that are longer than the context, and whoever asks says so too
    name = str(model)
    _check_place(name, trust_remote_code)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    place = 0 if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"local model {name}: unknown dtype '{dtype}'. Use auto, float32, bfloat16 or float16.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, padding_side="left"
        )
        network, about = getattr(transformers, kind).from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **({"quantization_config": quantization, "device_map": {"": place}} if quantization else {}),
        )
    except (*UNREADABLE, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UserError(_load_problem(name, error)) from error
    if about["missing_keys"]:
        # transformers would fill these in at random and only warn.
        missing = ", ".join(sorted(about["missing_keys"])[:3])
        raise UserError(f"local model {name}: its files lack weights that its config.json calls for ({missing} ...).")
    return network if quantization else network.to(device), tokenizer


def _needs_chat_template(name: str, tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            f"local model {name}: its tokenizer has no chat template. Use an instruction-tuned model, or put a "
            "chat_template.jinja into its folder."
        )


def prepare(model: Any, tokenizer: Any, name: str = "model") -> Loaded:
    """A model and tokenizer in memory as `Loaded`: eval mode, left padding, and none of the sampling parameters that a
    model's generation_config.json applies silently; only its end-of-turn tokens are kept."""
    from transformers import GenerationConfig

    ends = _end_tokens(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    tokenizer.padding_side = "left"
    return Loaded(model.eval(), tokenizer, name)


def answer(
    loaded: Loaded,
    conversations: Sequence[Messages],
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seeds: Sequence[int],
    logprobs: bool = False,
    top_logprobs: int | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Answer a batch of conversations, each with its own seed; temperature 0 is greedy. on_text: for a single one, gets
    the pieces of its text as they are written.

    Returns one dict for each conversation, in order:
      text           the answer without special tokens and without the stop string
      finish_reason  "stop" | "length" | "error"
      input_tokens   tokens of the prompt
      output_tokens  tokens that were generated, the end of turn included
      logprobs       natural log-probability of each generated token under the untempered model, or None
      ids, top       only with `top_logprobs`: the id of each generated token, and the likeliest tokens in its place as
                     [[id, log-probability], ...], the likeliest first
      error          what went wrong, only with finish_reason "error" (a prompt longer than the model's context)
    """
    if len(seeds) != len(conversations):
        raise ValueError(f"{len(conversations)} conversations but {len(seeds)} seeds")
    prompts = encode(loaded.tokenizer, conversations, add_generation_prompt=True)
    limit = context_length(loaded)
    rows: list[dict[str, Any]] = [{} for _ in prompts]
    fitting, tight = [], []
    for index, prompt in enumerate(prompts):
        if len(prompt) >= limit:
            text = f"the prompt has {len(prompt)} tokens, the model's context is {limit}"
            rows[index] = _row("", "error", len(prompt), 0, [] if logprobs else None) | {"error": text}
        elif len(prompt) + max_tokens > limit:
            tight.append(index)
        else:
            fitting.append(index)
    # A prompt that leaves less than max_tokens goes alone, so that it does not cut its neighbours short.
    groups = [(fitting, max_tokens)] + [([index], limit - len(prompts[index])) for index in tight]
    for indices, budget in groups:
        if indices:
            batch = [prompts[index] for index in indices]
            given = [seeds[index] for index in indices]
            answers = _generate(
                loaded, batch, given, temperature, top_p, budget, logprobs, list(stop), top_logprobs, on_text
            )
            for index, row in zip(indices, answers, strict=True):
                rows[index] = row
    return rows


def nll(loaded: Loaded, conversations: Sequence[Messages], completions: Sequence[str]) -> list[tuple[float, int]]:
    """Negative log-likelihood in nats of each completion, its end of turn included, given its conversation.

    Returns (sum over the completion's tokens, number of those tokens) for each pair.
    """
    import torch

    turns = [[*chat, _assistant(text)] for chat, text in zip(conversations, completions, strict=True)]
    if not turns:
        return []
    prompts = encode(loaded.tokenizer, conversations, add_generation_prompt=True)
    full = encode(loaded.tokenizer, turns, add_generation_prompt=False)
    ends = set(_end_tokens(loaded.model, loaded.tokenizer))
    starts, rows = [], []
    for prompt, ids in zip(prompts, full, strict=True):
        start = common_prefix(prompt, ids)
        last = max((i for i in range(start, len(ids)) if ids[i] in ends), default=None)
        # Templates may put a newline after the end of turn: no model writes it, so it does not count.
        rows.append(ids[: last + 1] if last is not None else ids)
        starts.append(start)
    width = max(map(len, rows))
    device = loaded.model.device
    pad = loaded.tokenizer.pad_token_id or 0
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        chosen = logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)  # (rows, width - 1)
    scores = chosen.double().cpu()
    return [
        (-float(scores[i, start - 1 : len(row) - 1].sum()), len(row) - start)
        for i, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]


def encode(tokenizer: Any, conversations: Sequence[Messages], *, add_generation_prompt: bool) -> list[list[int]]:
    """Token ids of each conversation in the model's chat template. Control tokens that stand in a message are encoded
    as plain text, so a user's `<|im_end|>` does not end the turn. Raises UserError for a conversation that the template
    refuses, such as one with a system message."""
    from jinja2 import TemplateError

    if not conversations:
        return []
    # Of the method magpie: in the template's form already.
    if conversations[0] and conversations[0][-1]["role"].startswith("opening"):
        texts = [chat[-1]["content"] for chat in conversations]
        return [list(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def ids_of(chats: Sequence[Messages]) -> list[list[int]]:
        ids = tokenizer.apply_chat_template(
            [list(chat) for chat in chats],
            add_generation_prompt=add_generation_prompt,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        return [list(row) for row in ids]

    refusals = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
    try:
        return ids_of(conversations)
    except refusals:
        for chat in conversations:  # which of them it was
            try:
                ids_of([chat])
            except refusals as error:
                roles = ", ".join(message["role"] for message in chat)
                raise UserError(
                    f"the chat template of {tokenizer.name_or_path or 'the model'} does not take a conversation of "
                    f"{roles}: {_first_line(str(error)).rstrip('.')}. Leave out what it does not take (a system "
                    "message is collect.system), or use another template (of a student: train.chat_template)."
                ) from error
        raise


def user_opening(model: str, system: str | None, *, trust_remote_code: bool = False) -> str:
    """What a model's chat template puts before the text of the first user turn, with all its control tokens.

    model: a folder or hub id, of which only the tokenizer is read. Raises UserError if it cannot be, or has no chat
    template, or one that takes no system prompt.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (*UNREADABLE, RuntimeError) as error:
        raise UserError(_load_problem(model, error)) from error
    _needs_chat_template(model, tokenizer)
    mark = "(the text of the user)"
    messages = [{"role": "system", "content": system}] if system else []
    try:
        text: str = tokenizer.apply_chat_template([*messages, {"role": "user", "content": mark}], tokenize=False)
    except TemplateError as error:
        raise UserError(f"{model}: its chat template takes no system prompt ({error}): no collect.system.") from None
    return text[: text.index(mark)]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two sequences share: where the completion begins (as TRL finds it)."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def context_length(loaded: Loaded) -> int:
    """Tokens that the model can attend to, prompt and answer together."""
    config = loaded.model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or loaded.tokenizer.model_max_length
    return int(min(limit, loaded.tokenizer.model_max_length))


def _generate(
    loaded: Loaded,
    prompts: list[list[int]],
    seeds: Sequence[int],
    temperature: float,
    top_p: float,
    max_tokens: int,
    logprobs: bool,
    stop: list[str],
    top_logprobs: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    import torch

    model, tokenizer = loaded.model, loaded.tokenizer
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    noted: list[Any] = []  # for each position, the log-probability of the chosen token: (rows,)
    likeliest: list[tuple[Any, Any]] = []  # for each position, log-probabilities and ids: (rows, k) both
    keys = torch.tensor([_signed(seed) for seed in seeds], device=model.device)

    def choose(tokens: Any, scores: Any) -> Any:
        """Scores (rows, vocabulary) whose argmax is the sampled token."""
        raw = scores.float()
        if temperature > 0:
            scores = _gumbel_scores(raw, keys, tokens.shape[1] - width, temperature, top_p)
        if logprobs:
            chosen = scores.argmax(-1, keepdim=True)
            noted.append((raw.gather(1, chosen).squeeze(1) - raw.logsumexp(1)).cpu())
        if top_logprobs:
            best, ids = raw.log_softmax(1).topk(min(top_logprobs, raw.shape[1]))
            likeliest.append((best.cpu(), ids.cpu()))
        return scores

    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            logits_processor=[choose],
            do_sample=False,  # the noise is in the scores already
            streamer=_streamer(tokenizer, set(_end_tokens(model, tokenizer)), on_text) if on_text else None,
            **({"stop_strings": stop, "tokenizer": tokenizer} if stop else {}),
        )[:, width:].cpu()
    noise = torch.stack(noted, 1) if noted else None
    ends = set(_end_tokens(model, tokenizer))
    rows = []
    for index, generated in enumerate(output.tolist()):
        finished = next((i for i, token in enumerate(generated) if token in ends), None)
        used = len(generated) if finished is None else finished + 1
        reason = "length" if finished is None else "stop"
        body = generated if finished is None else generated[:finished]
        text = tokenizer.decode(body, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cut = min((place for place in (text.find(word) for word in stop) if place >= 0), default=-1)
        if cut >= 0:
            # Rows that stopped early at a stop string were padded to the batch's width: count up to the string only.
            used = _tokens_until(tokenizer, generated[:used], stop)
            text, reason = text[:cut], "stop"
        scores = noise[index, :used].tolist() if noise is not None else None
        row = _row(text, reason, len(prompts[index]), used, scores)
        if top_logprobs:
            pairs = [(best[index].tolist(), ids[index].tolist()) for best, ids in likeliest[:used]]
            top = [[[token, value] for value, token in zip(*pair, strict=True)] for pair in pairs]
            row |= {"ids": generated[:used], "top": top}
        rows.append(row)
    return rows


def _streamer(tokenizer: Any, ends: set[int], on_text: Callable[[str], None]) -> Any:
    """What `generate` hands each token to, for `on_text`: whole characters, without the end of turn. (transformers'
    TextStreamer waits for a space, which some languages never write.)"""
    from transformers.generation import BaseStreamer

    class Streamer(BaseStreamer):
        tokens: list[int] | None = None  # before the prompt has come
        # Decoding all of them for each new one would take longer and longer, so only those from `start` on are decoded:
        # the last that were shown, up to `shown`, because some tokenizers write the first token of a text without the
        # space before it, and what has come since.
        start = shown = 0

        def put(self, value: Any) -> None:
            if self.tokens is None:
                self.tokens = []
                return
            self.tokens += [token for token in value.reshape(-1).tolist() if token not in ends]
            self.show(whole=False)

        def end(self) -> None:
            self.show(whole=True)

        def show(self, whole: bool) -> None:
            tokens = self.tokens or []
            before, text = decode(tokens[self.start : self.shown]), decode(tokens[self.start :])
            # At its end there may be the first bytes of a character.
            if len(text) > len(before) and (whole or not text.endswith("\N{REPLACEMENT CHARACTER}")):
                on_text(text[len(before) :])
                self.start, self.shown = self.shown, len(tokens)

    def decode(tokens: list[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    return Streamer()


def _gumbel_scores(raw: Any, keys: Any, position: int, temperature: float, top_p: float) -> Any:
    """Tempered scores cut to the nucleus (Holtzman et al., 2020), plus Gumbel noise. raw: (rows, vocabulary)."""
    import torch

    scores = raw / temperature
    if top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # Keep a token if those before it have not reached top_p yet: the most likely one always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), float("-inf"))
    stream = _mix(_mix(keys) + _signed(position * _GOLDEN))
    tokens = torch.arange(raw.shape[-1], device=raw.device)
    bits = _mix(stream[:, None] + tokens[None, :] * _GOLDEN)
    # 23 bits, so that the largest uniform is below 1 in float32 and the noise is finite.
    uniform = ((bits & ((1 << 23) - 1)).float() + 0.5) / (1 << 23)
    return scores - (-uniform.log()).log()


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def _mix(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, 2014) on int64 tensors; arithmetic wraps round."""
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shift(x, 31)


def _shift(x: Any, by: int) -> Any:
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(seed: int) -> int:
    """Any integer as a signed 64-bit one."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _tokens_until(tokenizer: Any, tokens: list[int], stop: list[str]) -> int:
    """How many tokens it took until a stop string was complete."""
    for used in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:used], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if any(word in text for word in stop):
            return used
    return len(tokens)


def _row(text: str, reason: str, used: int, made: int, scores: list[float] | None) -> dict[str, Any]:
    return {
        "text": text,
        "finish_reason": reason,
        "input_tokens": used,
        "output_tokens": made,
        "logprobs": scores,
    }


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a turn: the model's own list and the tokenizer's end-of-sequence token."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    return ids


def _check_place(name: str, trust_remote_code: bool) -> None:
    """Refuse what cannot be opened before anything is imported or asked for over the network."""
    path = Path(name)
    if not path.is_dir():
        if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.exists():
            raise UserError(
                f"local model {name}: no such folder. Give a folder with a model, or a hub id (OWNER/NAME)."
            )
        return
    if not (path / "config.json").is_file():
        raise UserError(f"local model {name}: the folder has no config.json, so it is no Hugging Face model.")
    if not any(path.glob("*.safetensors")):
        if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
            raise UserError(
                f"local model {name}: its weights are pickled, and opening a pickle can run any code. Convert them to "
                "safetensors (model.save_pretrained writes those) where you trust them."
            )
        raise UserError(f"local model {name}: the folder has no *.safetensors file with weights.")


def _load_problem(name: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"local model {name}: it brings Python code of its own. Read that code, and set trust_remote_code: true in "
            "the recipe if you want it to run here."
        )
    if "backend tokenizer" in text:
        return (
            f"local model {name}: has no tokenizer that can be opened. Put its tokenizer.json into the folder: "
            "tokenizer.save_pretrained writes it. If it has a tokenizer.model only: pip install sentencepiece"
        )
    if not Path(name).is_dir():
        if os.environ.get("HF_HUB_OFFLINE") or "offline" in text.lower() or "connect" in text.lower():
            return (
                f"local model {name}: no such folder here, not in the Hugging Face cache, and the hub cannot be "
                "reached. Give a folder, or download the model where there is a network."
            )
        if "safetensors" in text:
            return f"local model {name}: it has no safetensors weights; pickled ones are not opened."
        return f"local model {name}: no such folder and no such hub id, or no access to it ({_first_line(text)})."
    if "ignore_mismatched_sizes" in text:
        return f"local model {name}: cannot be opened: its weights have other shapes than its config.json says."
    if isinstance(error, json.JSONDecodeError):
        return f"local model {name}: cannot be opened: one of its .json files is damaged ({_first_line(text)})."
    if isinstance(error, KeyError):
        return f"local model {name}: cannot be opened: one of its .json files is damaged (at {_first_line(text)})."
    # A StrictDataclassError says what is wrong on its second line.
    return f"local model {name}: cannot be opened: {' '.join(text.split()) if len(text) < 300 else _first_line(text)}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
