"""generate.target_kept with a model in this process, whose answers depend a little on what they are computed beside."""

from pathlib import Path

import pytest
import yaml

from pipeline import flow
from pipeline.artifacts import file_digest
from pipeline.recipe import Filter, load_recipe

STAGES = ("generate", "collect", "filter", "dedupe")
NAMES = [a + b for a in ("Bel", "Cor", "Dan", "Fen") for b in ("ara", "ondo", "ix", "uma", "eth")]


def run_in(folder: Path, model: Path, *overrides: str) -> dict[str, dict]:
    """The data stages: stage -> counts."""
    off = {name: False for name, field in Filter.model_fields.items() if field.annotation is bool}
    (folder / "prompts.csv").write_text("prompt\n" + "".join(f"What is {name}?\n" for name in NAMES))
    (folder / "held.jsonl").write_text('{"prompt": "Is there a held-out question?", "answer": "yes"}\n')
    recipe = {
        "domain": "names",
        "generate": {"file": "prompts.csv", "count": 5, "target_kept": 14},
        "collect": {
            "teachers": [{"provider": "local", "model": str(model), "batch_size": 4}],
            "samples": 2,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24},
        },
        "filter": off | {"enabled": True, "language": "off", "cut_off": True},
        "dedupe": {"near": None},
        "evaluate": {"questions": str(folder / "held.jsonl")},
    }
    (folder / "names.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "names.yaml", list(overrides))
    manifests = flow.run_stages(loaded, flow.run_folder("names"), STAGES, force=True)
    return {stage: manifest["counts"] for stage, manifest in manifests.items()}


def test_rounds_ask_other_batches_and_still_nothing_twice(
    eager: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    monkeypatch.chdir(whole)
    counts = run_in(whole, eager)
    target = counts["generate"]["target"]
    assert len(target["rounds"]) > 1 and target["kept"] >= 14
    assert counts["dedupe"]["outcomes"]["kept"] == target["kept"]
    assert counts["collect"]["usage"]["requests_sent"] == 0
    monkeypatch.chdir(broken)
    run_in(broken, eager, "generate.max_rounds=1")  # as far as a run that ended after its first round
    assert run_in(broken, eager)["collect"]["usage"]["requests_sent"] == 0
    for name in ("generate/prompts", "collect/completions", "dedupe/kept"):
        made = f"data/runs/names/{name}.parquet"
        assert file_digest(whole / made) == file_digest(broken / made)
