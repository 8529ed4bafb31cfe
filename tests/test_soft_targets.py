"""Soft targets: the divergences against numpy and TRL, the stored tokens, and which tokens have a teacher's word."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import soft_targets
from pipeline.errors import UserError
from pipeline.soft_targets import divergence, from_stored, from_teacher, stored_with_rest, with_rest
from pipeline.teachers.local import prepare
from pipeline.tokens import PLAIN, tokenize
from stages.test_fit import ROWS, student


def by_hand(student: np.ndarray, teacher: np.ndarray, kind: str, beta: float) -> np.ndarray:
    """The definitions, in float64, from logits."""
    q, p = (np.exp(x - x.max(-1, keepdims=True)) for x in (student.astype(float), teacher.astype(float)))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    if kind == "forward_kl":
        return (p * np.log(p / q)).sum(-1)
    if kind == "reverse_kl":
        return (q * np.log(q / p)).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


def logits(seed: int, tokens: int = 5, vocabulary: int = 11) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return torch.randn(tokens, vocabulary) * 3, torch.randn(tokens, vocabulary) * 3


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 0.95))
def test_divergences_are_those_of_the_definition(kind: str, seed: int, beta: float) -> None:
    ours, theirs = logits(seed)
    got = divergence(ours.log_softmax(-1), theirs.log_softmax(-1), kind, beta).numpy()
    assert got == pytest.approx(by_hand(ours.numpy(), theirs.numpy(), kind, beta), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.5), ("jsd", 0.2)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_trls(kind: str, beta: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    ours, theirs = logits(3)
    expected = GKDTrainer.generalized_jsd_loss(
        ours[None], theirs[None], torch.zeros(1, len(ours)), beta=beta, temperature=temperature
    )
    got = divergence((ours / temperature).log_softmax(-1), (theirs / temperature).log_softmax(-1), kind, beta or 0.5)
    # TRL divides the sum by the tokens (batchmean over what labels mark).
    assert got.mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_rest_is_one_outcome() -> None:
    ours, theirs = logits(0)
    top = theirs.topk(4).indices
    coarse = with_rest(ours, top)
    assert coarse.shape == (5, 5) and coarse.exp().sum(-1).numpy() == pytest.approx(1, abs=1e-5)
    assert coarse[:, :4].numpy() == pytest.approx(ours.log_softmax(-1).gather(1, top).numpy())
    stored = stored_with_rest(theirs.log_softmax(-1).gather(1, top), 11)
    assert stored.exp().sum(-1).numpy() == pytest.approx(1, abs=1e-5)
    # With every token stored nothing is lost; with fewer the divergence can only be smaller.
    exact = divergence(ours.log_softmax(-1), theirs.log_softmax(-1), "forward_kl")
    every = theirs.argsort(descending=True)
    whole = divergence(
        with_rest(ours, every), stored_with_rest(theirs.log_softmax(-1).gather(1, every), 11), "forward_kl"
    )
    assert whole.numpy() == pytest.approx(exact.numpy(), rel=1e-4)
    assert (divergence(coarse, stored, "forward_kl") <= exact + 1e-5).all()


def test_nothing_left_of_the_probability_is_no_infinity() -> None:
    stored = torch.tensor([[math.log(0.6), math.log(0.4000001)]])
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        left = with_rest(torch.zeros(1, 5), torch.tensor([[1, 3]]))
        assert torch.isfinite(divergence(left, stored_with_rest(stored, 5), kind)).all()


def test_other_tokenizers_are_refused() -> None:
    _, ours = student()
    _, theirs = student()
    soft_targets.check_same_tokenizer(ours, theirs, name="the teacher")
    theirs.pad_token = "<|end|>"  # which token pads does not matter
    soft_targets.check_same_tokenizer(ours, theirs, name="the teacher")
    theirs.add_tokens(["Zanzibar"])
    with pytest.raises(UserError, match="1 tokens differ, such as 'Zanzibar'.*method: sft"):
        soft_targets.check_same_tokenizer(ours, theirs, name="the teacher")
    _, theirs = student()
    theirs.eos_token = "<|user|>"
    with pytest.raises(UserError, match="the eos_token is '<|end|>' in the student"):
        soft_targets.check_same_tokenizer(ours, theirs, name="the teacher")


def test_the_teacher_reads_its_own_template_and_system_prompt() -> None:
    model, tokenizer = student()
    _, others = student()
    others.chat_template = PLAIN
    tokens = tokenize(tokenizer, ROWS)
    asked = [{**row, "prompt": [{"role": "system", "content": "Be brief."}, *row["prompt"]]} for row in ROWS]
    targets = from_teacher(tokens, asked, prepare(model, others), "completion")
    assert targets.covered == targets.tokens  # the answer and its end are the same tokens in both
    for row, soft, ids, marks in zip(tokens.rows, *targets.columns.values(), strict=True):
        assert tokenizer.decode(ids).startswith("system:\nBe brief.")
        chosen = [token for token, mark in zip(row["input_ids"], soft, strict=True) if mark]
        assert chosen == [token for token, mark in zip(ids, marks, strict=True) if mark]
        assert chosen == [label for label in row["labels"] if label != -100]


def entry(token: int | None, top: list[tuple[int, float]]) -> dict[str, Any]:
    tops = [{"token": None, "id": i, "logprob": value, "top": None} for i, value in top]
    return {"token": None, "id": token, "logprob": -0.1, "top": tops}


def test_stored_tokens_count_as_far_as_they_are_the_rows_own() -> None:
    _, tokenizer = student()
    tokens = tokenize(tokenizer, ROWS[:3])
    said = [row["input_ids"][start:] for row, start in zip(tokens.rows, tokens.start, strict=True)]
    stored = [[entry(token, [(token, -0.1), (7, -3.0), (9, -4.0)]) for token in ids] for ids in said]
    stored[1][1] = entry(299, [(299, -0.1), (7, -3.0)])  # from here on another text; and only two tokens known
    stored[2] = []
    rows = [{**row, "logprobs": logprobs} for row, logprobs in zip(ROWS, stored, strict=False)]
    targets = from_stored(tokens, rows, needed=True)
    assert targets.covered == len(said[0]) + 1 and targets.tokens == sum(map(len, said))
    assert [sum(marks) for marks in targets.columns["soft"]] == [len(said[0]), 1, 0]
    assert targets.columns["top_ids"][0][0] == [said[0][0], 7, 9] and targets.columns["top_ids"][2] == []
    with pytest.raises(UserError, match="top_logprobs: 20"):
        from_stored(tokens, [{**row, "logprobs": None} for row in ROWS[:3]], needed=True)
    # Rows of the validation may have none.
    assert from_stored(tokens, [{**row, "logprobs": None} for row in ROWS[:3]], needed=False).covered == 0


def test_padding_is_cut_from_the_teacher() -> None:
    model, tokenizer = student()
    wide, _ = student()
    wide.resize_token_embeddings(320)
    narrow, _ = student()
    for one in (wide, narrow):
        one.eval()
    ids = torch.tensor([[1, 2, 3]])
    before = narrow(ids).logits.log_softmax(-1)
    soft_targets.fit_vocabulary(narrow, wide, len(tokenizer))
    after = narrow(ids).logits
    assert after.shape[-1] == 320 and after.log_softmax(-1)[..., : len(tokenizer)].allclose(before, atol=1e-4)
    before = wide(ids).logits[..., : len(tokenizer)].log_softmax(-1)
    soft_targets.fit_vocabulary(wide, model, len(tokenizer))
    assert wide(ids).logits.shape[-1] == len(tokenizer)
    assert wide(ids).logits.log_softmax(-1).allclose(before, atol=1e-5)


def test_a_local_teacher_stores_its_likeliest_tokens() -> None:
    from pipeline.teachers.local import answer

    model, tokenizer = student()
    chats = [row["prompt"] for row in ROWS[:3]]
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 5, "seeds": [1, 2, 3], "logprobs": True}
    rows = answer(prepare(model, tokenizer), chats, **sampling, top_logprobs=4)
    plain = answer(prepare(model, tokenizer), chats, **sampling)
    for chat, row, other in zip(chats, rows, plain, strict=True):
        assert {name: row[name] for name in other} == other  # asking for more changes nothing
        assert len(row["ids"]) == len(row["top"]) == row["output_tokens"]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) + row["ids"]
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -len(row["ids"]) - 1 : -1].log_softmax(-1)
        best = scores.topk(4)
        assert [[token for token, _ in top] for top in row["top"]] == best.indices.tolist()
        got = np.array([[value for _, value in top] for top in row["top"]])
        assert got == pytest.approx(best.values.numpy(), abs=1e-4)
