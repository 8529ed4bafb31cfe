"""The row types and their Arrow schemas: the one place that says what a column means.

Every table is one Parquet file, TABLE.parquet, with one row a record, sorted by `id` (unless said otherwise).
An id is a hash of what determines the row, so the same recipe and seed give the same ids on any machine.
"""

import hashlib
import json
from typing import Any

import pyarrow as pa

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Row = dict[str, Any]
"""One record as a plain dictionary, its keys the columns of one of the schemas below."""

FACETS = ("topic", "entity", "task", "persona", "difficulty", "style", "language")
"""What a prompt is about, in the words of prompts/DOMAIN/domain.yaml. A facet that does not apply is null."""

FINISH_REASONS = ("stop", "length", "refusal", "content_filter", "error")
"""Why a completion ended, one vocabulary for all providers. `error`: the provider could not answer this row."""

_text = pa.string()
_messages = pa.list_(pa.struct([("role", _text), ("content", _text)]))
_top = pa.list_(pa.struct([("token", _text), ("id", pa.int32()), ("logprob", pa.float32())]))
_logprobs = pa.list_(pa.struct([("token", _text), ("id", pa.int32()), ("logprob", pa.float32()), ("top", _top)]))

PROMPTS = pa.schema(
    [
        ("id", _text),  # hash of domain and messages: the same question is the same prompt however it was made
        ("domain", _text),
        ("method", _text),  # questions, facets, file ...: the method of the generate stage
        ("template", _text),  # the template or relation it was made from, null where there is none
        ("facets", pa.struct([(facet, _text) for facet in FACETS])),
        ("messages", _messages),  # ends with a user turn; the system prompt is the collect stage's affair
        ("context", _text),  # the passage that an answer must rest on (method documents), null for all others
    ]
)

COMPLETIONS = pa.schema(
    [
        ("id", _text),  # hash of prompt_id, teacher and sample
        ("prompt_id", _text),
        ("sample", pa.int32()),  # 0 .. samples - 1
        ("messages", _messages),  # the prompt, without the system prompt
        ("text", _text),  # the answer
        ("reasoning", _text),  # the provider's reasoning text, null where it gives none
        ("finish_reason", _text),  # one of FINISH_REASONS
        ("teacher", _text),  # the model's name as the recipe gives it
        ("provider", _text),
        ("input_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),  # the part of input_tokens that the provider read from its prompt cache
        ("output_tokens", pa.int64()),
        ("cost_usd", pa.float64()),  # US dollars; null where the recipe gives no price
        ("logprobs", _logprobs),  # one entry an output token; null unless collect.sampling.logprobs asks for it
        ("context", _text),  # the prompt's passage, shown to the teacher; null where there is none
    ]
)

FAILURES = pa.schema(
    [
        ("id", _text),  # the id that the completion would have had
        ("prompt_id", _text),
        ("sample", pa.int32()),
        ("messages", _messages),
        ("teacher", _text),
        ("provider", _text),
        ("reason", _text),  # one word: timeout, rejected, context_length, bad_body ...
        ("detail", _text),  # what the provider said, cut to 2,000 characters
        ("attempts", pa.int32()),
    ]
)

KEPT = pa.schema(
    [
        *COMPLETIONS,
        ("agreement", pa.float64()),  # share of the prompt's completions that say the same, 0 .. 1
        ("pii", pa.list_(_text)),  # kinds of personal data found in prompt or answer; null unless filter.pii asks
        ("score", pa.float64()),  # what filter.judge gives; null without one, and where it gives none
        ("reward", pa.float64()),  # what filter.reward's model gives; null likewise
        ("perplexity", pa.float64()),  # of the answer given its prompt, under filter.ifd's model; null likewise
        ("ifd", pa.float64()),  # instruction-following difficulty under the same model; null likewise
    ]
)

REJECTED = pa.schema(
    [
        *KEPT,
        ("reason", _text),  # the first rule that rejected it
        ("reasons", pa.list_(_text)),  # every rule that would have
    ]
)

DUPLICATES = pa.schema(
    [
        *KEPT,
        ("reason", _text),  # exact, near or semantic
        ("duplicate_of", _text),  # id of the kept row that this one repeats
        ("similarity", pa.float64()),  # Jaccard similarity to that row, 1.0 for exact; cosine for semantic
    ]
)

WITHHELD = pa.schema(
    [
        *KEPT,
        ("reason", _text),  # held_out_exact, held_out_overlap, not_best
        ("overlaps", _text),  # id of the held-out question or of the better row, null where there is none
    ]
)

TRAIN = pa.schema(
    [
        ("id", _text),  # the completion's id
        ("prompt", _messages),  # TRL's conversational prompt-completion form
        ("completion", _messages),
        ("metadata", pa.struct([("prompt_id", _text), ("teacher", _text), ("agreement", pa.float64())])),
        # and `logprobs`, as the completion's, where collect.sampling.top_logprobs asks for them: soft targets
    ]
)

PREDICTIONS = pa.schema(
    [
        ("id", _text),  # hash of question and model
        ("question_id", _text),
        ("model", _text),  # teacher, student, untrained, random_subset
        ("topic", _text),
        ("question", _text),
        ("answers", pa.list_(_text)),  # the accepted answers, the canonical one first
        ("text", _text),
        ("exact", pa.bool_()),  # exact match after normalisation
        ("token_f1", pa.float64()),
        ("nll", pa.float64()),  # nats a token of the teacher's answer to this question, under this model
        ("output_tokens", pa.int64()),
    ]
)

TABLES: dict[str, tuple[str, pa.Schema]] = {
    "prompts": ("generate", PROMPTS),
    "completions": ("collect", COMPLETIONS),
    "failures": ("collect", FAILURES),
    "kept": ("filter", KEPT),  # dedupe writes a `kept` of its own, the part of this one that repeats nothing
    "rejected": ("filter", REJECTED),
    "duplicates": ("dedupe", DUPLICATES),
    "train": ("assemble", TRAIN),
    "validation": ("assemble", TRAIN),
    "withheld": ("assemble", WITHHELD),
    "random_subset": ("assemble", TRAIN),  # the baseline's data: unfiltered, as many rows as train
    "predictions": ("evaluate", PREDICTIONS),
}
"""Table name -> (the stage that writes it, its schema)."""


# Made once: json.dumps makes one for each call that has such arguments.
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises TypeError on what JSON cannot hold."""
    return _canonical.encode(value)


def make_id(*parts: Any) -> str:
    """20 hexadecimal digits (80 bits of BLAKE2b) that identify `parts`; for 10 million rows the odds of a clash are
    one in 10 billion."""
    data = canonical_json(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=10).hexdigest()


def facets_of(**known: str | None) -> dict[str, str | None]:
    """All facets, those not given null."""
    return {facet: known.get(facet) for facet in FACETS}
