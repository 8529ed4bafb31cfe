"""What a person sees of a finished run: pandas, status, show."""

import pytest

import pipeline
from pipeline.errors import UserError
from tiny import seqkd


@pytest.fixture
def run(finished):
    return pipeline.open_run("tiny", data=finished / "data")


def test_tables_are_data_frames(run):
    assert len(run.prompts) == 48 and len(run.completions) == 144
    ends = [run.failures, run.rejected, run.duplicates, run.withheld, run.train, run.validation]
    assert sum(map(len, ends)) == 144
    assert len(run.kept) == len(run.withheld) + len(run.train) + len(run.validation)
    assert set(run.rejected["reason"]) <= {"agreement", "empty", "cut_off", "too_short", "repetition"}
    assert {"teacher", "student", "untrained", "random_subset"} <= set(run.scores.index)
    assert run.scores.loc["student", "parameters"] < run.scores.loc["teacher", "parameters"]


def test_a_dataset_for_the_hugging_face_libraries(run):
    train = run.dataset("train")
    assert train.num_rows == len(run.train)
    assert train[0]["prompt"][0]["role"] == "user" and train[0]["completion"][0]["role"] == "assistant"


def test_trace_tells_the_whole_life_of_a_prompt(run):
    for prompt_id in run.prompts["id"]:
        life = run.trace(prompt_id)
        assert len(life) == 3 and list(life["sample"]) == [0, 1, 2]
        assert set(life["ended"]) <= {"train", "validation", "withheld", "duplicate", "rejected", "failed"}
    repeated = run.duplicates.iloc[0]
    told = run.trace(repeated["prompt_id"][:12]).set_index("id").loc[repeated["id"]]
    assert told["ended"] == "duplicate" and told["duplicate_of"] == repeated["duplicate_of"]


def test_what_is_not_there_is_said(run, finished, tmp_path):
    with pytest.raises(UserError, match="there is no table 'kpet'. Did you mean 'kept'"):
        run.table("kpet")
    with pytest.raises(UserError, match="no prompt has an id that begins with 'zz'"):
        run.trace("zz")
    with pytest.raises(UserError, match="there is no run 'tinny'.*Did you mean 'tiny'"):
        pipeline.open_run("tinny", data=finished / "data")
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="generate is not complete"):
        pipeline.open_run("empty", data=tmp_path).prompts  # noqa: B018


def test_status_prints_stages_and_the_account(finished):
    told = seqkd("status", "tiny", cwd=finished)
    assert told.returncode == 0, told.stderr
    for stage in ("generate", "collect", "filter", "dedupe", "assemble", "train", "evaluate"):
        assert stage in told.stdout
    assert "144 asked = 0 failed + " in told.stdout


def test_show_prints_rows(finished, run):
    told = seqkd("show", "tiny", "filter", "--reason", "agreement", "--sample", "2", cwd=finished)
    assert told.returncode == 0, told.stderr
    assert "rejected: 2 of" in told.stdout and "agreement" in told.stdout
    assert "capital" in seqkd("show", "tiny", cwd=finished).stdout
    prompt = run.prompts["id"][0]
    assert "ended: " in seqkd("show", "tiny", "--prompt", prompt[:10], cwd=finished).stdout
    wrong = seqkd("show", "tiny", "fliter", cwd=finished)
    assert wrong.returncode == 2 and "Did you mean 'filter'" in wrong.stderr


def test_plan_says_what_would_run_and_cost(finished, tiny):
    told = seqkd("plan", "tiny.yaml", cwd=finished)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("would be skipped") == 7 and "144" in told.stdout
    told = seqkd("plan", "tiny.yaml", "--set", "filter.min_words=2", cwd=finished)
    assert "would stop: filter.min_words was 1 and is 2" in told.stdout
    told = seqkd("plan", "tiny.yaml", cwd=tiny)
    assert told.returncode == 0 and "would run" in told.stdout and "144" in told.stdout
    assert not (tiny / "data" / "runs").exists() and not (tiny / "data" / "cache").exists()
