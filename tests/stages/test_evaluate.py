"""evaluate: the metrics against values worked out elsewhere, the intervals against theory, the stage on real models."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline import artifacts, records
from pipeline.errors import UserError
from pipeline.questions import Question
from pipeline.recipe import load_recipe
from pipeline.stages import evaluate
from pipeline.teachers import local
from scripted import scripted
from teacher_server import running
from tiny import CAPITALS


def questions_of(texts: list[tuple[str, list[str]]]) -> list[Question]:
    return [
        Question(f"q{n}", "topic", "", ({"role": "user", "content": text},), tuple(answers), None, "")
        for n, (text, answers) in enumerate(texts)
    ]


def compared(**right: list[bool]) -> dict:
    """Scores of models that were right or wrong as given."""
    count = len(next(iter(right.values())))
    asked = questions_of([(f"question {n}", [f"gold {n}"]) for n in range(count)])
    nats = {name: [(1.0, 2)] * count for name in right}
    rows = {}
    for name, marks in right.items():
        answers = [{"text": f"gold {n}" if mark else "no", "output_tokens": 2} for n, mark in enumerate(marks)]
        rows[name] = evaluate.mark(name, asked, answers, nats[name])
    return evaluate.compare(asked, rows, nats, 500, 0)


def test_one_question_has_an_interval_that_says_nothing():
    scores = compared(teacher=[True], student=[True], random_subset=[False])
    low, high = scores["student"]["accuracy_ci"]
    assert low < 0.21 and high == 1 and scores["student"]["accuracy"] == 1
    assert scores["retention"] == 1 and scores["retention_ci"] is None and scores["over_random_subset_ci"] is None
    assert scores["student"]["nll"] == 0.5 and scores["student"]["nll_ci"] is None


def test_compare_is_paired():
    """Where both models are right on the same questions, retention and gain are known exactly, accuracies are not."""
    marks = [n % 3 > 0 for n in range(90)]
    scores = compared(teacher=marks, student=marks, random_subset=marks)
    assert scores["student"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["student"]["accuracy_ci"][0] < 0.62 < 0.70 < scores["student"]["accuracy_ci"][1]
    assert scores["retention"] == 1 and scores["retention_ci"] == [1, 1]
    assert scores["over_random_subset"] == 0 and scores["over_random_subset_ci"] == [0, 0]
    assert scores["student"]["agreement"] == 1 and scores["teacher"]["agreement"] is None
    assert scores["student"]["nll"] == 0.5


def test_a_question_asked_again_is_no_more_evidence():
    """40 lines of a file that ask the same two questions were 40 independent ones, sure to 30 points."""
    asked = [one._replace(id=f"q{n}") for n in range(20) for one in questions_of([("one", ["yes"]), ("two", ["yes"])])]
    answers = [{"text": text, "output_tokens": 1} for text in ("yes", "no")] * 20
    rows = {"student": evaluate.mark("student", asked, answers, [(0.0, 0)] * 40)}
    scores = evaluate.compare(asked, rows, {"student": [(0.0, 0)] * 40}, 500, 0)
    assert scores["student"]["accuracy"] == 0.5 and scores["student"]["accuracy_ci"] == [0, 1]


def test_compare_without_a_right_answer_of_the_teacher():
    scores = compared(teacher=[False] * 10, student=[True] * 10)
    assert scores["retention"] is None and scores["retention_ci"] is None
    assert scores["over_random_subset"] is None


def aim(name: str, **scores) -> bool | None:
    names = ("teacher", "retention", "retention_ci", "speedup", "size_ratio", "over_random_subset_ci")
    base = dict.fromkeys(names)
    return next((found["met"] for found in evaluate.aims(base | scores) if found["name"] == name), None)


def test_aims():
    assert aim("retention", retention=0.97) and aim("retention", retention=0.9699) is False
    assert aim("size_ratio", size_ratio=0.4) and aim("size_ratio", size_ratio=0.41) is False
    assert aim("speedup", speedup=2.0) and aim("teacher_accuracy", teacher={"accuracy": 0.79}) is False
    assert aim("filtered_beats_random", over_random_subset_ci=[0.01, 0.2])
    assert aim("filtered_beats_random", over_random_subset_ci=[0.0, 0.2]) is False  # chance explains it
    assert aim("retention") is None


# --- the stage, on the models of a finished tiny run ------------------------------------------------------------------


def inputs_of(run: Path) -> dict[str, Path]:
    """What flow gives the stage to read."""
    return {
        name: run / stage / (f"{name}.parquet" if stage == "assemble" else name)
        for name, stage in evaluate.READS.items()
    }


def evaluated(finished: Path, out: Path, *overrides: str) -> dict:
    """scores.json of the tiny run evaluated again with another recipe."""
    recipe = load_recipe(finished / "tiny.yaml", list(overrides))
    evaluate.run(recipe, inputs_of(finished / "data" / "runs" / "tiny"), out)
    return json.loads((out / "scores.json").read_text())


def test_scores_have_the_keys_that_were_promised(finished):
    folder = finished / "data" / "runs" / "tiny" / "evaluate"
    scores = json.loads((folder / "scores.json").read_text())
    for name in evaluate.MODELS:
        for key in ("accuracy", "accuracy_ci", "token_f1", "nll", "parameters", "tokens_per_s", "tokens_per_s_one",
                    "latency_p50_s", "first_token_p50_s", "peak_memory_bytes"):  # fmt: skip
            assert scores[name][key] is not None
        low, high = scores[name]["accuracy_ci"]
        assert 0 <= low <= scores[name]["accuracy"] <= high <= 1
        assert scores[name]["latency_p50_s"] <= scores[name]["latency_p95_s"]
        assert scores[name]["first_token_p50_s"] <= scores[name]["first_token_p95_s"]
        low, high = scores[name]["tokens_per_s_one_range"]
        assert low <= scores[name]["tokens_per_s_one"] <= high
    assert scores["size_ratio"] == scores["student"]["parameters"] / scores["teacher"]["parameters"] < 0.4
    assert scores["questions"] == len(CAPITALS) and scores["speedup"] > 0
    # A model is closest to its own answers, and what was never trained is further from them than what was.
    assert scores["teacher"]["nll"] < scores["student"]["nll"] < scores["untrained"]["nll"]
    assert "<script" not in (folder / "report.html").read_text()


def test_predictions_are_whole_sorted_and_add_up(finished):
    folder = finished / "data" / "runs" / "tiny" / "evaluate"
    scores = json.loads((folder / "scores.json").read_text())
    table = artifacts.read_table(folder / "predictions.parquet")
    assert table.schema.equals(records.PREDICTIONS)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    for name in evaluate.MODELS:
        own = [row for row in rows if row["model"] == name]
        assert len(own) == len(CAPITALS)
        assert sum(row["exact"] for row in own) / len(own) == pytest.approx(scores[name]["accuracy"])


def test_same_answers_again(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    evaluated(finished, tmp_path)
    first = finished / "data" / "runs" / "tiny" / "evaluate" / "predictions.parquet"
    assert (tmp_path / "predictions.parquet").read_bytes() == first.read_bytes()


def test_questions_without_answers_and_too_long_ones(finished, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(finished)
    questions = tmp_path / "mine.jsonl"
    rows = [{"prompt": "What is the capital of Japan?"}, {"prompt": "Peru? " * 200}, {"prompt": "Kenya: its capital?"}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = evaluated(finished, tmp_path, f"evaluate.questions={questions}", "train.baselines=[]")
    assert "indexing errors" not in capfd.readouterr().err  # transformers' own words for a text that is too long
    assert scores["questions"] == 3 and scores["questions_with_answers"] == 0
    assert scores["student"]["accuracy"] is None and scores["retention"] is None and scores["random_subset"] is None
    assert scores["student"]["nll"] > 0 and 0 <= scores["student"]["agreement"] <= 1
    predicted = artifacts.read_table(tmp_path / "predictions.parquet").to_pylist()
    long = [row for row in predicted if "Peru" in row["question"]]
    assert len(long) == 3 and all(row["text"] == "" and row["nll"] is None for row in long)
    assert {aim["name"] for aim in scores["aims"]} == {"speedup", "size_ratio"}
    assert scores["measured"]["latency_questions"] == 2 and scores["questions_compared"] == 2
    questions.write_text(json.dumps(rows[1]) + "\n")
    scores = evaluated(finished, tmp_path, f"evaluate.questions={questions}", "train.baselines=[]")
    assert scores["teacher"]["unanswered"] == 1 and scores["student"]["latency_p50_s"] is None
    assert "The teacher answered none of 1 held-out question" in (tmp_path / "report.html").read_text()


def test_a_teacher_elsewhere_is_asked_once(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-58d1")
    with running(completion_tokens=7) as server:
        teacher = f"{{provider: openai, model: big, base_url: '{server.url}', api_key_env: TEST_KEY}}"
        changes = [
            f"collect.teachers=[{teacher}]",
            "train.tokenizer=data/runs/tiny/train/student",
            "train.baselines=[]",
            "evaluate.max_tokens=64",
        ]
        for attempt in range(2):
            out = tmp_path / f"attempt{attempt}"
            out.mkdir()
            scores = evaluated(finished, out, *changes)
            assert server.stats()["requests"] == len(CAPITALS)  # the second time all come from the store
            assert {path.name for path in out.iterdir()} == {
                "model_card.md", "predictions.parquet", "report.html", "scores.json"
            }  # fmt: skip
    assert scores["teacher"]["name"] == "big" and scores["teacher"]["accuracy"] == 0
    assert scores["teacher"]["parameters"] is None and scores["size_ratio"] is None and scores["speedup"] is None
    assert scores["student"]["nll"] > 0 and scores["teacher"]["nll"] is None
    assert scores["usage"]["output_tokens"] == 7 * len(CAPITALS)
    rows = artifacts.read_table(out / "predictions.parquet").to_pylist()
    assert all(row["text"] == f"echo: {row['question']}" for row in rows if row["model"] == "teacher")
    page = (out / "report.html").read_text()
    assert "The teacher answers elsewhere" in page and "canary" not in page


def test_a_teacher_elsewhere_has_as_much_room_as_the_student(finished, tmp_path, monkeypatch):
    """Its request leaves room for its thoughts, which count at the provider; its answer ends where the student's has
    to."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-58d1")
    long, short = "The capital of Peru is Lima, as it always was. " * 9, "Oslo, as it is called."
    with scripted(lambda text: short if "Norway" in text else long) as server:
        teacher = f"{{provider: openai, model: big, base_url: '{server.url}', api_key_env: TEST_KEY}}"
        changes = [f"collect.teachers=[{teacher}]", "train.tokenizer=data/runs/tiny/train/student"]
        changes += ["train.baselines=[]"]
        for room, asked in ((16, 300), (400, 400)):
            server.asked.clear()
            sizes = [f"evaluate.max_tokens={room}", "collect.sampling.max_tokens=300"]
            scores = evaluated(finished, tmp_path, *changes, *sizes)
            assert {json.loads(body)["max_completion_tokens"] for body in server.asked} <= {asked}  # or from the store
            rows = artifacts.read_table(tmp_path / "predictions.parquet").to_pylist()
            said = {row["text"] for row in rows if row["model"] == "teacher"}
            tokenizer = local.load(finished / "data/runs/tiny/train/student").tokenizer
            whole = len(tokenizer(long, add_special_tokens=False)["input_ids"])
            cut = next(text for text in said if text.startswith("The capital"))
            assert short in said and long.startswith(cut)
            assert len(tokenizer(cut, add_special_tokens=False)["input_ids"]) == min(room, whole)
            assert scores["teacher"]["cut"] == (11 if room < whole else 0)
            assert {row["output_tokens"] for row in rows if row["model"] == "teacher"} >= {min(room, whole)}
            page = " ".join((tmp_path / "report.html").read_text().split())
            assert ("11 of the teacher&#39;s answers are longer than evaluate.max_tokens (16)" in page) == (
                room < whole
            )
    lines = evaluate.estimate(load_recipe(finished / "tiny.yaml", [*changes, *sizes]))
    assert lines[0]["output_tokens"] == 400 * len(CAPITALS)


def test_what_a_teacher_failed_on_is_neither_right_nor_wrong(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-58d1")
    rows = [{"prompt": f"Say {n} again.", "answer": f"echo: Say {n} again."} for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(faults=["invalid_json"], fault_share=0.3, fault_every_time=True) as server:
        price = "price: {input: 1.0, output: 1.0}"
        teacher = f"{{provider: openai, model: big, base_url: '{server.url}', api_key_env: TEST_KEY, {price}}}"
        changes = [f"collect.teachers=[{teacher}]", f"evaluate.questions={tmp_path / 'mine.jsonl'}"]
        changes += ["train.tokenizer=data/runs/tiny/train/student", "train.baselines=[]", "evaluate.usd_per_hour=2"]
        changes += ["evaluate.max_tokens=64"]
        scores = evaluated(finished, tmp_path, *changes)
    failed = scores["teacher"]["unanswered"]
    assert 0 < failed < 30 and scores["student"]["unanswered"] == 0
    assert scores["teacher"]["accuracy"] == 1 and 0.8 < scores["teacher"]["accuracy_ci"][0] < 1
    assert scores["student"]["accuracy"] == 0 and scores["retention"] == 0
    predicted = artifacts.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert sum(row["exact"] is None for row in predicted) == failed
    page = (tmp_path / "report.html").read_text()
    assert f"The teacher could not answer {failed} of the questions" in page
    own = scores["cost"]["stages"]["evaluate"]
    assert own["usd"] == pytest.approx((own["input_tokens"] + own["output_tokens"]) / 1e6)
    assert scores["cost"]["unpriced"] == [] and scores["cost"]["machine_usd"] > 0


def test_questions_too_long_for_the_student_are_wrong_and_counted():
    asked = questions_of([("short", ["yes"]), ("long", ["yes"])])
    answers = [
        {"text": "yes", "output_tokens": 1, "finish_reason": "stop"},
        {"text": "", "output_tokens": 0, "finish_reason": "error"},
    ]
    student, teacher = (evaluate.mark(name, asked, answers, [(0.0, 0)] * 2) for name in ("student", "teacher"))
    assert [row["exact"] for row in student] == [True, False] and [row["exact"] for row in teacher] == [True, None]
    scores = evaluate.compare(asked, {"teacher": teacher, "student": student}, {"teacher": [(0.0, 0)] * 2,
                              "student": [(0.0, 0)] * 2}, 100, 0)  # fmt: skip
    assert scores["teacher"]["accuracy"] == 1 and scores["student"]["accuracy"] == 0.5 and scores["retention"] == 1


def test_the_questions_are_proved_unseen(finished, tmp_path, monkeypatch):
    """assemble's guard once more: it stops at a question that was trained on, whole or with a word more."""
    monkeypatch.chdir(finished)
    run = finished / "data/runs/tiny"
    scores = json.loads((run / "evaluate/scores.json").read_text())
    trained = artifacts.read_table(run / "assemble/train.parquet").to_pylist()
    rows = len(trained) + artifacts.count_rows(run / "assemble/validation.parquet")
    assert scores["unseen"] == {"rows": rows, "items": len(CAPITALS), "withheld_exact": 0, "withheld_overlap": 0}
    seen = trained[0]["prompt"][-1]["content"]
    for text in (seen, f"{seen.upper()}!"):
        (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": text, "answer": "x"}) + "\n")
        with pytest.raises(UserError, match="1 of 1 held-out questions are in the training data.*--from assemble"):
            evaluated(finished, tmp_path, f"evaluate.questions={tmp_path / 'mine.jsonl'}")


def test_what_a_run_cost(finished):
    scores = json.loads((finished / "data/runs/tiny/evaluate/scores.json").read_text())
    cost = scores["cost"]
    assert cost["usd"] is None and cost["usd_per_kept"] is None and cost["unpriced"] == []  # a teacher in this process
    assert cost["stages"]["collect"]["output_tokens"] > 0 and cost["kept"] == scores["unseen"]["rows"]
    assert cost["machine_s"] > 0 and cost["machine_usd"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "evaluate.questions: there is no file"),
        ("", "has no questions"),
        ('{"prompt": "Who?"}\n{"prompt": \n', ":2"),
        ('{"prompt": "Who?", "answer": []}\n', ":1: answer"),
        ('{"answer": "x"}\n', ":1: prompt"),
    ],
)
def test_questions_that_are_missing_or_malformed(finished, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(finished)
    if text is not None:
        (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        evaluated(finished, tmp_path, f"evaluate.questions={tmp_path / 'mine.jsonl'}")


def test_memory_that_runs_out(finished, tmp_path, monkeypatch):
    """It ended in torch's traceback."""
    import torch

    monkeypatch.chdir(finished)
    monkeypatch.setattr(local, "answer", lambda *args, **more: torch.empty(2**50))
    with pytest.raises(UserError, match="evaluate ran out of memory. A smaller evaluate.batch_size helps. .*allocate"):
        evaluated(finished, tmp_path)


def test_a_damaged_student_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    recipe = load_recipe(finished / "tiny.yaml", ["train.baselines=[]"])
    inputs = inputs_of(finished / "data/runs/tiny")
    copy = tmp_path / "train" / "student"
    shutil.copytree(inputs["student"], copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(UserError, match=f"local model {copy}: cannot be opened"):
        evaluate.run(recipe, inputs | {"student": copy}, tmp_path)


def longer_one(text: str) -> str:
    """A judge that prefers the longer answer, whatever its place."""
    first, second = (re.search(rf"<answer-{name}-\w+>\n(.*?)\n</answer-", text, re.DOTALL)[1] for name in "AB")
    verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return json.dumps({"reason": "Length.", "verdict": verdict})


def always_a(text: str) -> str:
    return '{"reason": "It is first.", "verdict": "A"}'


def test_a_judge_compares_student_and_teacher(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SEQKD_DATA", str(finished / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-58d1")
    predicted = artifacts.read_table(finished / "data/runs/tiny/evaluate/predictions.parquet").to_pylist()
    texts = {(row["model"], row["question_id"]): row["text"] for row in predicted}
    for judge in (longer_one, always_a):
        with scripted(judge) as server:
            teacher = f"{{provider: openai, model: {judge.__name__}, base_url: '{server.url}', api_key_env: TEST_KEY}}"
            out = tmp_path / judge.__name__
            out.mkdir()
            changes = [f"evaluate.judge={{teacher: {teacher}, limit: 8}}", "train.baselines=[]"]
            scores = evaluated(finished, out, *changes)
            differ = 0
            for question, verdict in scores["judge"]["verdicts"].items():
                ours, theirs = len(texts["student", question]), len(texts["teacher", question])
                right = "tie" if ours == theirs else "win" if ours > theirs else "loss"
                assert verdict == (right if judge is longer_one else "tie")
                differ += texts["student", question] != texts["teacher", question]
            assert differ and sum(server.asked.values()) == 2 * differ  # equal answers are not asked about
        found = scores["judge"]
        assert found["win"] + found["tie"] + found["loss"] == found["questions"] == 8 and found["unjudged"] == 0
        assert found["win_rate"] == (found["win"] + found["tie"] / 2) / 8
        low, high = found["win_rate_ci"]
        assert low <= found["win_rate"] <= high
        if judge is always_a:
            assert (found["tie"], found["win_rate"]) == (8, 0.5) and low < 0.3 < 0.7 < high
            assert found["tie_order"] == differ and found["tie_same"] == 8 - differ
        page = (out / "report.html").read_text()
        assert f"{judge.__name__} judged 8 of 8 answers" in page and "canary" not in page
        assert scores["cost"]["stages"]["evaluate"]["requests"] == 2 * differ
        assert found["usage"]["requests_sent"] == 2 * differ
    lines = evaluate.estimate(load_recipe(finished / "tiny.yaml", changes))
    assert [(line["requests"], line["usd"]) for line in lines] == [(16, None)]


def test_a_budget_that_ends_in_the_middle_of_the_judging(finished, tmp_path, monkeypatch):
    """Nobody was told why there were fewer verdicts, nor how to get the others."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-58d1")
    with scripted(always_a) as server:
        price = "price: {input: 1.0, output: 1.0}, max_in_flight: 1"
        teacher = f"{{provider: openai, model: wise, base_url: '{server.url}', api_key_env: TEST_KEY, {price}}}"
        changes = [f"evaluate.judge={{teacher: {teacher}, limit: 12}}", "train.baselines=[]"]
        recipe = load_recipe(finished / "tiny.yaml", [*changes, "collect.budget_usd=0.0025"])
        counts = evaluate.run(recipe, inputs_of(finished / "data/runs/tiny"), tmp_path)
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert 0 < scores["judge"]["unanswered"] < 12 and scores["over_budget"] > 0
        said = f"The budget was spent before {scores['over_budget']} of its requests: a larger collect.budget_usd with"
        assert said in counts["note"] and said in (tmp_path / "report.html").read_text()
        scores = evaluated(finished, tmp_path, *changes, "collect.budget_usd=1")
        assert scores["judge"]["unjudged"] == scores["over_budget"] == 0
        assert set(server.asked.values()) == {1}  # nothing was paid twice


def test_no_questions_is_an_error_that_says_what_to_do(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no held-out questions.*evaluate\.questions"):
        evaluated(finished, tmp_path, "domain=nowhere")
