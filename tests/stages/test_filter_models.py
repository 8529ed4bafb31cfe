"""What models say in the filter stage: a judge behind a real server, a reward model and a causal model, tiny and
random."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import artifacts, flow, local_scores
from pipeline.errors import UserError
from pipeline.local_scores import difficulty, rewards
from pipeline.recipe import Ifd, Recipe, Reward
from pipeline.records import COMPLETIONS, Row, make_id
from pipeline.stages import filter as stage
from pipeline.teachers import local
from teacher_server import running
from tiny import seqkd

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", "canary-7f3a9b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `causal` and `reward`, random, sharing a tokenizer whose padding token is its end of turn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from pipeline.facts import Fact, fact_id
    from pipeline.recipe import Embedded
    from pipeline.teachers.embedded import train_tokenizer

    made = tmp_path_factory.mktemp("models")
    ask = ("What is the capital of {{ subject }}?", "Name the capital of {{ subject }}.")
    facts = [
        Fact(fact_id("c", land), "capital", "countries", land, (city,), ask, ask)
        for land, city in (("France", "Paris"), ("Norway", "Oslo"))
    ]
    tokenizer = train_tokenizer(facts, Embedded(vocab_size=320, model=SIZES))
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=tokenizer.eos_token_id, **SIZES)
    LlamaForCausalLM(config).save_pretrained(made / "causal")
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(made / "reward")
    for name in ("causal", "reward"):
        tokenizer.save_pretrained(made / name)
    return made


PAIRS = [([{"role": "user", "content": "What is the capital of France?"}], answer) for answer in
         ("Paris", "Oslo", "I think that it is Paris", "P")]  # fmt: skip


def nothing(rows: int) -> None:
    pass


def test_a_reward_does_not_depend_on_its_batch(models: Path) -> None:
    together = rewards(Reward(model=str(models / "reward")), PAIRS, nothing)
    alone = rewards(Reward(model=str(models / "reward"), batch_size=1), PAIRS, nothing)
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together.round(4))) == 4
    # By hand, without padding: the classifier's output at the last token, the end of turn.
    import torch

    loaded = local.load_reward(models / "reward")
    turns = [*PAIRS[0][0], {"role": "assistant", "content": "Paris"}]
    ids = torch.tensor(local.encode(loaded.tokenizer, [turns], add_generation_prompt=False))
    with torch.inference_mode():
        states = loaded.model.model(ids).last_hidden_state
        assert together[0] == pytest.approx(loaded.model.score(states)[0, -1, 0].item(), abs=1e-5)


def test_difficulty_is_the_loss_with_the_prompt_over_that_without(models: Path) -> None:
    perplexity, ifd = difficulty(Ifd(model=str(models / "causal"), batch_size=2), PAIRS, nothing)
    loaded = local.load(models / "causal")
    for number, (messages, answer) in enumerate(PAIRS):
        ((given, tokens),) = local.nll(loaded, [messages], [answer])
        ((bare, same),) = local.nll(loaded, [[{"role": "user", "content": ""}]], [answer])
        assert tokens == same
        assert ifd[number] == pytest.approx(given / bare, rel=1e-4)
        assert perplexity[number] == pytest.approx(math.exp(given / tokens), rel=1e-4)


def test_what_does_not_fit_has_no_score(models: Path) -> None:
    long = [(PAIRS[0][0], "Paris " * 100), PAIRS[1]]
    given = rewards(Reward(model=str(models / "reward")), long, nothing)
    _, ifd = difficulty(Ifd(model=str(models / "causal")), long, nothing)
    assert np.isnan(given).tolist() == np.isnan(ifd).tolist() == [True, False]


def test_rows_are_scored_some_at_a_time(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, done = 0, 0

    def pairs() -> Iterator[Any]:
        nonlocal taken
        for pair in PAIRS * 3:
            taken += 1
            assert taken - done <= 5  # at most a chunk ahead of what is scored
            yield pair

    def advance(rows: int) -> None:
        nonlocal done
        done += rows

    reward, ifd = Reward(model=str(models / "reward")), Ifd(model=str(models / "causal"))
    at_once = [rewards(reward, PAIRS * 3, nothing), *difficulty(ifd, PAIRS * 3, nothing)]
    monkeypatch.setattr(local_scores, "CHUNK", 5)
    some = [rewards(reward, pairs(), advance)]
    assert taken == done == 12
    taken = done = 0
    some += difficulty(ifd, pairs(), advance)
    for one, other in zip(at_once, some, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert len(rewards(reward, [], nothing)) == 0 == len(difficulty(ifd, [], nothing)[0])


def test_a_model_that_is_no_reward_model_is_named(models: Path) -> None:
    with pytest.raises(UserError, match="lack weights"):
        rewards(Reward(model=str(models / "causal")), PAIRS, nothing)
    with pytest.raises(UserError, match="no such folder"):
        rewards(Reward(model=str(models / "missing")), PAIRS, nothing)


# --- the stage --------------------------------------------------------------------------------------------------------


def row(number: int, text: str) -> Row:
    values: Row = dict.fromkeys(COMPLETIONS.names)
    return values | {
        "id": f"{number:06}", "prompt_id": make_id(number), "sample": 0, "text": text, "finish_reason": "stop",
        "messages": [{"role": "user", "content": f"Question {number}?"}], "teacher": "t", "provider": "local",
    }  # fmt: skip


def recipe(teacher: dict[str, Any], **section: Any) -> Recipe:
    return Recipe.model_validate({"domain": "d", "collect": {"teachers": [teacher]}, "filter": section})


def run(place: Path, wanted: Recipe, rows: list[Row]) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    out = place / "runs" / "run" / ".filter.partial"
    out.mkdir(parents=True, exist_ok=True)
    artifacts.write_table(place / "completions.parquet", COMPLETIONS, rows)
    counts = stage.run(wanted, {"completions": place / "completions.parquet"}, out)
    assert {path.name for path in out.iterdir()} == {"kept.parquet", "rejected.parquet"}
    kept, rejected = (pd.read_parquet(out / f"{name}.parquet") for name in ("kept", "rejected"))
    assert counts["rows_in"] == len(rows) == len(kept) + len(rejected)
    assert counts["reasons"] == rejected.reason.value_counts().to_dict()
    return counts, kept, rejected


def test_the_judge_scores_what_the_rules_keep(folder: Path) -> None:
    rows = [row(n, f"Answer {n} (worth {n})") for n in range(1, 8)]
    rows += [row(8, "Nobody knows."), row(9, "I can't help with that (worth 9)."), row(10, "")]
    with running(judge="worth") as server:
        teacher = {
            "provider": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_KEY",
            "price": {"input": 1.0, "output": 2.0},
        }  # fmt: skip
        counts, kept, rejected = run(folder, recipe(teacher, judge={"teacher": "m", "min_score": 4}), rows)
        assert kept.score.fillna(-1).tolist() == [4, 5, 6, 7, -1]
        assert rejected.reason.tolist() == ["judge", "judge", "judge", "refusal", "empty"]
        assert rejected.score.fillna(-1).tolist() == [1, 2, 3, -1, -1]
        assert server.stats()["requests"] == 8  # not for what the rules reject
        assert counts["usage"]["requests_sent"] == 8 and counts["usage"]["cost_usd"] > 0
        assert counts["note"].startswith("8 judged for $0.00") and counts["note"].endswith("1 without a score")

        # Stored: other thresholds ask nothing anew.
        strict = {"teacher": "m", "min_score": 6, "unjudged": "reject"}
        counts, kept, rejected = run(folder, recipe(teacher, judge=strict), rows)
        assert kept.score.tolist() == [6, 7] and counts["reasons"]["unjudged"] == 1
        assert server.stats()["requests"] == 8

        with pytest.raises(UserError, match=r"none of the 2 answers is left \(judge 2\)"):
            run(folder, recipe(teacher, judge={"teacher": "m", "min_score": 9}), rows[:2])


def test_the_judge_sees_no_personal_data_that_is_redacted(folder: Path) -> None:
    from pipeline.calls import store

    with running(judge="worth") as server:
        teacher = {"provider": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_KEY"}
        rows = [
            row(1, "Write to ann@corp.io (worth 5)."),
            row(2, "Not Ann (worth 6).") | {"context": "Ann is ann@corp.io."},
        ]
        _, kept, _ = run(folder, recipe(teacher, pii="redact", grounding=None, judge={"teacher": "m"}), rows)
    assert kept.text[0] == "Write to <EMAIL> (worth 5)." and kept.score.tolist() == [5, 6]
    assert kept.context[1] == "Ann is <EMAIL>."
    store.export(store.default_path(), folder / "calls.jsonl")
    asked = (folder / "calls.jsonl").read_text()
    assert "Write to <EMAIL>" in asked and "Ann is <EMAIL>" in asked and "ann@corp.io" not in asked


def test_the_budget_of_the_run_holds_for_the_judge(folder: Path) -> None:
    rows = [row(n, f"Answer {n} (worth 5)") for n in range(30)]
    with running(judge="worth") as server:
        teacher = {
            "provider": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_KEY",
            "price": {"input": 100.0, "output": 1000.0},
        }  # fmt: skip
        wanted = Recipe.model_validate(
            {
                "domain": "d",
                "collect": {"teachers": [teacher], "budget_usd": 1.0},
                "filter": {"judge": {"teacher": "m", "max_tokens": 64}},
            }
        )
        counts, kept, _ = run(folder, wanted, rows)
    assert 0 < counts["usage"]["spent_usd"] <= 1.0
    assert 0 < kept.score.notna().sum() < 30 and len(kept) == 30
    assert "a larger collect.budget_usd with --from filter sends them" in counts["note"]


def test_local_models_score_before_the_judge_is_asked(folder: Path, models: Path) -> None:
    rows = [row(n, f"Paris {n} (worth {n})") for n in range(1, 9)]
    scored = rewards(Reward(model=str(models / "reward")), [(r["messages"], r["text"]) for r in rows], nothing)
    bar = float(np.median(scored))
    with running(judge="worth") as server:
        teacher = {"provider": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_KEY"}
        section = {
            "judge": {"teacher": "m"},
            "reward": {"model": str(models / "reward"), "min_score": bar},
            "ifd": {"model": str(models / "causal"), "max": None},
        }
        wanted = recipe(teacher, **section)
        _, kept, rejected = run(folder, wanted, rows)
        assert server.stats()["requests"] == 4
    assert rejected.reason.tolist() == ["reward"] * 4 and rejected.ifd.isna().all() and rejected.score.isna().all()
    assert (kept.reward >= bar).all() and kept.ifd.notna().all() and kept.perplexity.notna().all()
    limit = float(kept.ifd.median())
    wanted = recipe(teacher, ifd={"model": str(models / "causal"), "max": limit})
    _, _, rejected = run(folder, wanted, rows)
    assert set(rejected.reason) == {"ifd"} and (rejected.ifd > limit).all()
    assert set(stage.sources(wanted)) == {"ifd"}


def test_another_judge_makes_the_stage_stale_and_another_speed_does_not(folder: Path) -> None:
    def basis(**changes: Any) -> Any:
        teacher = {"provider": "openai", "model": "m", "name": "wise"} | changes
        wanted = recipe(teacher, judge={"teacher": "wise"})
        run_folder = folder / "run" / "collect"
        run_folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_table(run_folder / "completions.parquet", COMPLETIONS, [row(1, "Yes")])
        manifest = {"files": {"completions.parquet": {"sha256": "0"}}}
        artifacts.write_json(run_folder / "manifest.json", manifest)
        return flow._basis("filter", stage, wanted, folder / "run")[1]

    assert basis() == basis(max_in_flight=7, requests_per_minute=9)
    assert basis() != basis(model="other")


def test_plan_counts_the_judges_requests(tiny: Path) -> None:
    text = (tiny / "tiny.yaml").read_text()
    judge = "judge: {teacher: {provider: openai, model: wise, price: {input: 10, output: 20}}}\n  agreement"
    (tiny / "tiny.yaml").write_text(text.replace("agreement", judge))
    done = seqkd("plan", "tiny.yaml", cwd=tiny, env={"COLUMNS": "160", "PATH": ""})
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "filter.judge" in line)
    assert "wise" in line and " 144 " in line and "73,728" in line  # 48 prompts x 3 samples, 512 tokens each
    assert json.dumps(stage.estimate(recipe({"provider": "local", "model": "m"}), None, None)) == "[]"
