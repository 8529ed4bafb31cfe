"""Accepted rows, not attempts: generate goes on in rounds until `generate.target_kept` rows are kept.

Each round makes prompts, has the recipe's teachers answer them, and filters and deduplicates all answers so far, by the
stages collect, filter and dedupe themselves in a folder that is thrown away. The answers stay in the response store:
the same stages later ask nothing and come to the same rows, and a killed run that is started again asks nothing twice.

A round asks for what is missing at the rate at which the round before it was kept, and more where coverage is thin.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.artifacts import read_table, write_table
from pipeline.domain import Domain
from pipeline.errors import UserError
from pipeline.facets import GROUP_OF, Steering
from pipeline.progress import say
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, PROMPTS, Row

SPARE = 1.1
"""Prompts asked for each that is reckoned to be needed, so that a little bad luck costs no round."""

GROWTH = 4
"""A round asks at most so many times as many prompts as all before it: an early rate is a poor estimate."""

BOOST = 3.0
"""A thin part of the taxonomy is asked about at most so many times as often as its weight says, and a thick one at
least the inverse of it: a part of which nothing is ever kept must not use up the rest."""

DOUBTED = 4.0
"""A part is reckoned to be kept at least at the overall rate divided by this, however few of its rows were."""


class Kept(NamedTuple):
    """What the rounds came to."""

    rows: Counter[str]  # prompt id -> its rows that are kept
    rounds: list[dict[str, Any]]  # {"prompts", "answers", "gained", "kept" (in all so far), "acceptance"}
    unasked: int  # prompts that were taken out again, for the budget did not suffice to ask them
    why: str | None  # why fewer rows were kept than wanted


def until_kept(
    recipe: Recipe,
    out: Path,
    taken: dict[str, Row],
    more: Callable[[int], None],
    steering: Steering,
    taxonomy: Domain | None,
) -> Kept:
    """Go on until target_kept rows are kept, or the budget, max_rounds or the candidates end.

    out: the folder of the stage that asks; nothing is left in it. taken: the prompts; `more(n)` puts up to n more into
    it. What the budget did not suffice to ask is taken out again. Raises what collect raises.
    """
    target = recipe.generate.target_kept or 0
    # Named like the run, for the stages tell by their folder whose budget they spend.
    scratch = out / out.parent.name
    parts: list[pa.Table] = []
    rounds: list[dict[str, Any]] = []
    kept: Counter[str] = Counter()
    size, before = recipe.first_round or 0, 0
    try:
        while True:
            asked_before = len(taken)
            more(size)
            new = list(taken.values())[asked_before:]
            if not new:
                return Kept(kept, rounds, 0, "there are no more candidates")
            answers, unasked = _ask(recipe, new, scratch)
            parts.append(answers)
            kept = _kept(recipe, parts, scratch)
            total = kept.total()
            rounds.append(
                {
                    "prompts": len(new),
                    "answers": answers.num_rows,
                    "gained": total - before,
                    "kept": total,
                    "acceptance": round((total - before) / answers.num_rows, 4) if answers.num_rows else 0.0,
                }
            )
            say(f"  round {len(rounds)}: {len(new):,} prompts, {total:,} rows kept of {target:,} wanted")
            if unasked is not None:
                gone = [name for name, row in taken.items() if row["id"] in unasked]
                if len(gone) == len(taken):
                    gone = []  # the stage collect says what could not be asked
                for name in gone:
                    del taken[name]
                return Kept(
                    kept,
                    rounds,
                    len(gone),
                    None
                    if total >= target
                    else f"the budget of ${recipe.collect.budget_usd:g} is spent; a larger collect.budget_usd with "
                    "--from generate goes on",
                )
            if total >= target:
                return Kept(kept, rounds, 0, None)
            if not total:
                return Kept(kept, rounds, 0, "not one answer was kept")
            if len(rounds) == recipe.generate.max_rounds:
                return Kept(kept, rounds, 0, f"generate.max_rounds ({len(rounds)}) is reached")
            rate = (total - before) / len(new) if total > before else total / len(taken) / DOUBTED
            size = min(math.ceil(SPARE * (target - total) / rate), GROWTH * len(taken))
            steering.set(thin(taken.values(), kept, target, taxonomy))
            before = total
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def thin(
    prompts: Collection[Row], kept: Counter[str], target: int, taxonomy: Domain | None
) -> dict[str, dict[str, float]]:
    """How many times as often as its weight says each value of each facet should be asked about next: facet -> value
    -> BOOST at the most and 1 / BOOST at the least.

    What a value lacks of its planned part of `target` rows is divided by the rate at which its rows are kept. Without a
    taxonomy the plan is what was asked.
    """
    total = kept.total()
    overall = total / len(prompts)
    times: dict[str, dict[str, float]] = {}
    for facet, group in GROUP_OF.items():
        asked: Counter[str] = Counter()
        got: Counter[str] = Counter()
        for row in prompts:
            value = row["facets"][facet]
            if value is not None:
                asked[value] += 1
                got[value] += kept[row["id"]]
        plan = {value: taxonomy.weight(group, value) for value in getattr(taxonomy, group)} if taxonomy else dict(asked)
        if not asked or not plan:
            continue
        wanted = target * sum(got[value] for value in plan) / total  # not every prompt has every facet
        need = {}
        for value, weight in plan.items():
            rate = max(got[value] / asked[value] if asked[value] else overall, overall / DOUBTED)
            need[value] = max(0.0, wanted * weight / sum(plan.values()) - got[value]) / rate
        per_weight = sum(need.values()) / sum(plan.values())
        times[facet] = {
            value: min(BOOST, max(1 / BOOST, need[value] / (per_weight * weight))) if per_weight else 1.0
            for value, weight in plan.items()
        }
    return times


def _ask(recipe: Recipe, prompts: list[Row], scratch: Path) -> tuple[pa.Table, set[str] | None]:
    """The answers to some prompts, and the ids of those for which the budget did not suffice at all; None where it
    sufficed. Only these prompts are asked: whatever was computed before is computed beside the same rows again."""
    from pipeline.stages import collect  # only now: it imports all that asking over HTTP needs

    folder = _empty(scratch / "collect")
    path = scratch / "prompts.parquet"
    write_table(path, PROMPTS, sorted(prompts, key=lambda row: str(row["id"])))
    counts = collect.run(recipe, collect.sources(recipe) | {"prompts": path}, folder)
    answers = read_table(folder / "completions.parquet")
    if not counts["reasons"].get("budget"):
        return answers, None
    answered = set(answers["prompt_id"].to_pylist())
    failures = read_table(folder / "failures.parquet", ["prompt_id", "reason"]).to_pylist()
    lacking = {row["prompt_id"] for row in failures if row["reason"] == "budget"}
    return answers, lacking - answered


def _kept(recipe: Recipe, parts: list[pa.Table], scratch: Path) -> Counter[str]:
    """Prompt id -> how many of its answers the stages filter and dedupe keep of all the answers so far."""
    from pipeline.stages import dedupe, filter

    completions = scratch / "completions.parquet"
    answers = pa.concat_tables(parts).sort_by("id")
    if not answers.num_rows:
        return Counter()
    write_table(completions, COMPLETIONS, answers)
    filtered, deduped = _empty(scratch / "filter"), _empty(scratch / "dedupe")
    try:
        filter.run(recipe, filter.sources(recipe) | {"completions": completions}, filtered)
        dedupe.run(recipe, dedupe.sources(recipe) | {"kept": filtered / "kept.parquet"}, deduped)
    except UserError:
        return Counter()  # one keeps none; the stage itself will say why, with the answers at hand
    return Counter(read_table(deduped / "kept.parquet", ["prompt_id"])["prompt_id"].to_pylist())


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
