"""Scores that a model on this machine gives answers: a reward, and how hard an answer is to predict.

A row that does not fit into the model's context has no score (NaN). Some thousand rows are in memory at a time. They
are scored sorted by length, so that a batch holds little padding; a row's score depends on its batch by rounding alone.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import Ifd, Reward
from pipeline.records import Message
from pipeline.teachers import local
from pipeline.teachers.local import Loaded

Scores = NDArray[np.float64]
CHUNK = 4_096
"""Rows in memory at a time."""

Pair = tuple[Sequence[Message], str]
"""A conversation that ends with a user turn, and the answer to it."""


def rewards(section: Reward, pairs: Iterable[Pair], advance: Callable[[int], None]) -> Scores:
    """(n,) the reward of each pair. Raises UserError if the model cannot be opened or has more than one output."""
    loaded = local.load_reward(section.model, trust_remote_code=section.trust_remote_code)
    return _joined(1, (_rewards(loaded, chunk, section.batch_size, advance) for chunk in _chunks(pairs)))[0]


def _rewards(loaded: Loaded, pairs: list[Pair], size: int, advance: Callable[[int], None]) -> Scores:
    """(1, n)"""
    import torch

    model, limit = loaded.model, local.context_length(loaded)
    rows = local.encode(loaded.tokenizer, [_whole(pair) for pair in pairs], add_generation_prompt=False)
    found = np.full(len(pairs), np.nan)
    for batch in _batches([len(row) for row in rows], limit, size, advance):
        some = [rows[number] for number in batch]
        width, used = max(map(len, some)), {token for row in some for token in row}
        # A decoder's reward is read at the last token that is not padding, so no row may hold the padding token: where
        # it is the end of turn as well, another one pads.
        pad = next(i for i in (loaded.tokenizer.pad_token_id, *range(len(used) + 1)) if i is not None and i not in used)
        model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in some], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some], device=model.device)
        with torch.inference_mode():
            found[batch] = model(input_ids=ids, attention_mask=mask).logits[:, 0].double().cpu().numpy()
    return found[None]


def difficulty(section: Ifd, pairs: Iterable[Pair], advance: Callable[[int], None]) -> tuple[Scores, Scores]:
    """((n,) perplexity of each answer given its prompt, (n,) instruction-following difficulty): the mean negative
    log-likelihood of the answer's tokens given the prompt, over that given an empty prompt (Li et al., 2024, equation
    3). Near 0 the prompt gives the answer away, from 1 on it does not help. Raises UserError if the model cannot be
    opened."""
    loaded = local.load(section.model, trust_remote_code=section.trust_remote_code)
    perplexity, ifd = _joined(2, (_difficulty(loaded, chunk, section.batch_size, advance) for chunk in _chunks(pairs)))
    return perplexity, ifd


def _difficulty(loaded: Loaded, pairs: list[Pair], size: int, advance: Callable[[int], None]) -> Scores:
    """(2, n)"""
    limit = local.context_length(loaded)
    rows = local.encode(loaded.tokenizer, [_whole(pair) for pair in pairs], add_generation_prompt=False)
    perplexity, ifd = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    for batch in _batches([len(row) for row in rows], limit, size, advance):
        answers = [pairs[number][1] for number in batch]
        prompted = local.nll(loaded, [pairs[number][0] for number in batch], answers)
        alone = local.nll(loaded, [[{"role": "user", "content": ""}]] * len(batch), answers)
        for number, (given, tokens), (bare, bare_tokens) in zip(batch, prompted, alone, strict=True):
            if tokens and bare_tokens and bare > 0:
                perplexity[number] = math.exp(min(given / tokens, 700))
                ifd[number] = (given / tokens) / (bare / bare_tokens)
    return np.stack([perplexity, ifd])


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    rest = iter(pairs)
    return iter(lambda: list(itertools.islice(rest, CHUNK)), [])


def _joined(kinds: int, scores: Iterable[Scores]) -> Scores:
    """(kinds, n) from (kinds, some) at a time."""
    return np.concatenate([np.empty((kinds, 0)), *scores], axis=1)


def _whole(pair: Pair) -> list[Message]:
    messages, answer = pair
    return [*messages, {"role": "assistant", "content": answer}]


def _batches(lengths: list[int], limit: int, size: int, advance: Callable[[int], None]) -> Iterator[list[int]]:
    """The numbers of the rows of at most `limit` tokens, some at a time, the longest first: what runs out of memory
    does so at once."""
    order = sorted((n for n, length in enumerate(lengths) if 0 < length <= limit), key=lambda n: (-lengths[n], n))
    advance(len(lengths) - len(order))
    for start in range(0, len(order), size):
        yield order[start : start + size]
        advance(len(order[start : start + size]))
