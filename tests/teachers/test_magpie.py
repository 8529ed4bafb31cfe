"""The method magpie on a real, tiny model."""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.stages import generate
from pipeline.teachers.local import Loaded, encode, load
from pipeline.written import magpie, user, user_opening


@pytest.fixture(scope="module")
def folder(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that ends its turn soon: one token in 25 is an end of turn."""
    copied = shutil.copytree(untrained, tmp_path_factory.mktemp("magpie") / "model")
    size = json.loads((copied / "config.json").read_text())["vocab_size"]
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, size, 25))}))
    return copied


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    return load(folder)


def test_the_opening_is_what_comes_before_the_users_text(model: Loaded) -> None:
    for system in (None, "Be short."):
        opening = user_opening(model.tokenizer, system)
        chat = [*([{"role": "system", "content": system}] if system else []), *user("Who?")]
        text = model.tokenizer.apply_chat_template(chat, tokenize=False)
        assert text.startswith(opening + "Who?") and ("Be short." in opening) == bool(system)


def test_every_prompt_is_drawn_with_its_own_seed(model: Loaded) -> None:
    def some(batch_size: int, left_out: Counter[str]) -> list[str]:
        made = magpie(model, "Be short.", 1.0, 1.0, 50, batch_size, 8, 3, left_out)
        return [one.messages[0]["content"] for one in islice(made, 3)]

    counts: Counter[str] = Counter()
    first = some(32, counts)
    assert len(set(first)) == 3 and counts
    assert some(7, Counter()) == first
    before = encode(model.tokenizer, [user("x")], add_generation_prompt=True)
    assert encode(model.tokenizer, [user("x")], add_generation_prompt=True) == before, "the tokenizer is left as it was"


def test_the_stage_writes_them(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "domain": "star_trek",
            "generate": {"count": 8, "methods": {"magpie": 1}},
            "collect": {
                "teachers": [{"provider": "local", "model": str(folder)}],
                "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 50},
            },
        }
    )
    inputs = generate.sources(recipe)
    assert folder in inputs.values()
    counts = generate.run(recipe, inputs, tmp_path)
    assert counts["outcomes"]["prompts"] == 8 or "magpie has no more than" in counts["note"]


def test_it_needs_a_local_teacher(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "domain": "star_trek",
            "generate": {"count": 8, "methods": {"magpie": 1}},
            "collect": {"teachers": [{"provider": "openai", "model": "x"}]},
        }
    )
    with pytest.raises(UserError, match="magpie: needs a teacher of `provider: local`"):
        generate.run(recipe, generate.sources(recipe), tmp_path)
