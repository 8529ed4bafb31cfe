"""ablate: the statistics against cases where they are known, and the command on the tiny domain, killed on the way."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest

from pipeline import ablate, artifacts
from pipeline.records import PREDICTIONS
from pipeline.stages import evaluate
from stages.test_evaluate import questions_of
from tiny import command, hear_ctrl_c, make_tiny, seqkd

ON_POLICY = "train.on_policy={max_steps: 6, per_device_train_batch_size: 8, max_completion_length: 8}"
SMALL = [
    "ablate", "tiny.yaml", "--seeds", "2", "--methods", "sft,logits,sft,on_policy", "--set", "train.sft.max_steps=12",
    "--set", "evaluate.bootstrap=100", "--set", f"ablate.changes={{on_policy: ['{ON_POLICY}']}}",
]  # fmt: skip


def answered(path, asked, marks):
    answers = [
        {"text": q.answers[0] if mark else "no", "output_tokens": 1} for q, mark in zip(asked, marks, strict=True)
    ]
    rows = evaluate.mark("student", asked, answers, [(0.0, 0)] * len(asked))
    artifacts.write_table(path, PREDICTIONS, rows[::-1])  # in any order
    return path


def scored(folder, teacher, *students):
    """Scores of students, given as the marks of each of their seeds."""
    asked = questions_of([(f"question {n}", [f"gold {n}"]) for n in range(len(teacher))])
    rows = []
    for number, seeds in enumerate(students):
        tables = [answered(folder / f"{number}-{seed}.parquet", asked, marks) for seed, marks in enumerate(seeds)]
        before = f"v{number - 1}" if number else None
        rows.append(ablate.Student(f"v{number}", f"v{number}", 1, tables, before, before))
    return ablate.score(asked, rows, answered(folder / "teacher.parquet", asked, teacher), 500, 0)


def test_differences_are_paired_by_question_and_seed(tmp_path):
    """Two students that err on the same questions with each seed differ by nothing for certain, whatever the seeds."""
    marks = [[n % 3 > 0 for n in range(90)], [n % 3 > 1 for n in range(90)]]
    scores = scored(tmp_path, marks[0], marks, marks)
    first, second = scores["variants"]
    assert first["by_seed"] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert first["accuracy"] == pytest.approx(1 / 2) and first["retention"] == pytest.approx(3 / 4)
    # Both seeds drawn, or one of them twice: the interval reaches from one to the other.
    assert first["accuracy_ci"][0] < 0.34 and first["accuracy_ci"][1] > 0.66
    assert second["over_before"] == 0 and second["over_before_ci"] == [0, 0]
    assert scores["teacher_ci"][0] < 2 / 3 < scores["teacher_ci"][1]


def test_one_seed_leaves_the_interval_of_the_questions(tmp_path):
    marks = [n % 2 > 0 for n in range(80)]
    scores = scored(tmp_path, [True] * 80, [marks], [[not mark for mark in marks]])
    first, second = scores["variants"]
    assert first["accuracy_ci"][0] < 0.45 and first["accuracy_ci"][1] > 0.55
    assert second["over_random"] == 0 and second["over_random_ci"][0] < -0.1 < 0.1 < second["over_random_ci"][1]


def test_a_worse_step_stays_in_the_table(tmp_path):
    scores = scored(tmp_path, [True] * 60, [[True] * 60] * 2, [[n < 30 for n in range(60)]] * 2)
    text = ablate.table(scores | {"seeds": [0, 1]})
    assert "| v1 | 1 | 50.0% (" in text and "| -50.0 (-" in text and "over 2 seeds of the student (0, 1)" in text


def test_a_teacher_that_knows_nothing_leaves_no_retention(tmp_path):
    (row,) = scored(tmp_path, [False] * 10, [[True] * 10])["variants"]
    assert row["retention"] is None and row["retention_ci"] is None


def test_questions_that_the_teacher_could_not_be_asked_say_nothing_of_what_is_kept(tmp_path):
    """As in evaluate: its provider failed on half of them, and it had the others right, as the student has all."""
    asked = questions_of([(f"question {n}", [f"gold {n}"]) for n in range(40)])
    marks = [True] * 40
    students = [ablate.Student("v0", "v0", 1, [answered(tmp_path / "student.parquet", asked, marks)], None, None)]
    failed = {"text": "", "finish_reason": "error", "output_tokens": 0}
    said = [failed if n % 2 else {"text": f"gold {n}", "finish_reason": "stop", "output_tokens": 1} for n in range(40)]
    teacher = tmp_path / "teacher.parquet"
    artifacts.write_table(teacher, PREDICTIONS, evaluate.mark("teacher", asked, said, [(0.0, 0)] * 40))
    scores = ablate.score(asked, students, teacher, 500, 0)
    assert scores["teacher"] == 1 and scores["teacher_ci"] == pytest.approx([0.8389, 1], abs=1e-4)  # Wilson's of 20
    assert scores["variants"][0]["retention"] == 1 and scores["variants"][0]["retention_ci"] == [1, 1]
    nobody = evaluate.mark("teacher", asked, [failed] * 40, [(0.0, 0)] * 40)
    artifacts.write_table(tmp_path / "nobody.parquet", PREDICTIONS, nobody)
    scores = ablate.score(asked, students, tmp_path / "nobody.parquet", 500, 0)
    assert scores["teacher"] is None and scores["variants"][0]["retention"] is None
    assert not ablate.all_answered(teacher) and ablate.all_answered(tmp_path / "student.parquet")


def test_mistakes_are_told_before_any_work(tiny):
    done = seqkd("ablate", "tiny.yaml", "--methods", "sft,logitz", cwd=tiny)
    assert done.returncode == 2 and "Did you mean 'logits'?" in done.stderr
    wrong = "ablate.changes={logits: [train.logitz.alpha=1]}"
    done = seqkd("ablate", "tiny.yaml", "--methods", "sft,logits", "--set", wrong, cwd=tiny)
    assert done.returncode == 2 and "--set train.logitz.alpha" in done.stderr
    assert not (tiny / "data" / "runs").exists()


def with_teacher(folder, finished):
    """A working folder whose teacher is trained already."""
    make_tiny(folder)
    shutil.copytree(finished / "data" / "cache", folder / "data" / "cache")
    return folder


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, finished):
    """A working folder with a whole ablation, made without interruption."""
    folder = with_teacher(tmp_path_factory.mktemp("ablated"), finished)
    done = seqkd(*SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_row_is_there_and_shares_what_it_can(ablated):
    runs = ablated / "data" / "runs"
    scores = json.loads((runs / "tiny" / "ablation.json").read_text())
    rows = {row["name"]: row for row in scores["variants"]}
    assert list(rows) == [
        "untrained", "raw", "filter", "filter random", "dedupe", "dedupe random", "best_of", "best_of random",
        "no_filter", "no_filter random", "no_dedupe", "no_dedupe random", "logits", "on_policy",
    ]  # fmt: skip
    assert scores["seeds"] == [0, 1] and all(len(row["by_seed"]) == 2 for row in rows.values())
    assert rows["raw"]["rows"] > rows["filter"]["rows"] > rows["dedupe"]["rows"] == rows["dedupe random"]["rows"]
    # One row a prompt is left after dedupe, so best-of changes nothing, and is not trained again.
    assert rows["best_of"]["same_as"] == "dedupe"
    # Without the filter answers are left that it rejects; a prompt has one answer all the same.
    assert rows["raw"]["rows"] > rows["no_filter"]["rows"] > rows["best_of"]["rows"]
    lost = rows["no_filter"]["accuracy"] - rows["best_of"]["accuracy"]
    assert rows["no_filter"]["over_before"] == pytest.approx(lost)
    pairs = [
        ("tiny/collect/completions.parquet", "tiny-on_policy-1/collect/completions.parquet"),
        ("tiny-filter-0/filter/kept.parquet", "tiny-logits-1/filter/kept.parquet"),
        ("tiny-dedupe-1/train/student/model.safetensors", "tiny-best_of-1/train/student/model.safetensors"),
    ]
    for left, right in pairs:
        assert (runs / left).samefile(runs / right)
    different = ["raw-0", "raw-1", "filter-0", "dedupe-0", "no_filter-0", "logits-0", "on_policy-0"]
    weights = {(runs / f"tiny-{name}/train/student/model.safetensors").read_bytes() for name in different}
    assert len(weights) == len(different)
    said = (runs / "tiny" / "ablation.md").read_text()
    assert "+ best-of (the same rows as + dedupe)" in said and "on_policy, after sft" in said
    assert "without dedupe (the same rows as + dedupe)" in said and said.count("random, as many") == 3


def test_again_it_trains_and_answers_nothing(ablated):
    folder = ablated / "data" / "runs" / "tiny"
    before = (folder / "ablation.json").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in (folder / "ablation").iterdir()}
    weights = {path: path.stat().st_mtime_ns for path in ablated.glob("data/runs/*/train/student/model.safetensors")}
    done = seqkd(*SMALL, cwd=ablated)
    assert done.returncode == 0, done.stderr
    assert len(weights) == 16 and {path: path.stat().st_mtime_ns for path in weights} == weights
    assert (folder / "ablation.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "ablation").iterdir()} == written


def test_the_report_quotes_the_ablation_of_its_own_student(ablated, tmp_path):
    """And none of another one, of an earlier recipe of the run."""
    shutil.copytree(ablated, tmp_path, dirs_exist_ok=True)
    folder, settings = tmp_path / "data" / "runs" / "tiny", ["--set", "train.sft.max_steps=12"]
    (row,) = (row for row in json.loads((folder / "ablation.json").read_text())["variants"] if row["name"] == "best_of")
    quoted = f"with 2 seeds: {100 * row['accuracy']:.1f}%"
    for changes, own in (
        (["--set", "train.seed=5"], True),  # one of the ablation's students but for the seed
        (["--set", "filter.agreement.min_share=0.9"], False),
        (["--set", "evaluate.limit=6"], False),
    ):
        done = seqkd("run", "tiny.yaml", *settings, *changes, "--force", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        page = (folder / "evaluate" / "report.html").read_text()
        assert (quoted in page) == own and ("of another student" in page) == (not own), changes
        assert ("All of this is one student" in page) == (not own)
    (folder / "ablation.json").write_text('{"variants": [')  # as a version that did not rename it into place left it
    done = seqkd("run", "tiny.yaml", *settings, "--from", "evaluate", "--force", cwd=tmp_path)
    assert done.returncode == 0 and "of another student" in (folder / "evaluate" / "report.html").read_text()


def test_killed_anywhere_it_comes_to_the_same_table(ablated, finished, tmp_path):
    """And however many students are trained at a time."""
    folder, draw = with_teacher(tmp_path, finished), random.Random(7)
    for _ in range(2):
        process = subprocess.Popen(command(*SMALL), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(draw.uniform(4, 12))
        process.send_signal(signal.SIGKILL)
        process.communicate()  # until its children, which write there too, have ended
    done = seqkd(*SMALL, "--jobs", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    name = "data/runs/tiny/ablation.json"
    assert (folder / name).read_bytes() == (ablated / name).read_bytes()


LONG = ["--set", "train.sft.max_steps=1000000", "--seeds", "1", "--jobs", "2"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_student_outlives_the_command(finished, tmp_path, how):
    """Whose trainings would take hours."""
    folder = with_teacher(tmp_path, finished)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command(*SMALL, *LONG), cwd=folder, preexec_fn=hear_ctrl_c, **pipes)
    logs = [folder / f"data/runs/tiny-{name}-0/ablation.log" for name in ("raw", "filter")]
    while process.poll() is None and not all(log.is_file() and "fine-tune" in log.read_text() for log in logs):
        time.sleep(0.1)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]  # until its children, which write there too, have ended
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert b"Traceback" not in said


def test_a_student_that_fails_stops_the_others(finished, tmp_path):
    folder = with_teacher(tmp_path, finished)
    wrong = "ablate.changes={logits: ['train.sft.learning_rat=1']}"
    done = seqkd(*SMALL, *LONG, "--jobs", "5", "--methods", "sft,logits", "--set", wrong, cwd=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "seqkd: error: tiny-logits-0: train.sft.learning_rat: " in done.stderr
