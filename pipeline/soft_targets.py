"""Soft targets: learn the teacher's probabilities, not only the tokens it chose (Hinton, Vinyals & Dean, 2015).

The loss at a token is (1 - alpha) * cross-entropy + alpha * T**2 * divergence(teacher, student), both distributions
flattened by the temperature T. The teacher's comes from one of two sources:

teacher  a local model's whole distribution, computed in the training step. Each model reads the row through its own
         chat template (the teacher with the system prompt it was asked with); what they share are the answer's tokens.
         Vocabularies that were padded to different sizes are cut to the real one.
stored   the k likeliest tokens that collect stored. What is left of the probability goes into one further outcome, "any
         other token", for the student just as for the teacher: the divergence of k + 1 outcomes, which is never more
         than the one over all tokens and says nothing about how the rest is shared out. The temperature is applied to
         these k + 1 outcomes.

A token without a teacher's distribution (the templates end a turn differently, the answer was edited or tokenizes in
another way from there on) keeps the plain loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.recipe import Logits
from pipeline.teachers.local import Loaded, common_prefix, context_length, encode
from pipeline.tokens import IGNORED, Tokens, tokenize

PADDING_LOGIT = -30.0  # of tokens that mean nothing: a probability of 1e-13 or less, and no infinite divergence
LEAST_REST = 1e-6  # of "any other token": stored probabilities are rounded, so nothing may be left of 1


class Targets(NamedTuple):
    """What the teacher says about some rows."""

    columns: dict[str, list[Any]]  # further columns of the training rows, see `collator`
    covered: int  # tokens that have a teacher's distribution
    tokens: int  # tokens that carry loss


def check_same_tokenizer(student: Any, teacher: Any, *, name: str) -> None:
    """Raise UserError unless two tokenizers give every id the same meaning: the same vocabulary, added tokens
    included, and the same beginning and end. Which token pads does not matter, nor do rows of a padded matrix."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    why = ""
    if ours != theirs:
        differing = [token for token in ours if theirs.get(token) != ours[token]]
        differing += [token for token in theirs if token not in ours]
        example = min(differing, key=lambda token: (len(token), token))
        why = (
            f"{len(differing):,} tokens differ, such as {example!r} (vocabularies of {len(ours):,} and {len(theirs):,})"
        )
    for kind in ("bos_token", "eos_token"):
        left, right = getattr(student, kind), getattr(teacher, kind)
        if not why and left != right:
            why = f"the {kind} is {left!r} in the student and {right!r} in the teacher"
    if why:
        raise UserError(
            f"the student cannot learn the probabilities of {name}: they have different tokenizers: {why}. Choose a "
            "student of the teacher's family, or use `train.method: sft`, which learns from the text alone."
        )


def real_vocabulary(tokenizer: Any) -> int:
    """Ids that mean something: 0 up to this number. A model's matrices may have more rows, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def check_same_prompts(student: Any, teacher: Any) -> None:
    """Raise UserError unless two chat templates make the same of a question: where the teacher scores the student's own
    tokens it reads the student's template."""
    asked = [[{"role": "user", "content": "1 + 1?"}]]
    if encode(student, asked, add_generation_prompt=True) != encode(teacher, asked, add_generation_prompt=True):
        raise UserError(
            "train.method: on_policy: the teacher would read questions in the student's chat template, which is not "
            "its own. Set train.chat_template to a file with the teacher's, or use `train.method: logits`, with "
            "which each reads its own."
        )


def fit_vocabulary(teacher: Any, student: Any, vocabulary: int) -> None:
    """Give the teacher's output the width of the student's, changing the teacher in place: TRL compares them whole.
    What is beyond the real vocabulary is padding, and the teacher then never writes it."""
    import torch

    # Not weight.shape: under ZeRO-3 the student's weights are elsewhere, and the shape is (0,).
    width = student.get_output_embeddings().out_features
    if teacher.get_output_embeddings().out_features == width:
        return
    teacher.resize_token_embeddings(width, mean_resizing=False)
    head = teacher.get_output_embeddings()
    bias = head.weight.new_zeros(width) if head.bias is None else head.bias.detach().clone()
    bias[vocabulary:] = PADDING_LOGIT
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


def from_teacher(tokens: Tokens, rows: Sequence[Mapping[str, Any]], teacher: Loaded, loss_on: str) -> Targets:
    """For each row the teacher's own reading of it, and which tokens of the two belong together.

    rows: {"prompt", "completion"} as the teacher was asked, the system prompt included.
    """
    theirs = tokenize(teacher.tokenizer, [rows[number] for number in tokens.source], loss_on=loss_on)
    limit = context_length(teacher)
    columns: dict[str, list[Any]] = {"soft": [], "teacher_ids": [], "teacher_soft": []}
    covered = total = 0
    for row, other in zip(tokens.rows, theirs.rows, strict=True):
        ids, other_ids = row["input_ids"], other["input_ids"][:limit]
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORED]
        other_places = [place for place in range(len(other_ids)) if other["labels"][place] != IGNORED]
        shared = common_prefix([ids[place] for place in places], [other_ids[place] for place in other_places])
        columns["soft"].append(_marks(len(ids), places[:shared]))
        columns["teacher_ids"].append(other_ids)
        columns["teacher_soft"].append(_marks(len(other_ids), other_places[:shared]))
        covered, total = covered + shared, total + len(places)
    return Targets(columns, covered, total)


def from_stored(tokens: Tokens, rows: Sequence[Mapping[str, Any]], *, needed: bool) -> Targets:
    """For each row the likeliest tokens at each place of its completion, as far as the stored tokens are the row's.

    rows: with `logprobs` as in records.COMPLETIONS. needed: raise UserError if no row has stored likeliest tokens with
    ids.
    """
    found = []
    for row, number, start in zip(tokens.rows, tokens.source, tokens.start, strict=True):
        stored = rows[number].get("logprobs") or []
        # Up to the first token without ids: what comes after it could belong to another text.
        usable = next((i for i, entry in enumerate(stored) if entry["id"] is None or not _tops(entry)), len(stored))
        ids = [entry["id"] for entry in stored[:usable]]
        found.append(stored[: common_prefix(ids, row["input_ids"][start:])])
    sizes = [len(_tops(entry)) for stored in found for entry in stored]
    if needed and not sizes:
        raise UserError(
            "train.logits.source: stored: no row has stored likeliest tokens that are tokens of the student. Set "
            "collect.sampling: {logprobs: true, top_logprobs: 20} and ask a local or vllm teacher, which give token "
            "ids, or use `train.method: sft`."
        )
    k = min(sizes, default=0)  # a server may add the chosen token to the k likeliest ones
    columns: dict[str, list[Any]] = {"soft": [], "top_ids": [], "top_logprobs": []}
    for row, start, stored in zip(tokens.rows, tokens.start, found, strict=True):
        columns["soft"].append(_marks(len(row["input_ids"]), range(start, start + len(stored))))
        best = [sorted(_tops(entry).items(), key=lambda pair: (-pair[1], pair[0]))[:k] for entry in stored]
        columns["top_ids"].append([[token for token, _ in top] for top in best])
        columns["top_logprobs"].append([[logprob for _, logprob in top] for top in best])
    total = sum(label != IGNORED for row in tokens.rows for label in row["labels"])
    return Targets(columns, len(sizes), total)


def _tops(entry: Mapping[str, Any]) -> dict[int, float]:
    """Token id -> log-probability of the likeliest tokens at one place."""
    return {top["id"]: top["logprob"] for top in entry["top"] or () if top["id"] is not None}


def _marks(length: int, places: Sequence[int]) -> list[int]:
    marks = [0] * length
    for place in places:
        marks[place] = 1
    return marks


def divergence(student: Any, teacher: Any, kind: str, beta: float = 0.5) -> Any:
    """Nats by which two distributions differ. student, teacher: (tokens, outcomes) log-probabilities -> (tokens,).

    forward_kl  KL(teacher || student)
    reverse_kl  KL(student || teacher)
    jsd         beta * KL(teacher || m) + (1 - beta) * KL(student || m), m = beta * teacher + (1 - beta) * student
                (Agarwal et al., 2024, with TRL's meaning of beta)
    """
    import math

    import torch

    def kl(left: Any, right: Any) -> Any:
        return (left.exp() * (left - right)).sum(-1)

    if kind == "forward_kl":
        return kl(teacher, student)
    if kind == "reverse_kl":
        return kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def with_rest(logits: Any, top: Any) -> Any:
    """Log-probabilities of the tokens `top` and, last, of any other token. (tokens, vocabulary), (tokens, k) ->
    (tokens, k + 1), or (tokens, k) where k is the whole vocabulary."""
    import torch

    logits = logits.log_softmax(-1)
    chosen = logits.gather(1, top)
    if top.shape[1] == logits.shape[1]:
        return chosen
    rest = logits.scatter(1, top, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([chosen, rest], 1)


def stored_with_rest(logprobs: Any, vocabulary: int) -> Any:
    """The same of what was stored: (tokens, k) log-probabilities -> (tokens, k + 1), or (tokens, k)."""
    import torch

    if logprobs.shape[1] == vocabulary:
        return logprobs.log_softmax(-1)
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST).log()
    return torch.cat([logprobs, rest], 1).log_softmax(-1)


def collator(inner: Any, pad: int) -> Any:
    """TRL's collator, and the columns of `Targets` beside what it makes of input_ids and labels:

    soft                    (rows, width) true where a token has a teacher's distribution
    teacher_ids, _mask, _soft  (rows, another width) the teacher's reading, what of it is no padding, the same tokens
    top_ids, top_logprobs   (soft tokens of all rows, k); (0,) where there are none
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(rows: list[list[int]], value: int) -> Any:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = inner(examples)
        soft = padded([row["soft"] for row in examples], 0).bool()
        width = batch["input_ids"].shape[1]  # it may be padded to a multiple
        batch["soft"] = torch.nn.functional.pad(soft, (0, width - soft.shape[1]))
        if "teacher_ids" in examples[0]:
            batch["teacher_ids"] = padded([row["teacher_ids"] for row in examples], pad)
            batch["teacher_mask"] = padded([[1] * len(row["teacher_ids"]) for row in examples], 0)
            batch["teacher_soft"] = padded([row["teacher_soft"] for row in examples], 0).bool()
        else:
            for name, kind in (("top_ids", torch.long), ("top_logprobs", torch.float32)):
                places = [place for row in examples for place in row[name]]
                batch[name] = torch.tensor(places, dtype=kind)
        return batch

    return collate


def trainer_class(settings: Logits, teacher: Any, vocabulary: int) -> Any:
    """SFTTrainer with the loss above. teacher: a transformers model in eval mode, None where source is stored."""
    import torch
    from torch.nn import functional
    from trl import SFTTrainer

    def flat(logits: Any) -> Any:
        return (logits / settings.temperature).log_softmax(-1)

    class SoftTargetTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels, soft = inputs["labels"][:, 1:], inputs["soft"][:, 1:]
            logits, places = _kept(model, inputs["input_ids"], inputs["attention_mask"], labels != IGNORED)
            targets = labels[places]
            losses = hard = functional.cross_entropy(logits, targets, reduction="none")  # (tokens,)
            has = soft[places]  # (tokens,) bool
            apart = logits.new_zeros(0)
            if settings.alpha and has.any():
                ours = logits[has][:, :vocabulary]
                if teacher is not None:
                    with torch.no_grad():
                        marks = inputs["teacher_soft"][:, 1:]
                        theirs, _ = _kept(teacher, inputs["teacher_ids"], inputs["teacher_mask"], marks)
                    left, right = flat(ours), flat(theirs[:, :vocabulary])
                else:
                    left = flat(with_rest(ours, inputs["top_ids"]))
                    right = flat(stored_with_rest(inputs["top_logprobs"], ours.shape[1]))
                apart = divergence(left, right, settings.divergence, settings.beta)
                weight = settings.alpha * settings.temperature**2
                losses = hard.masked_scatter(has, (1 - settings.alpha) * hard[has] + weight * apart)
            mode = "train" if model.training else "eval"
            note = self._metrics[mode]
            note["hard_loss"].append(hard.detach().mean().item())
            if len(apart):
                note["divergence"].append(apart.detach().mean().item())
            note["mean_token_accuracy"].append((logits.detach().argmax(-1) == targets).float().mean().item())
            loss = losses.sum() / (len(targets) if num_items_in_batch is None else num_items_in_batch)
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # which DDP divides by
            return (loss, {"logits": logits}) if return_outputs else loss

    return SoftTargetTrainer


def _kept(model: Any, ids: Any, mask: Any, marked: Any) -> tuple[Any, Any]:
    """The logits (tokens, vocabulary), in float32, from which a model predicts the marked tokens, row by row; and where
    they are in `marked`, (rows, width - 1): column i of it is token i + 1."""
    columns = marked.any(0).nonzero().squeeze(1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
    return logits[marked[:, columns]].float(), marked
