"""Presidio over a tiny spaCy model of two names, both real."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import artifacts, entities, rules
from pipeline.errors import UserError
from pipeline.recipe import Presidio, Recipe
from pipeline.records import COMPLETIONS
from pipeline.stages import filter as stage

spacy = pytest.importorskip("spacy", reason="pip install 'seqkd[pii]'")
pytest.importorskip("presidio_analyzer", reason="pip install 'seqkd[pii]'")

TEXT = "Ask Ann Miller or Bo (ann@corp.io) at 10.0.0.1."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("spacy") / "names"
    pipeline = spacy.blank("en")
    patterns = [{"label": "PERSON", "pattern": name} for name in ("Ann Miller", "Bo")]
    pipeline.add_pipe("entity_ruler").add_patterns(patterns)
    pipeline.to_disk(made)
    return str(made)


def test_names_are_found_besides_what_the_patterns_find(model: str) -> None:
    section = Presidio(model=model)
    assert [(kind, TEXT[start:end]) for kind, start, end in rules.personal_data(TEXT, section)] == [
        ("person", "Ann Miller"), ("person", "Bo"), ("email", "ann@corp.io"),
    ]  # fmt: skip
    assert rules.redacted(TEXT, section) == "Ask <PERSON> or <PERSON> (<EMAIL>) at 10.0.0.1."
    section = Presidio(model=model, entities=["IP_ADDRESS", "EMAIL_ADDRESS"])
    assert rules.redacted(TEXT, section) == "Ask Ann Miller or Bo (<EMAIL_ADDRESS>) at <IP_ADDRESS>."
    assert entities.named(TEXT, Presidio(model=model, min_score=0.99)) == []
    assert entities.named("", section) == []


@pytest.mark.parametrize("wanted", ["flag", "redact", "drop"])
def test_the_stage_looks_for_names(tmp_path: Path, model: str, wanted: str) -> None:
    texts = ["The captain is Ann Miller.", "The captain is somebody else."]
    rows = [
        dict.fromkeys(COMPLETIONS.names)
        | {"id": str(i), "prompt_id": str(i), "sample": 0, "text": text, "finish_reason": "stop", "teacher": "t"}
        | {"messages": [{"role": "user", "content": "Does Bo know the captain?" if i else "Who?"}], "provider": "local"}
        for i, text in enumerate([*texts, "Nobody knows the captain of the ship."])
    ]
    rows[2]["messages"] = [{"role": "user", "content": "Who is the captain?"}]
    artifacts.write_table(tmp_path / "completions.parquet", COMPLETIONS, rows)
    section: dict[str, Any] = {"pii": wanted, "presidio": {"model": model}}
    recipe = Recipe.model_validate(
        {"domain": "d", "collect": {"teachers": [{"provider": "local", "model": "m"}]}, "filter": section}
    )
    assert stage.sources(recipe) == {"presidio": Path(model)}
    stage.run(recipe, {"completions": tmp_path / "completions.parquet"}, tmp_path)
    kept, rejected = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("kept", "rejected"))
    if wanted == "drop":
        assert kept.id.tolist() == ["2"] and rejected.reason.tolist() == ["pii", "pii"]
        return
    assert [list(kinds) for kinds in kept.pii] == [["person"], ["person"], []]
    said = "The captain is <PERSON>." if wanted == "redact" else texts[0]
    assert kept.text.tolist()[:2] == [said, texts[1]]
    assert (
        kept.messages[1][0]["content"]
        == ("Does <PERSON> know" if wanted == "redact" else "Does Bo know") + " the captain?"
    )


def test_what_is_not_there_is_named(model: str) -> None:
    with pytest.raises(UserError, match=r"no spaCy model no_such_model is installed.*spacy download no_such_model"):
        entities.named(TEXT, Presidio(model="no_such_model"))
    with pytest.raises(UserError, match=r"Presidio finds no PIRATE with the model .*PERSON"):
        entities.named(TEXT, Presidio(model=model, entities=["PIRATE"]))


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be opened"):
        entities.named(TEXT, Presidio(model=str(tmp_path)))
