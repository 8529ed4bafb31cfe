"""How well prompts cover their domain, measured."""

from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline.domain import Domain
from pipeline.facets import GROUP_OF
from pipeline.novelty import words
from pipeline.records import FACETS

SAMPLE = 2000
"""Rows on which distinct-n and the similarity to the nearest row are measured."""


def coverage(prompts: pa.Table, taxonomy: Domain | None, kept: Counter[str] | None = None) -> dict[str, Any]:
    """How well the prompts cover their domain, as JSON values:

    facets       facet -> value -> {"rows", "plan"}: rows that have it, and how many the weights of domain.yaml ask for
                 (null where domain.yaml has no such value); with `kept` (prompt id -> its rows that are kept) also
                 "kept": kept rows of prompts that have it, and "kept_plan"
    taxonomy     topic -> {"entries", "touched"}: entities of domain.yaml, and those that a prompt names as its subject
    touched      share of all entities that are touched, 0 .. 1, null without a taxonomy
    distinct_n   n -> distinct word n-grams / word n-grams, for 1, 2, 3 (Li et al. 2016), on a sample of SAMPLE rows
    nearest      mean over that sample of the Jaccard similarity of word 3-grams to the nearest other row of the sample
    """
    facets = {name: prompts.column("facets").combine_chunks().field(name) for name in FACETS}
    rows_of = [(kept or {}).get(name, 0) for name in prompts.column("id").to_pylist()]
    covered: dict[str, dict[str, dict[str, int | float | None]]] = {}
    for facet, group in GROUP_OF.items():
        rows, accepted = Counter[str](), Counter[str]()
        for value, n in zip(facets[facet].to_pylist(), rows_of, strict=True):
            if value is not None:
                rows[value] += 1
                accepted[value] += n
        planned = list(getattr(taxonomy, group)) if taxonomy else []
        weights = {value: taxonomy.weight(group, value) for value in planned} if taxonomy else {}
        total = sum(weights.values())
        values = [*planned, *sorted(rows.keys() - weights.keys())]
        covered[facet] = {}
        for value in values if rows else []:
            part = weights[value] / total if value in weights else None
            covered[facet][value] = {
                "rows": rows[value],
                "plan": None if part is None else round(part * rows.total(), 1),
            }
            if kept is not None:
                covered[facet][value] |= {
                    "kept": accepted[value],
                    "kept_plan": None if part is None else round(part * accepted.total(), 1),
                }

    asked = {name for name in facets["entity"].to_pylist() if name is not None}
    entries: dict[str, dict[str, int]] = {}
    for topic, kinds in taxonomy.topics.items() if taxonomy else []:
        names = {name for of_kind in kinds.values() for name in of_kind}
        entries[topic] = {"entries": len(names), "touched": len(names & asked)}
    total = sum(entry["entries"] for entry in entries.values())

    # Ids are hashes, so that the first rows are a fair sample.
    sample = prompts.column("messages").slice(0, SAMPLE).to_pylist()
    texts = [words("\n".join(turn["content"] for turn in turns)) for turns in sample]
    return {
        "facets": covered,
        "taxonomy": entries,
        "touched": round(sum(e["touched"] for e in entries.values()) / total, 4) if total else None,
        "distinct_n": {str(n): _distinct_n(texts, n) for n in (1, 2, 3)},
        "nearest": _nearest(texts),
    }


def _ngrams(text: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def _distinct_n(texts: list[tuple[str, ...]], n: int) -> float | None:
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return round(len(set(grams)) / len(grams), 4) if grams else None


def _nearest(texts: list[tuple[str, ...]]) -> float | None:
    """Mean similarity of each text to the one nearest to it, by counting the 3-grams that it shares with each."""
    if len(texts) < 2:
        return None
    sets = [set(_ngrams(text, min(3, len(text)))) for text in texts]
    having: dict[tuple[str, ...], list[int]] = {}
    for number, grams in enumerate(sets):
        for gram in grams:
            having.setdefault(gram, []).append(number)
    best = []
    for number, grams in enumerate(sets):
        shared = Counter(other for gram in grams for other in having[gram] if other != number)
        best.append(max((n / (len(grams) + len(sets[other]) - n) for other, n in shared.items()), default=0.0))
    return round(sum(best) / len(best), 4)
