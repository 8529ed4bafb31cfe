"""lm-evaluation-harness: what goes wrong in words; real tasks on the models of a finished tiny run, where lm-eval is
installed."""

import importlib.util
import json
import sys

import pytest

from pipeline import harness
from pipeline.errors import UserError
from pipeline.recipe import Harness, load_recipe
from pipeline.stages import evaluate
from pipeline.teachers import local
from test_report import shown
from tiny import CAPITALS

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: the extra harness")

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: FOLDER/capitals.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

WRITE = """\
task: tiny_write
dataset_path: json
dataset_kwargs: {data_files: FOLDER/capitals.jsonl}
test_split: train
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

GROUP = """\
group: tiny_group
task: [tiny_choice]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def tasks(tmp_path):
    """A folder with tasks of a user's own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    cities = list(CAPITALS.values())
    rows = [
        {"question": f"Which city is the capital of {country}?", "choices": [city, cities[number - 1]]}
        for number, (country, city) in enumerate(CAPITALS.items())
    ]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("write", WRITE), ("group", GROUP)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"not installed. Run: pip install 'seqkd\[harness\]'"):
        harness.load(Harness(tasks=["arc_easy"]))


@installed
def test_unknown_and_unreachable_tasks(tasks):
    with pytest.raises(UserError, match="no task 'tiny_chioce'. Did you mean 'tiny_choice'"):
        harness.load(Harness(tasks=["tiny_chioce"], include=tasks))
    with pytest.raises(UserError, match="arc_easy: its data set is neither in the Hugging Face cache nor"):
        harness.load(Harness(tasks=["arc_easy"]))
    (tasks / "capitals.jsonl").unlink()
    with pytest.raises(UserError, match="tiny_write cannot be opened: .*capitals.jsonl"):
        harness.load(Harness(tasks=["tiny_write"], include=tasks))


@installed
def test_a_task_is_what_it_says(finished, tasks):
    """The harness' figure is that of the same questions asked by ourselves, and every model gets the same."""
    config = Harness(tasks=["tiny_group", "tiny_write"], include=tasks, limit=8)
    place = finished / "data/runs/tiny/train/student"
    models = {name: local.load(place) for name in ("student", "untrained")}
    found = harness.measure(models, harness.load(config), config, 4, 100, 0)
    assert found["limit"] == 8 and found["truncated"] == {"student": 0, "untrained": 0}
    write = found["tasks"]["tiny_write"]
    assert (write["questions"], write["num_fewshot"], write["group"]) == (8, 0, False)
    asked = [[{"role": "user", "content": f"Which city is the capital of {land}?"}] for land in list(CAPITALS)[:8]]
    answers = local.answer(models["student"], asked, temperature=0, top_p=1, max_tokens=8, seeds=[0] * 8)
    right = sum(answer["text"] == city for answer, city in zip(answers, CAPITALS.values(), strict=False))
    assert write["models"]["student"]["exact_match"]["value"] == pytest.approx(right / 8)
    assert write["models"]["student"] == write["models"]["untrained"]
    assert found["tasks"]["tiny_choice"]["part_of"] == "tiny_group" and found["tasks"]["tiny_group"]["group"]
    assert found["tasks"]["tiny_group"]["models"] == found["tasks"]["tiny_choice"]["models"]
    assert found["tasks"]["tiny_choice"]["models"]["student"]["acc"]["stderr"] >= 0


@installed
def test_every_model_of_a_run_is_asked(finished, tasks, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(finished)
    run = finished / "data/runs/tiny"
    setting = f"{{tasks: [tiny_group], include: {tasks}, num_fewshot: 2}}"
    recipe = load_recipe(finished / "tiny.yaml", [f"evaluate.harness={setting}"])
    assert evaluate.sources(recipe)["harness.include"] == tasks
    inputs = {n: run / s / (f"{n}.parquet" if s == "assemble" else n) for n, s in evaluate.READS.items()}
    evaluate.run(recipe, inputs, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    group = scores["harness"]["tasks"]["tiny_group"]
    assert set(group["models"]) == set(evaluate.MODELS)
    assert scores["harness"]["tasks"]["tiny_choice"]["num_fewshot"] == 2
    assert "tiny_group: acc" in shown(scores) and "tiny_choice: acc" not in shown(scores)
    page = (tmp_path / "report.html").read_text()
    assert "Public benchmarks" in page and "<bdi>tiny_group: acc</bdi>" in page
    said = capfd.readouterr().err
    assert "evaluate.harness: student, tiny_group" in said and "it/s" not in said and "WARNING" not in said
