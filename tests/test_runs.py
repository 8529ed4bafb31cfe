"""What a person sees of a finished run: pandas, status, show."""

import os

import pytest

import pipeline
from pipeline import written
from pipeline.errors import UserError
from pipeline.recipe import ConversationMethod, DocumentsMethod, Recipe
from pipeline.stages import generate
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
    narrow = seqkd("show", "tiny", "train", cwd=finished, env=os.environ | {"COLUMNS": "20"}).stdout
    assert run.train["prompt"][0][0]["content"] in narrow, "a pipe gets whole lines"
    prompt = run.prompts["id"][0]
    assert "ended: " in seqkd("show", "tiny", "--prompt", prompt[:10], cwd=finished).stdout
    wrong = seqkd("show", "tiny", "fliter", cwd=finished)
    assert wrong.returncode == 2 and "Did you mean 'filter'" in wrong.stderr


def test_plan_says_what_would_run_and_cost(finished, tiny):
    told = seqkd("plan", "tiny.yaml", cwd=finished)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("would be skipped") == 7 and "requests" not in told.stdout
    told = seqkd("plan", "tiny.yaml", "--set", "filter.min_words=2", cwd=finished)
    assert "would stop, without --force: filter.min_words was 1 and is 2" in told.stdout
    told = seqkd("plan", "tiny.yaml", cwd=tiny)
    assert told.returncode == 0 and "would run" in told.stdout and "144" in told.stdout
    assert not (tiny / "data" / "runs").exists() and not (tiny / "data" / "cache").exists()


def test_plan_counts_what_generate_and_evaluate_ask(tiny):
    """Prompts that a teacher writes, and the held-out questions of a teacher that is not in this process."""
    text = (tiny / "tiny.yaml").read_text()
    head, tail = text.split("  teachers:")
    paid = "  teachers: [{provider: openai, model: wise, price: {input: 10, output: 20}}]\n  samples:"
    text = head + paid + tail.split("  samples:")[1]
    methods = "{self_instruct: 2, evolve: 1, persona: 1, conversation: 1, questions: 1}"
    (tiny / "tiny.yaml").write_text(text.replace("{questions: 1.0}", methods))
    wide = os.environ | {"COLUMNS": "160"}
    done = seqkd("plan", "tiny.yaml", cwd=tiny, env=wide)
    assert done.returncode == 0, done.stderr
    assert "OPENAI_API_KEY is not set" in done.stdout
    cells = [(line.split(" \u2502")[0].strip("\u2502 "), line) for line in done.stdout.splitlines()]
    lines = {first: line for first, line in cells if first.startswith("wise")}
    assert list(lines) == ["wise (generate)", "wise", "wise (evaluate)"]
    # 16 prompts in lists of 8, 8 and 8, and 8 conversations of 2 turns: an answer and the next turn each.
    assert [int(cell.replace(",", "")) for cell in lines["wise (generate)"].split("\u2502")[3:6:2]] == [34, 34 * 12]
    assert " 12 " in lines["wise (evaluate)"] and " 144 " in lines["wise (evaluate)"]  # 12 tokens each
    assert "at most seven times a quarter" in " ".join(done.stdout.split())
    without = seqkd("plan", "tiny.yaml", "--set", "generate.methods={questions: 1}", cwd=tiny, env=wide)
    assert "(generate" not in without.stdout and "wise (evaluate)" in without.stdout


def test_who_is_asked_to_write_how_much(tiny, monkeypatch):
    """Magpie goes to one teacher alone, the rest to all by weight; a conversation is read again with each turn."""
    monkeypatch.chdir(tiny)
    teachers = [{"provider": "vllm", "model": "m", "base_url": "http://127.0.0.1:1"}]
    teachers.append({"provider": "openai", "model": "o", "weight": 3})
    section = {"teachers": teachers, "sampling": {"max_tokens": 10}}
    methods = {"magpie": 1, "evolve": 1}
    both = Recipe.model_validate({"domain": "tiny", "generate": {"count": 8, "methods": methods}, "collect": section})
    lines = generate.estimate(both, None)
    assert sorted((line["teacher"], line["requests"], line["output_tokens"]) for line in lines) == [
        ("m (generate)", 1, 10), ("m (generate, magpie)", 4, 40), ("o (generate)", 3, 30),
    ]  # fmt: skip
    assert generate.estimate(both, tiny / "prompts.parquet") == []  # the prompts are there
    config = both.generate.model_copy(update={"conversation": ConversationMethod(turns=3)})
    config = config.model_copy(update={"documents": DocumentsMethod(files=["a.txt"], characters=1000)})
    assert written.requests("documents", 30, config, 40) == (10, 10_000)
    assert written.requests("conversation", 1, config, 40) == (4, (200 + 240) + (440 + 480))
