"""Tiny real models, made once for all tests of this folder."""

import json
import shutil
from pathlib import Path

import pytest
from conftest_models import MODEL, make_facts

from pipeline.facts import Fact


@pytest.fixture(scope="session")
def facts() -> list[Fact]:
    return make_facts()


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random tiny Llama with a tokenizer and a chat template: it rambles, so sampling has choices."""
    from pipeline.recipe import Embedded
    from pipeline.teachers.embedded import _random_model, train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "untrained"
    tokenizer = train_tokenizer(make_facts(), Embedded(**{"vocab_size": 320, "model": MODEL}))
    model, _ = _random_model({"model_type": "llama", **MODEL, "initializer_range": 0.3}, tokenizer, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def eager(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with random weights that end the turn soon: one token in 25 is an end of turn."""
    copied = shutil.copytree(untrained, tmp_path_factory.mktemp("models") / "eager")
    size = json.loads((copied / "config.json").read_text())["vocab_size"]
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, size, 25))}))
    return copied
