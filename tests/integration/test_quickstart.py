"""The whole quickstart as a user runs it. Speed is reported by it and not asserted here: machines are shared."""

import pipeline


def test_the_student_keeps_what_the_teacher_knows(quickstart):
    run = pipeline.open_run("quickstart", data=quickstart)
    scores = run.scores_json
    teacher, student, random_subset = scores["teacher"], scores["student"], scores["random_subset"]
    # Looser than the aims in scores.json, since another processor's floats train another teacher.
    assert teacher["accuracy"] >= 0.7
    assert scores["retention"] >= 0.95
    assert scores["over_random_subset_ci"][0] > 0 and student["accuracy"] > random_subset["accuracy"]
    assert scores["untrained"]["accuracy"] < 0.05
    assert scores["size_ratio"] <= 0.4
    for model in ("teacher", "student", "untrained", "random_subset"):
        for key in ("accuracy", "accuracy_ci", "token_f1", "nll", "parameters", "tokens_per_s", "latency_p50_s"):
            assert scores[model][key] is not None
    assert not set(run.train["metadata"].map(lambda known: known["prompt_id"])) & set(
        run.validation["metadata"].map(lambda known: known["prompt_id"])
    )


def test_the_account_adds_up(quickstart):
    account = pipeline.open_run("quickstart", data=quickstart).account()
    asked = account.pop("asked")
    assert asked == sum(account.values()) == 4 * len(pipeline.open_run("quickstart", data=quickstart).prompts)
    assert account["rejected"] > 0 and account["duplicate"] > 0
