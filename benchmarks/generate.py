"""How fast `facets` makes distinct prompts free of near-duplicates, and in how much memory.

    python benchmarks/generate.py [COUNT] [DOMAIN]

100,000 prompts of the Star Trek domain should take at most 15 s of one core and 500 MB. CPU seconds, of the whole
stage: reading the domain, held-out guard, coverage and the Parquet file included. Start-up is importing the package.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from pipeline.recipe import Recipe
from pipeline.stages import generate


def main(count: int, domain: str) -> None:
    recipe = Recipe.model_validate(
        {
            "domain": domain,
            "generate": {"count": count, "methods": {"facets": 1.0}},
            "collect": {"teachers": [{"provider": "local", "model": "none"}]},
        }
    )
    startup = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        counts = generate.run(recipe, generate.sources(recipe), Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("prompts  near-duplicates  start-up s  stage s  prompts/s  peak MB")
    seconds = time.process_time() - startup
    made, near = counts["outcomes"]["prompts"], counts["reasons"].get("near_duplicate", 0)
    print(f"{made:7,} {near:16,} {startup:11.1f} {seconds:8.1f} {made / seconds:10,.0f} {peak:8,.0f}")
    print(counts.get("note", ""))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, sys.argv[2] if len(sys.argv) > 2 else "star_trek")
