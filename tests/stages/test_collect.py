"""collect against real servers on this machine: a row for each prompt and sample, nothing lost, nothing paid twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.calls import batch, online
from pipeline.errors import RecipeError, StopRun, UserError
from pipeline.recipe import Recipe
from pipeline.records import COMPLETIONS, FAILURES, PROMPTS, facets_of, make_id
from pipeline.stages import collect
from teacher_server import FAULTS, running

KEY = "canary-7f3a9b"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_prompts(path: Path, count: int, text: str = "Who is number {}?") -> Path:
    chats = [[{"role": "user", "content": text.format(i)}] for i in range(count)]
    rows = [
        {
            "id": make_id("prompt", "d", chat),
            "domain": "d",
            "method": "file",
            "template": None,
            "facets": facets_of(),
            "messages": chat,
        }
        for chat in chats
    ]
    artifacts.write_table(path, PROMPTS, sorted(rows, key=lambda row: row["id"]))
    return path


def recipe(
    url: str | list[str] | None = None, *, provider: str = "openai", teacher: dict | None = None, **section
) -> Recipe:
    one = {"provider": provider, "model": "m", "base_url": url, "api_key_env": "TEST_KEY"} | (teacher or {})
    return Recipe.model_validate({"domain": "d", "collect": {"teachers": [one]} | section})


def run(wanted: Recipe, prompts: Path, name: str = "run") -> tuple[dict, list[dict], list[dict]]:
    """Run the stage -> counts, completions, failures. Checks what must always hold."""
    out = prompts.parent / "runs" / name / f"out{random.random()}"
    out.mkdir(parents=True)
    counts = collect.run(wanted, {"prompts": prompts}, out)
    tables = [artifacts.read_table(out / f"{table}.parquet") for table in ("completions", "failures")]
    assert [table.schema for table in tables] == [COMPLETIONS, FAILURES]
    assert [path.name for path in sorted(out.iterdir())] == ["completions.parquet", "failures.parquet"]
    answered, failed = (table.to_pylist() for table in tables)
    ids = [row["id"] for row in answered + failed]
    assert len(set(ids)) == len(ids) == counts["rows_in"]
    for rows in (answered, failed):
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in answered:
        assert row["text"].startswith("echo: " + row["messages"][-1]["content"])
    return counts, answered, failed


@pytest.mark.parametrize("provider", ["openai", "anthropic", "vllm"])
def test_every_prompt_and_sample_is_one_row_and_is_asked_once(folder, provider):
    prompts = write_prompts(folder / "prompts.parquet", 40)
    with running() as server:
        wanted = recipe(server.url, provider=provider, samples=2)
        counts, answered, failed = run(wanted, prompts)
        assert (len(answered), len(failed), counts["usage"]["from_store"]) == (80, 0, 0)
        assert all(row["output_tokens"] == 10 and row["finish_reason"] == "stop" for row in answered)
        sent = server.stats()["requests"]
        assert sent == (80 if provider == "anthropic" else 40)  # elsewhere `n` brings both samples

        again, same, _ = run(wanted, prompts)
        assert same == answered and again["usage"]["from_store"] == 80

        # One more sample, and other prompts besides: only what is new is asked.
        more = write_prompts(folder / "more.parquet", 50)
        counts, _, _ = run(recipe(server.url, provider=provider, samples=3), more, "another")
        assert counts["usage"]["from_store"] == 80
        assert counts["rows_in"] == 150
        run(
            recipe(server.url, provider=provider, samples=3, sampling={"temperature": 0.1}),
            more if provider != "anthropic" else prompts,
        )
        # Anthropic's requests have no seed, so samples of a prompt look alike there.
        asked = {"openai": 40 + 40 + 10 + 50, "vllm": 40 + 40 + 10 + 50, "anthropic": 80 + 70 + 120}[provider]
        stats = server.stats()
        assert stats["requests"] == asked
        assert provider == "anthropic" or stats["repeats"] == 0


def test_a_server_that_does_not_know_n(folder):
    prompts = write_prompts(folder / "prompts.parquet", 10)
    with running(ignore_n=True) as server:
        _, answered, failed = run(recipe(server.url, samples=3), prompts)
    assert len(answered) == 30 and not failed


@pytest.mark.parametrize("samples", [1, 4])
def test_a_sample_that_says_nothing_is_asked_again_alone_and_with_another_seed(folder, samples):
    prompts = write_prompts(folder / "prompts.parquet", 60)
    with running(silent_share=0.3) as server:
        wanted = recipe(server.url, provider="vllm", samples=samples)
        counts, answered, failed = run(wanted, prompts)
        # A seed in three says nothing, whatever was asked before; of five in a row next to none.
        assert not failed and len(answered) == 60 * samples
        asked = counts["usage"]["requests_sent"]
        assert asked < 60 * samples * 1.7  # no sample that said something was asked again
        assert samples == 4 or server.stats()["repeats"] == 0  # (sample 0 of `n` has the seed of the request alone)
        counts, same, _ = run(wanted, prompts, "another")
        assert same == answered and counts["usage"]["requests_sent"] == 0
        assert sum(row["input_tokens"] for row in answered) > 0


@pytest.mark.parametrize("samples", [1, 4])
def test_a_teacher_that_never_says_anything_is_asked_five_times(folder, monkeypatch, samples):
    monkeypatch.setattr(online, "backoff", lambda attempts: 0.0)
    prompts = write_prompts(folder / "prompts.parquet", 3)
    with running(silent_share=1.0) as server:
        counts, answered, failed = run(recipe(server.url, provider="vllm", samples=samples), prompts)
        assert not answered and counts["reasons"] == {"empty": 3 * samples}
        assert {row["attempts"] for row in failed} == {5}
        assert server.stats()["requests"] == 15 and server.stats()["repeats"] == 0


def test_teachers_by_weight_and_all_of_them(folder):
    prompts = write_prompts(folder / "prompts.parquet", 200)
    with running() as one, running() as two:
        teachers = [
            {"provider": "openai", "model": "a", "base_url": one.url, "weight": 3},
            {"provider": "anthropic", "model": "b", "base_url": two.url},
        ]
        split = Recipe.model_validate({"domain": "d", "collect": {"teachers": teachers}})
        _, answered, _ = run(split, prompts)
        share = [row["teacher"] for row in answered]
        assert len(share) == 200 and 120 < share.count("a") < 180
        every = Recipe.model_validate({"domain": "d", "collect": {"teachers": teachers, "strategy": "all"}})
        counts, answered, _ = run(every, prompts)
        assert len(answered) == 400 and counts["usage"]["from_store"] == 200


def test_several_servers_of_one_model_are_used_side_by_side(folder):
    prompts = write_prompts(folder / "prompts.parquet", 60)
    with running(latency_s=0.05) as one, running(latency_s=0.05) as two:
        urls = [one.url, two.url, "http://127.0.0.1:9/v1"]  # nobody listens on the last one
        _, answered, failed = run(recipe(urls, provider="vllm", teacher={"max_in_flight": 16}), prompts)
        assert len(answered) == 60 and not failed
        assert min(one.stats()["answered"], two.stats()["answered"]) > 10


def test_faults_lose_nothing_and_nothing_bad_is_saved(folder):
    prompts = write_prompts(folder / "prompts.parquet", 150)
    with running(faults=list(FAULTS), fault_share=0.4) as server:
        wanted = recipe(server.url, timeout_s=1.5, deadline_s=60, teacher={"max_in_flight": 64})
        counts, answered, failed = run(wanted, prompts)
        assert len(answered) == 150 and not failed, counts
        assert sum(server.stats()["faults"].values()) > 30


def test_a_response_delivered_twice_answers_no_other_request(folder):
    prompts = write_prompts(folder / "prompts.parquet", 600)
    with running(faults=["twice"], fault_share=1.0) as server:
        _, answered, failed = run(recipe(server.url, teacher={"max_in_flight": 16}), prompts)
        assert len(answered) == 600 and not failed
        assert server.stats()["faults"]["twice"] == 600


def test_a_fault_that_stays_is_a_row_with_its_reason_and_is_asked_again_later(folder):
    prompts = write_prompts(folder / "prompts.parquet", 60)
    with running(faults=["invalid_json"], fault_share=0.1, fault_every_time=True) as server:
        _, answered, failed = run(recipe(server.url), prompts)
        assert failed and len(answered) + len(failed) == 60
        assert {(row["reason"], row["attempts"]) for row in failed} == {("bad_body", online.MAX_BILLED)}
    with running(port=server.port) as server:
        _, answered, failed = run(recipe(server.url), prompts)
        assert len(answered) == 60 and server.stats()["requests"] < 20


def answers_with(status: int, body: str, headers: dict | None = None):
    return running(status=[status, headers or {}, body])


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, '{"error":{"message":"bad key"}}', "key was refused"),
        (404, '{"error":{"code":"model_not_found"}}', "unknown model or wrong base_url"),
        (429, '{"error":{"code":"insufficient_quota"}}', "quota"),
        (400, '{"error":{"code":"unsupported_value","message":"temperature"}}', "temperature: null"),
        (200, "<html>Welcome</html>", "bad_body"),
    ],
)
def test_what_cannot_go_well_stops_the_run(folder, status, body, said):
    prompts = write_prompts(folder / "prompts.parquet", 300)
    with answers_with(status, body) as server:
        with pytest.raises(StopRun, match=said) as caught:
            run(recipe(server.url, deadline_s=20), prompts)
        assert "\n" not in str(caught.value)
        assert server.stats()["requests"] <= 5


def test_what_stops_one_teacher_stops_the_others(folder):
    prompts = write_prompts(folder / "prompts.parquet", 2000)
    with running(latency_s=0.2) as good, answers_with(401, "{}") as bad:
        teachers = [
            {"provider": "openai", "model": "a", "base_url": good.url, "max_in_flight": 4},
            {"provider": "openai", "model": "b", "base_url": bad.url},
        ]
        with pytest.raises(StopRun, match="key was refused"):
            run(Recipe.model_validate({"domain": "d", "collect": {"teachers": teachers}}), prompts)
        assert good.stats()["requests"] < 50


def test_a_redirect_is_not_followed_and_forwards_nothing(folder):
    prompts = write_prompts(folder / "prompts.parquet", 5)
    with running() as other, answers_with(307, "", {"location": f"{other.url}/chat/completions"}) as server:
        with pytest.raises(StopRun, match="redirects"):
            run(recipe(server.url), prompts)
        assert other.stats()["requests"] == 0


def test_final_rejections_are_rows_and_are_not_asked_again(folder):
    prompts = write_prompts(folder / "prompts.parquet", 12)
    with answers_with(
        400, '{"error":{"code":"context_length_exceeded","message":"too long \\ud800\\u0000"}}'
    ) as server:
        _, answered, failed = run(recipe(server.url), prompts)
        assert not answered and {row["reason"] for row in failed} == {"context_length"}
        run(recipe(server.url), prompts)
        assert server.stats()["requests"] == 12


def test_requests_that_are_all_rejected_stop_the_run(folder):
    prompts = write_prompts(folder / "prompts.parquet", 500)
    with answers_with(400, '{"error":{"message":"max_tokens is too large"}}') as server:
        with pytest.raises(StopRun, match=r"all rejected.*max_tokens is too large"):
            run(recipe(server.url, teacher={"max_in_flight": 8}), prompts)
        assert server.stats()["requests"] < 60


def test_nobody_listens(folder):
    prompts = write_prompts(folder / "prompts.parquet", 5)
    with pytest.raises(StopRun, match="unreachable"):
        run(recipe("http://127.0.0.1:9/v1"), prompts)


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\n", f" {KEY}", "schlüssel"])
def test_a_key_that_is_missing_or_has_white_space_is_named_by_its_variable(folder, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(UserError, match="TEST_KEY") as caught:
        run(recipe("http://127.0.0.1:9/v1"), write_prompts(folder / "prompts.parquet", 1))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("urls", "whose"),
    [
        (None, "OpenAI's terms"),
        ("https://api.openai.com/v1", "OpenAI's terms"),
        (["http://127.0.0.1:9/v1", "https://me.openai.azure.com/v1"], "OpenAI's terms"),
        ("https://api.anthropic.com/v1", "Anthropic's terms"),  # which has OpenAI's interface too
    ],
)
def test_a_hosted_provider_wants_its_terms_accepted(folder, monkeypatch, urls, whose):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match=rf"{whose}.*accept_terms: true"):
        run(recipe(urls), write_prompts(folder / "prompts.parquet", 1))
    accepted = collect.accept_terms(recipe(urls, accept_terms=True))
    assert list(accepted) == [whose.split("'")[0].lower()]


def test_strange_texts_and_a_10_mb_answer(folder):
    prompts = write_prompts(folder / "prompts.parquet", 1, "a\x00b {}")
    big = "x" * 10_000_000
    choice = {"index": 0, "message": {"content": "echo: a\x00b 0 \ud83d " + big}, "finish_reason": "stop"}
    with answers_with(200, json.dumps({"choices": [choice], "usage": {}})) as server:
        _, answered, _ = run(recipe(server.url), prompts)
    assert answered[0]["text"].startswith("echo: a\x00b 0 \ufffd x") and len(answered[0]["text"]) > 10_000_000


@pytest.mark.parametrize("in_flight", [1, 300])
def test_the_budget_is_never_passed_and_can_be_raised(folder, in_flight):
    prompts = write_prompts(folder / "prompts.parquet", 200)
    price = {"input": 200.0, "output": 2000.0}
    section = {"teacher": {"max_in_flight": in_flight, "price": price}, "sampling": {"max_tokens": 30}}
    with running() as server:
        counts, answered, failed = run(recipe(server.url, budget_usd=1.0, **section), prompts)
        assert counts["usage"]["spent_usd"] <= 1.0
        assert sum(row["cost_usd"] for row in answered) == pytest.approx(counts["usage"]["spent_usd"])
        assert answered and {row["reason"] for row in failed} == {"budget"}
        # What is left does not bear the worst case of one more request.
        assert counts["usage"]["spent_usd"] > 1.0 - 0.24
        assert "a larger collect.budget_usd" in counts["note"]
        counts, answered, failed = run(recipe(server.url, budget_usd=50.0, **section), prompts)
        assert len(answered) == 200 and not failed
        assert server.stats()["repeats"] == 0


def test_a_budget_needs_a_price():
    with pytest.raises(ValueError, match="budget_usd needs a price"):
        recipe("http://127.0.0.1:9/v1", budget_usd=1)


def test_an_estimate_before_and_after_generate(folder):
    wanted = recipe("http://h/v1", samples=4, teacher={"price": {"input": 1, "output": 2}})
    (line,) = collect.estimate(wanted)
    assert line["requests"] == 1000 and line["output_tokens"] == 4 * 1000 * 512 and line["usd"] > 4
    (line,) = collect.estimate(wanted, write_prompts(folder / "prompts.parquet", 10))
    assert line["requests"] == 10
    (line,) = collect.estimate(recipe("http://h/v1"))
    assert line["usd"] is None


def test_an_estimate_leaves_out_what_the_store_has(folder):
    prompts = write_prompts(folder / "prompts.parquet", 10)
    with running() as server:
        run(recipe(server.url, samples=2), prompts)
        (line,) = collect.estimate(recipe(server.url, samples=2), prompts)
        assert (line["requests"], line["input_tokens"], line["output_tokens"]) == (0, 0, 0)
        (line,) = collect.estimate(recipe(server.url, samples=3), prompts)
        assert (line["requests"], line["output_tokens"]) == (10, 10 * 512)
        (line,) = collect.estimate(recipe(server.url, samples=2), write_prompts(folder / "more.parquet", 12))
        assert (line["requests"], line["output_tokens"]) == (2, 2 * 2 * 512)


def test_a_server_is_started_only_for_what_the_store_lacks(folder):
    python = folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    server = Path(__file__).parent.parent / "teacher_server.py"
    python.write_text(
        "#!/bin/sh\nwhile [ $1 != --port ]; do shift; done\n"
        f'echo "{{\\"port\\": $2}}" | {sys.executable} {server} > /dev/null\n'
    )
    python.chmod(0o755)
    prompts = write_prompts(folder / "prompts.parquet", 10)
    serve = {"api_key_env": None, "serve": {"environment": str(folder / "env")}}
    wanted = recipe(provider="vllm", teacher=serve, samples=2)
    counts, answered, _ = run(wanted, prompts)
    assert len(answered) == 20 and counts["usage"]["from_store"] == 0
    python.unlink()
    counts, same, _ = run(wanted, prompts)
    assert same == answered and counts["usage"]["from_store"] == 20


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_batch_and_online_are_one_job(folder, monkeypatch, provider):
    monkeypatch.setattr(batch, "POLL_S", 0.05)
    prompts = write_prompts(folder / "prompts.parquet", 30)
    price = {"price": {"input": 10.0, "output": 100.0}}
    with running(expire_share=0.4) as server:
        wanted = recipe(server.url, provider=provider, samples=2, teacher=price | {"mode": "batch"}, budget_usd=10)
        counts, answered, failed = run(wanted, prompts)
        stats = server.stats()
        assert len(answered) == 60 and not failed
        assert 60 < stats["batch_rows"] < 120 and stats["requests"] == 0  # what had expired went into a second batch
        full = 10 * answered[0]["input_tokens"] + 100 * 10
        assert answered[0]["cost_usd"] == pytest.approx(full / 1e6 / 2)
        assert counts["usage"]["spent_usd"] == pytest.approx(sum(row["cost_usd"] for row in answered))
        assert counts["usage"]["from_store"] == 0
        online_ = recipe(server.url, provider=provider, samples=2, teacher=price)
        counts, same, _ = run(online_, prompts)
        assert same == answered and server.stats()["requests"] == 0 and counts["usage"]["from_store"] == 60
        # Another ten prompts in batches: only they are asked, and only they are not from the store.
        more = write_prompts(folder / "more.parquet", 40)
        counts, answered, _ = run(wanted, more)
        assert len(answered) == 80 and counts["usage"]["from_store"] == 60


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_batch_whose_creation_was_not_confirmed_is_found_again(folder, monkeypatch, provider):
    monkeypatch.setattr(batch, "POLL_S", 0.05)
    prompts = write_prompts(folder / "prompts.parquet", 20)
    with running(lose_creations=1) as server:
        _, answered, failed = run(recipe(server.url, provider=provider, teacher={"mode": "batch"}), prompts)
        assert len(answered) == 20 and not failed
        assert server.stats()["batch_rows"] == 20


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_killed_batch_is_gone_on_with(folder, provider):
    prompts = write_prompts(folder / "prompts.parquet", 20)
    with running(polls=6) as server:
        wanted = recipe(server.url, provider=provider, teacher={"mode": "batch"})
        driver = DRIVER.replace("out = ", "from pipeline.calls import batch; batch.POLL_S = 0.3\nout = ", 1)
        command = [sys.executable, "-c", driver, wanted.model_dump_json(exclude_defaults=True), str(prompts)]
        for kill in (True, False):
            process = subprocess.Popen([*command, str(folder / "runs" / "a" / "out")])
            while kill and "batch_rows" not in server.stats():
                time.sleep(0.02)
            if kill:
                process.kill()
            assert (process.wait() == 0) is not kill
        assert artifacts.count_rows(folder / "runs" / "a" / "out" / "completions.parquet") == 20
        assert server.stats()["batch_rows"] == 20


def test_where_the_queue_is_full_batches_get_smaller(folder, monkeypatch):
    monkeypatch.setattr(batch, "POLL_S", 0.02)
    prompts = write_prompts(folder / "prompts.parquet", 40)
    with running(queue_rows=12) as server:
        _, answered, failed = run(recipe(server.url, teacher={"mode": "batch"}), prompts)
        stats = server.stats()
        assert len(answered) == 40 and not failed
        assert stats["batches_failed"] == 2 and stats["requests"] == 0  # 40 and 20 rows were refused, 10 were not
    with running(queue_rows=0.5) as server:
        other = write_prompts(folder / "others.parquet", 2, "What is number {}?")
        with pytest.raises(StopRun, match="batch .* failed: token_limit_exceeded: Enqueued token limit reached"):
            run(recipe(server.url, teacher={"mode": "batch"}), other)


def test_a_batch_keeps_to_the_budget(folder, monkeypatch):
    monkeypatch.setattr(batch, "POLL_S", 0.05)
    prompts = write_prompts(folder / "prompts.parquet", 200)
    teacher = {"mode": "batch", "price": {"input": 200.0, "output": 2000.0}}
    with running() as server:
        wanted = recipe(server.url, teacher=teacher, sampling={"max_tokens": 30}, budget_usd=1.0)
        counts, answered, failed = run(wanted, prompts)
    assert 0.7 < counts["usage"]["spent_usd"] <= 1.0
    assert {row["reason"] for row in failed} == {"budget"} and answered


DRIVER = """
import sys, json
from pathlib import Path
from pipeline.recipe import Recipe
from pipeline.stages import collect
out = Path(sys.argv[3]); out.mkdir(parents=True, exist_ok=True)
collect.run(Recipe.model_validate(json.loads(sys.argv[1])), {"prompts": Path(sys.argv[2])}, out)
"""


def test_kill_9_at_random_moments_ends_in_the_same_bytes(folder):
    prompts = write_prompts(folder / "prompts.parquet", 1000)
    with running(latency_s=0.02) as server:
        wanted = recipe(server.url, teacher={"max_in_flight": 32, "price": {"input": 1, "output": 2}}, samples=2)
        command = [sys.executable, "-c", DRIVER, wanted.model_dump_json(exclude_defaults=True), str(prompts)]
        environment = os.environ | {"SEQKD_DATA": str(folder / "killed")}
        draw, begun, store = random.Random(0), 0, folder / "killed" / "cache" / "responses.sqlite"
        for _ in range(4):
            process = subprocess.Popen([*command, str(folder / "runs" / "a" / "out")], env=environment)
            before = server.stats()["requests"]
            deadline = time.monotonic() + 30
            while server.stats()["requests"] == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            begun += process.wait() != 0
            db = sqlite3.connect(store)
            answers = db.execute("SELECT count(*) FROM answers").fetchone()[0]
            db.close()
            assert answers <= 2 * server.stats()["answered"]
        subprocess.run([*command, str(folder / "runs" / "a" / "out")], env=environment, check=True)
        repeats = server.stats()["repeats"]
        assert begun >= 2
        assert repeats <= begun * 32  # what was in flight
        subprocess.run([*command, str(folder / "runs" / "b" / "out")], check=True)
    for table in ("completions", "failures"):
        broken, whole = (folder / "runs" / name / "out" / f"{table}.parquet" for name in "ab")
        assert broken.read_bytes() == whole.read_bytes()


def test_the_key_is_nowhere(folder):
    prompts = write_prompts(folder / "prompts.parquet", 30)
    with running(faults=["reset", "500", "invalid_json"], fault_share=0.3) as server:
        wanted = recipe(server.url, timeout_s=5)
        command = [sys.executable, "-X", "dev", "-c", DRIVER, wanted.model_dump_json(exclude_defaults=True)]
        process = subprocess.Popen(
            [*command, str(prompts), str(folder / "runs" / "a" / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert KEY in json.dumps(server.stats()["headers"])  # it was used
        assert KEY not in output.decode() + " ".join(command)
    with answers_with(401, '{"error":{"message":"no"}}') as server, pytest.raises(StopRun) as caught:
        run(recipe(server.url), prompts, "other")
    import traceback

    text = "".join(traceback.format_exception(caught.value))
    assert KEY not in text
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def local_model(folder: Path) -> Path:
    """A tiny untrained model that speaks bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", chat_template=template
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_teacher_interrupted_anywhere_gives_the_same_bytes(folder, monkeypatch):
    from pipeline.teachers import local

    prompts = write_prompts(folder / "prompts.parquet", 20)
    long = write_prompts(folder / "long.parquet", 1, "far too long " * 10 + "{}")
    teacher = {"provider": "local", "model": str(local_model(folder / "model")), "name": "tiny", "batch_size": 8}
    section = {"teachers": [teacher], "samples": 3, "sampling": {"max_tokens": 5, "logprobs": True}}
    wanted = Recipe.model_validate({"domain": "d", "collect": section})

    def tables(name: str, data: str, of: Path = prompts) -> tuple[dict, bytes]:
        monkeypatch.setenv("SEQKD_DATA", str(folder / data))
        out = folder / "runs" / name / "out"
        out.mkdir(parents=True, exist_ok=True)
        counts = collect.run(wanted, {"prompts": of}, out)
        return counts, (out / "completions.parquet").read_bytes()

    counts, whole = tables("whole", "one")
    assert counts["outcomes"] == {"completions": 60, "failed": 0} and counts["usage"]["requests_sent"] == 60

    answer, batches = local.answer, 0

    def dies(*arguments, **named):
        nonlocal batches
        batches += 1
        if batches % 3 == 0:
            raise KeyboardInterrupt
        return answer(*arguments, **named)

    monkeypatch.setattr(local, "answer", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tables("broken", "two")
    monkeypatch.setattr(local, "answer", answer)
    counts, broken = tables("broken", "two")
    assert broken == whole and counts["usage"]["from_store"] > 30
    counts, _ = tables("long", "two", long)
    assert counts["reasons"] == {"context_length": 3}


def file_recipe(path: Path) -> Recipe:
    return Recipe.model_validate({"domain": "d", "collect": {"file": str(path)}})


def take(path: Path) -> tuple[dict, list[dict], list[dict]]:
    out = path.parent / f"out-{path.name}"
    out.mkdir()
    counts = collect.run(file_recipe(path), {"file": path}, out)
    return counts, *(
        artifacts.read_table(out / f"{table}.parquet").to_pylist() for table in ("completions", "failures")
    )


def test_answers_from_a_file(folder):
    lines = [
        {"prompt": "a", "completion": "1"},
        {"prompt": "a", "completion": "2"},
        {"instruction": "b", "input": "c", "output": "3"},
        {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "4 \ud800"}]},
        {"prompt": "e", "completion": " "},
    ]
    path = folder / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    counts, answered, failed = take(path)
    assert counts["rows_in"] == 5 and counts["reasons"] == {"empty": 1}
    found = {(row["messages"][-1]["content"], row["sample"], row["text"]) for row in answered}
    assert found == {("a", 0, "1"), ("a", 1, "2"), ("b\n\nc", 0, "3"), ("d", 0, "4 \ufffd")}
    assert answered[0]["provider"] == "file" and answered[0]["teacher"] == "answers.jsonl"
    assert failed[0]["reason"] == "empty"


def test_answers_from_csv_parquet_and_a_data_set(folder):
    import datasets
    import pyarrow as pa

    rows = {"prompt": ["a", "b"], "completion": ["1", "2"]}
    (folder / "x.csv").write_text('prompt,completion\na,1\n"b","2"\n')
    artifacts.write_table(folder / "x.parquet", pa.schema([(name, pa.string()) for name in rows]), pa.table(rows))
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "set")
    for name in ("x.csv", "x.parquet", "set"):
        _, answered, _ = take(folder / name)
        assert {(row["messages"][0]["content"], row["text"]) for row in answered} == {("a", "1"), ("b", "2")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "completion": "1"}\n{broken', ":2: is not a line of JSON"),
        ('{"prompt": "a"}', ":1: has `prompt` but no `completion`"),
        ('{"promt": "a", "completion": "b"}', "Did you mean 'prompt'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "ends without an answer"),
        ('{"prompt": 5, "completion": "b"}', ":1: prompt: expected a text"),
        ("[1]", "expected an object"),
    ],
)
def test_a_bad_file_is_explained_with_its_line(folder, text, said):
    (folder / "a.jsonl").write_text(text)
    with pytest.raises(RecipeError) as caught:
        take(folder / "a.jsonl")
    assert said in str(caught.value)
