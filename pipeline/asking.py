"""Ask teachers from another stage than collect: for prompts that they write, for verdicts, for held-out questions.

Whatever is asked goes through the stage collect: its store, retries, pace and budget are those of the run, nothing is
paid twice, and what was interrupted goes on where it was.
"""

import shutil
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Sorter, read_rows
from pipeline.recipe import Collect, Recipe
from pipeline.records import PROMPTS, Message, Row, facets_of, make_id


def ask(
    recipe: Recipe,
    section: Collect,
    conversations: Iterable[Sequence[Message]],
    out: Path,
    read: Callable[[Row], Any] = lambda row: row,
) -> tuple[list[Any], dict[str, Any]]:
    """Ask the teachers of `section` (sampling, system prompt and all; one sample) some conversations.

    conversations: written to disk as they come. out: the folder of the stage that asks; nothing is left in it. Returns,
    for each conversation, what `read` makes of its row of completions (only that is held in memory), or None where
    there is no answer, and what was used, as collect counts it, with "over_budget": conversations that were not asked
    because the budget was spent. Raises what collect raises.
    """
    from pipeline.stages import collect  # only now: it imports all that asking over HTTP needs

    asking = recipe.model_copy(update={"collect": section.model_copy(update={"file": None, "samples": 1})})
    order = array("Q")
    found: dict[int, Any] = {}
    # Named like the run, for collect tells by its folder which run's budget it spends.
    folder = out / out.parent.name / "asked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        prompts = Sorter(folder, "prompts", PROMPTS)
        for turns in conversations:
            name = make_id("asked", turns)
            order.append(_key(name))
            if order[-1] in found:
                continue
            found[order[-1]] = None
            row: Row = {"id": name, "domain": recipe.domain, "method": "asked", "template": None, "facets": facets_of()}
            prompts.add([row | {"messages": list(turns)}])
        if not order:
            return [], {}
        prompts.write()
        inputs = collect.sources(asking) | {"prompts": folder / "prompts.parquet"}
        counts = collect.run(asking, inputs, folder)
        for row in read_rows(folder / "completions.parquet"):
            found[_key(row["prompt_id"])] = read(row)
    finally:
        shutil.rmtree(folder.parent)
    return [found[key] for key in order], counts["usage"] | {"over_budget": counts["reasons"].get("budget", 0)}


def over_budget(requests: int, stage: str) -> str:
    """That requests were not sent, and what to do, in a sentence."""
    return (
        f"The budget was spent before {requests:,} of its requests: a larger collect.budget_usd with --from {stage} "
        "sends them, and pays nothing twice."
    )


def _key(name: str) -> int:
    """The first 64 bits of an id: smaller in memory, and they tell conversations apart as well."""
    return int(name[:16], 16)
