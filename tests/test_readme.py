"""The README is held to what is there."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import paths
from pipeline.facts import read_facts
from pipeline.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_file():
    tree = README[README.index("## The tree") :]
    for folder in ("", "calls", "teachers", "stages"):
        for path in (ROOT / "pipeline" / folder).glob("*.py"):
            if path.name != "__init__.py":
                assert path.name in tree, f"pipeline/{folder}/{path.name} is not in the README's tree"


def test_every_shipped_recipe_and_command_is_described():
    for name in paths.shipped_recipes():
        assert f"`{name}`" in README
    for name in ("run", "plan", "status", "show", "filter", "new-domain"):
        assert f"seqkd {name}" in README


def test_its_recipe_is_one(tmp_path):
    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "\ndomain:" in block)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml").collect.teachers[0].model == "my-model"


def test_the_number_of_facts_is_the_one_it_says():
    facts = read_facts(ROOT / "data" / "star_trek" / "facts")
    assert f"all {len(facts):,} facts" in README
    recipe = yaml.safe_load((ROOT / "pipeline/recipes/quickstart.yaml").read_text())
    taught = recipe["collect"]["teachers"][0]["embedded"]["relations"]
    assert f"from {sum(fact.relation in taught for fact in facts)} facts" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_its_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()
