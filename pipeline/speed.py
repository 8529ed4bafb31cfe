"""How fast models answer on this machine, and how much room they take.

The models take turns, so that whatever else the machine does hits all of them alike. docs/evaluate.md says what each
figure means and what it cannot say.
"""

import itertools
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.recipe import Recipe
from pipeline.records import Message, Row, canonical_json
from pipeline.teachers import local
from pipeline.teachers.local import Loaded

# A round of the speed measurement is one full batch of every model. There are at least ROUNDS of them and SHORTEST_S
# seconds, but on a slow machine none begins after LONGEST_S.
ROUNDS = 5
SHORTEST_S = 2.0
LONGEST_S = 20.0

Chats = Mapping[str, Sequence[list[Message]]]  # model -> each question as that model is asked it


def measure(
    models: dict[str, Loaded], chats: Chats, answers: Mapping[str, Sequence[Row]], recipe: Recipe
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Each model's speed and size, and the conditions under which they were measured."""
    import torch

    config = recipe.evaluate
    # As much to write as the teacher wrote on average (the student, where there is none to ask).
    usual = [row["output_tokens"] for row in answers.get("teacher") or answers["student"] if row["output_tokens"]]
    tokens = max(1, round(statistics.fmean(usual or [1])))
    prompts = full_batch(models, chats, tokens, config.batch_size)
    seconds = throughput(models, prompts, tokens) if prompts else {}
    one = {name: rows[:1] for name, rows in prompts.items()}
    alone = throughput(models, one, tokens) if prompts else {}
    # A question that is too long for one of them is refused in no time.
    questions = [
        number
        for number in range(len(chats["student"]))
        if all(answers[name][number]["finish_reason"] != "error" for name in models)
    ]
    numbers = random.Random(recipe.seed).sample(questions, min(config.latency_questions, len(questions)))
    whole = latency(models, chats, numbers, config.max_tokens)
    first = latency(models, chats, numbers, 1)
    made = tokens * config.batch_size
    figures: dict[str, dict[str, Any]] = {}
    for name, loaded in models.items():
        rate = made / statistics.median(seconds[name]) if seconds else None
        per_hour = config.usd_per_hour
        figures[name] = {
            "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
            "disk_bytes": disk_bytes(loaded.name),
            "memory_bytes": int(loaded.model.get_memory_footprint()),
            "peak_memory_bytes": peak_memory(loaded, prompts[name], tokens) if prompts else None,
            "tokens_per_s": rate,
            "tokens_per_s_range": [made / max(seconds[name]), made / min(seconds[name])] if seconds else None,
            "tokens_per_s_one": tokens / statistics.median(alone[name]) if alone else None,
            "tokens_per_s_one_range": [tokens / max(alone[name]), tokens / min(alone[name])] if alone else None,
            "latency_p50_s": float(np.percentile(whole[name], 50)) if numbers else None,
            "latency_p95_s": float(np.percentile(whole[name], 95)) if numbers else None,
            "first_token_p50_s": float(np.percentile(first[name], 50)) if numbers else None,
            "first_token_p95_s": float(np.percentile(first[name], 95)) if numbers else None,
            "usd_per_million_tokens": per_hour / (rate * 3600) * 1e6 if rate and per_hour is not None else None,
        }
    conditions = {
        "max_tokens": config.max_tokens,
        "batch_size": config.batch_size,
        "tokens_each": tokens,
        "rounds": len(seconds["student"]) if seconds else 0,
        "latency_questions": len(numbers),
        "threads": torch.get_num_threads(),
        "device": models["student"].model.device.type,
        "usd_per_hour": config.usd_per_hour,
        # The NLL is a token's, so it says nothing between models that cut the same text in other places.
        "one_tokenizer": len({canonical_json(loaded.tokenizer.get_vocab()) for loaded in models.values()}) == 1,
    }
    return figures, conditions


def full_batch(models: dict[str, Loaded], chats: Chats, tokens: int, size: int) -> dict[str, list[list[int]]]:
    """model -> `size` questions as token ids, the same for every model; {} if `tokens` more never fit in a context."""
    prompts = {name: local.encode(m.tokenizer, chats[name], add_generation_prompt=True) for name, m in models.items()}
    limits = {name: local.context_length(loaded) for name, loaded in models.items()}
    questions = range(len(chats["student"]))
    fits = [index for index in questions if all(len(prompts[n][index]) + tokens <= limits[n] for n in models)]
    chosen = [fits[index % len(fits)] for index in range(size)] if fits else []
    return {name: [prompts[name][index] for index in chosen] for name in models if chosen}


def throughput(models: dict[str, Loaded], prompts: dict[str, list[list[int]]], tokens: int) -> dict[str, list[float]]:
    """Seconds that each model takes to write exactly `tokens` tokens after each prompt, in one batch, over several
    rounds: all do the same work however long they would like to talk. The first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    begun, rounds = time.monotonic(), 0
    while True:
        for name, loaded in models.items():
            started = time.perf_counter()
            write(loaded, prompts[name], tokens)
            if rounds:
                seconds[name].append(time.perf_counter() - started)
        rounds += 1
        spent = time.monotonic() - begun
        if rounds > 1 and (spent > LONGEST_S or (rounds > ROUNDS and spent > SHORTEST_S)):
            return seconds


def write(loaded: Loaded, prompts: list[list[int]], tokens: int) -> None:
    """Write exactly `tokens` tokens after each prompt, in one batch."""
    import torch

    width = max(map(len, prompts))
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=loaded.model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=loaded.model.device)
    with torch.inference_mode():
        loaded.model.generate(
            input_ids=ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
        ).cpu()


def peak_memory(loaded: Loaded, prompts: list[list[int]], tokens: int) -> int | None:
    """Bytes that the weights and a full batch take at the most: what the allocator was asked for, not what the process
    holds. None where that cannot be told."""
    import torch

    weights = int(loaded.model.get_memory_footprint())
    device = loaded.model.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        write(loaded, prompts, tokens)
        return weights + torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says hello on stderr otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        write(loaded, prompts, tokens)
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return weights + max(itertools.accumulate((change for _, change in changes), initial=0))


def latency(models: dict[str, Loaded], chats: Chats, numbers: Sequence[int], max_tokens: int) -> dict[str, list[float]]:
    """Seconds from question to answer, one question at a time: {model: [seconds]}. The first question is asked twice,
    to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for position, index in enumerate([*numbers[:1], *numbers]):
        for name, loaded in models.items():
            begun = time.perf_counter()
            local.answer(loaded, [chats[name][index]], temperature=0, top_p=1, max_tokens=max_tokens, seeds=[0])
            if position:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def disk_bytes(model: str) -> int | None:
    """Bytes of a model's folder, or of its part of the Hugging Face cache; None for a model that was never saved."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model)
    if not model or not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json") if model else None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
