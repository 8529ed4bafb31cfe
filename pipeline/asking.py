"""Ask teachers from another stage than collect: for prompts that they write, for verdicts, for held-out questions.

Whatever is asked goes through the stage collect: its store, retries, pace and budget are those of the run, nothing is
paid twice, and what was interrupted goes on where it was.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_rows, write_table
from pipeline.recipe import Collect, Recipe
from pipeline.records import PROMPTS, Message, Row, facets_of, make_id


def ask(
    recipe: Recipe, section: Collect, conversations: Sequence[Sequence[Message]], out: Path
) -> tuple[list[Row | None], dict[str, Any]]:
    """Ask the teachers of `section` (sampling, system prompt and all; one sample) some conversations.

    out: the folder of the stage that asks; nothing is left in it. Returns, for each conversation, its row of
    completions, or None where there is no answer, and what was used, as collect counts it. Raises what collect raises.
    """
    from pipeline.stages import collect  # only now: it imports all that asking over HTTP needs

    asking = recipe.model_copy(update={"collect": section.model_copy(update={"file": None, "samples": 1})})
    ids = [make_id("asked", turns) for turns in conversations]
    rows = {
        name: {
            "id": name,
            "domain": recipe.domain,
            "method": "asked",
            "template": None,
            "facets": facets_of(),
            "messages": list(turns),
        }
        for name, turns in zip(ids, conversations, strict=True)
    }
    if not rows:
        return [], {}
    # Named like the run, for collect tells by its folder which run's budget it spends.
    folder = out / out.parent.name / "asked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write_table(folder / "prompts.parquet", PROMPTS, [rows[name] for name in sorted(rows)])
        inputs = collect.sources(asking) | {"prompts": folder / "prompts.parquet"}
        counts = collect.run(asking, inputs, folder)
        found = {row["prompt_id"]: row for row in read_rows(folder / "completions.parquet")}
    finally:
        shutil.rmtree(folder.parent)
    return [found.get(name) for name in ids], counts["usage"]
