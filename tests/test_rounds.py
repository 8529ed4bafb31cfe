"""generate.target_kept: rounds of real stages against a scripted teacher on loopback, real processes, real kills."""

import hashlib
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import flow
from pipeline.artifacts import file_digest
from pipeline.domain import new_domain
from pipeline.errors import RecipeError, StaleRunError
from pipeline.recipe import load_recipe
from pipeline.rounds import thin
from pipeline.stages import generate
from scripted import Scripted, scripted
from test_written import scripted as written
from tiny import command, seqkd

NAMES = [a + b for a in ("Bel", "Cor", "Dan", "Fen", "Gal", "Hem", "Jor", "Kul") for b in ("ara", "ondo", "ix", "uma")]
DOMAIN = {
    "topics": {"planets": {"planet": NAMES[:16]}, "moons": {"moon": NAMES[16:]}},
    "tasks": {"ask": "a question", "tell": "a story"},
    "personas": ["a cadet", "a cook", "an old captain"],
    "weights": {"tasks": {"ask": 2}},
}
TEMPLATES = {
    "ask/planet": "What would {{ persona }} ask first about {{ planet }}?",
    "ask/moon": "How far is the moon {{ moon }}, and would {{ persona }} enjoy it?",
    "tell/planet": "Tell {{ persona }} what happened on {{ planet }} this morning.",
    "tell/moon": "Make up a moon called {{ moon }} that {{ persona }} would like.",
}
STAGES = ("generate", "collect", "filter", "dedupe")


def say(text: str) -> str:
    """Mostly good answers about planets, mostly refusals about moons; it depends on the question alone."""
    mark = hashlib.sha256(text.encode()).hexdigest()
    if int(mark[0], 16) < (11 if "moon" in text else 4):
        return "I'm sorry, but I can't help with that."
    return " ".join(f"{mark[i : i + 4]} was seen near {mark[i + 4 : i + 8]}." for i in range(0, 40, 8))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a domain of two topics, one of which the teacher does not like."""
    monkeypatch.chdir(tmp_path)
    return domain_in(tmp_path)


def domain_in(folder: Path) -> Path:
    for name, text in TEMPLATES.items():
        path = folder / f"prompts/sky/facets/{name}.jinja"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "prompts/sky/domain.yaml").write_text(yaml.safe_dump(DOMAIN, sort_keys=False))
    (folder / "data/sky").mkdir(parents=True)
    (folder / "held.jsonl").write_text('{"prompt": "Is there a held-out question here?", "answer": "yes"}\n')
    return folder


def recipe_in(folder: Path, url: str, **more: dict) -> Path:
    teacher = {"provider": "openai", "model": "scripted", "base_url": url, "max_in_flight": 4}
    recipe = {
        "domain": "sky",
        "generate": {"target_kept": 40, "count": 12},
        "collect": {"teachers": [teacher]},
        "evaluate": {"questions": str(folder / "held.jsonl")},
    }
    for section, fields in more.items():
        recipe[section] = recipe.get(section, {}) | fields
    (folder / "sky.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "sky.yaml"


def made(path: Path, name: str = "sky") -> dict[str, dict]:
    """Run the data stages: stage -> counts."""
    manifests = flow.run_stages(load_recipe(path), flow.run_folder(name), STAGES)
    return {stage: manifest["counts"] for stage, manifest in manifests.items()}


def rows_of(name: str, stage: str, table: str) -> list[dict]:
    return pq.read_table(flow.run_folder(name) / stage / f"{table}.parquet").to_pylist()


def all_asked_once(teacher: Scripted) -> bool:
    return set(teacher.asked.values()) == {1}


def test_rounds_go_on_until_enough_is_kept_and_the_run_keeps_the_same(here: Path) -> None:
    with scripted(say) as teacher:
        counts = made(recipe_in(here, teacher.url))
        assert all_asked_once(teacher)
    target = counts["generate"]["target"]
    assert target["wanted"] == 40 and target["kept"] >= 40 and "note" not in counts["generate"]
    assert len(target["rounds"]) > 1 and target["rounds"][0]["prompts"] == 12
    assert sum(one["gained"] for one in target["rounds"]) == target["rounds"][-1]["kept"] == target["kept"]
    for one in target["rounds"]:
        assert one["acceptance"] == round(one["gained"] / one["answers"], 4) and one["answers"] == one["prompts"]
    assert counts["dedupe"]["outcomes"]["kept"] == target["kept"], "what the rounds counted is what the run keeps"
    assert counts["collect"]["usage"]["requests_sent"] == 0, "the stage collect has nothing left to ask"
    assert counts["generate"]["outcomes"]["prompts"] == sum(one["prompts"] for one in target["rounds"])
    assert not (flow.run_folder("sky") / "generate/sky").exists()
    # What is kept of each value of each facet is that of the rows.
    facets = {row["id"]: row["facets"] for row in rows_of("sky", "generate", "prompts")}
    kept = rows_of("sky", "dedupe", "kept")
    for facet in ("topic", "task", "persona"):
        of_value = Counter(facets[row["prompt_id"]][facet] for row in kept)
        assert of_value == {v: e["kept"] for v, e in counts["generate"]["coverage"]["facets"][facet].items()}


def test_a_round_asks_more_where_coverage_is_thin(here: Path) -> None:
    with scripted(say) as teacher:
        counts = made(recipe_in(here, teacher.url, generate={"target_kept": 60, "count": 24}), "steered")["generate"]
        prompts = counts["outcomes"]["prompts"]
        made(recipe_in(here, teacher.url, generate={"target_kept": None, "count": prompts}), "plain")

    def moons(name: str) -> tuple[float, float]:
        """Share of the moons among a run's prompts, and among its kept rows."""
        topics = {row["id"]: row["facets"]["topic"] for row in rows_of(name, "generate", "prompts")}
        kept = [topics[row["prompt_id"]] for row in rows_of(name, "dedupe", "kept")]
        return Counter(topics.values())["moons"] / len(topics), kept.count("moons") / len(kept)

    (asked, kept), (plain_asked, plain_kept) = moons("steered"), moons("plain")
    assert 0.45 < plain_asked < 0.55 < asked
    assert plain_kept + 0.05 < kept <= 0.5, "what is kept is nearer to the plan"


def test_a_hopeless_part_does_not_use_up_the_rest(here: Path) -> None:
    with scripted(lambda text: "I'm sorry, but I can't help with that." if "moon" in text else say(text)) as teacher:
        counts = made(recipe_in(here, teacher.url, generate={"target_kept": 30, "max_rounds": 8}))["generate"]
    assert counts["target"]["kept"] >= 30 and counts["coverage"]["facets"]["topic"]["moons"]["kept"] == 0


def test_thin_values_are_wanted_more_often_within_bounds() -> None:
    rows = [{"id": str(n), "facets": dict.fromkeys(generate.facets_of()) | {"topic": "ab"[n % 2]}} for n in range(20)]
    kept = Counter({str(n): 1 for n in range(20) if n % 2 == 0 or n % 10 == 1})
    times = thin(rows, kept, 24, None)["topic"]
    assert 1 / 3 <= times["a"] < 1 < times["b"] <= 3
    assert thin(rows, Counter({str(n): 1 for n in range(20)}), 30, None)["topic"] == {"a": 1.0, "b": 1.0}


def test_several_samples_and_teachers_and_a_file_of_prompts(here: Path) -> None:
    (here / "mine.csv").write_text("prompt\n" + "".join(f"What is the story of {name}?\n" for name in NAMES))
    with scripted(say) as one, scripted(lambda text: say(text[::-1])) as two:
        teachers = [
            {"provider": "openai", "model": name, "base_url": url} for name, url in (("a", one.url), ("b", two.url))
        ]
        counts = made(
            recipe_in(
                here,
                one.url,
                generate={"count": None, "file": "mine.csv", "target_kept": 50},
                collect={"teachers": teachers, "strategy": "all", "samples": 2},
                dedupe={"near": None},
            )
        )
        assert all_asked_once(one) and all_asked_once(two)
    rounds = counts["generate"]["target"]["rounds"]
    assert rounds[0]["prompts"] == 13 and rounds[0]["answers"] == 52
    assert counts["dedupe"]["outcomes"]["kept"] == counts["generate"]["target"]["kept"] >= 50
    assert counts["collect"]["usage"]["requests_sent"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"generate": {"max_rounds": 2}}, r"generate\.max_rounds \(2\) is reached"),
        ({"generate": {"target_kept": 5000}}, "there are no more candidates; facets has no more than"),
        ({"filter": {"min_words": 500}}, "not one answer was kept"),
    ],
)
def test_why_not_enough_is_kept_is_said(here: Path, more: dict, said: str) -> None:
    more = {**more, "generate": {"target_kept": 400, "count": 12} | more.get("generate", {})}
    with scripted(say) as teacher:
        manifest = flow.run_stages(
            load_recipe(recipe_in(here, teacher.url, **more)), flow.run_folder("sky"), STAGES[:1]
        )
    counts = manifest["generate"]["counts"]
    wanted, kept = counts["target"]["wanted"], counts["target"]["kept"]
    assert kept < wanted
    assert re.search(said, counts["note"])
    assert counts["note"].startswith(f"{kept:,} rows kept of {wanted:,} wanted: ")


def test_the_budget_ends_the_rounds_and_a_larger_one_goes_on(here: Path) -> None:
    price = {"input": 1.0, "output": 1.0}
    with scripted(say) as teacher:
        one = {"provider": "openai", "model": "s", "base_url": teacher.url, "price": price, "max_in_flight": 1}
        path = recipe_in(here, teacher.url, collect={"teachers": [one], "budget_usd": 0.003})
        counts = made(path)
        asked = len(teacher.asked)
        target = counts["generate"]["target"]
        assert "the budget of $0.003 is spent; a larger" in counts["generate"]["note"]
        assert target["kept"] < 40 and counts["generate"]["reasons"]["not_asked"]
        assert counts["generate"]["outcomes"]["prompts"] == asked, "what could not be paid is no prompt"
        assert counts["dedupe"]["outcomes"]["kept"] == target["kept"]
        assert counts["collect"]["outcomes"]["failed"] == 0 and counts["collect"]["usage"]["spent_usd"] <= 0.003
        recipe = load_recipe(path, ["collect.budget_usd=1"])
        flow.run_stages(recipe, flow.run_folder("sky"), STAGES, again="generate")
        counts = {stage: flow.read_manifest(flow.run_folder("sky"), stage)["counts"] for stage in STAGES}
        assert counts["dedupe"]["outcomes"]["kept"] == counts["generate"]["target"]["kept"] >= 40
        assert all_asked_once(teacher), "what was paid before the budget ended is not paid again"


def test_kill_9_in_a_round_then_the_same_command_gives_the_same_bytes(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, kills = random.Random(1), 0
    with scripted(say, latency_s=0.03) as teacher:
        recipe_in(here, teacher.url)
        while kills < 3:
            came, wait = len(teacher.asked), draw.randrange(2, 14)
            process = subprocess.Popen(command("generate", "sky.yaml"), cwd=here, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(teacher.asked) < came + wait:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            assert process.returncode == -signal.SIGKILL, "it was killed in the middle"
        done = seqkd("generate", "sky.yaml", cwd=here)
        assert done.returncode == 0, done.stderr
        again = sum(times - 1 for times in teacher.asked.values())
        assert again <= kills * 4, "only what was in flight is asked again"
        counts = made(here / "sky.yaml")
        assert counts["dedupe"]["outcomes"]["kept"] == counts["generate"]["target"]["kept"] >= 40
        assert sum(times - 1 for times in teacher.asked.values()) == again
    whole = domain_in(tmp_path_factory.mktemp("whole"))
    monkeypatch.chdir(whole)
    with scripted(say) as teacher:
        made(recipe_in(whole, teacher.url))
    for name in ("generate/prompts", "collect/completions", "dedupe/kept"):
        assert file_digest(here / f"data/runs/sky/{name}.parquet") == file_digest(
            whole / f"data/runs/sky/{name}.parquet"
        )


def test_what_decides_the_kept_rows_is_part_of_the_fingerprint(here: Path) -> None:
    with scripted(say) as teacher:
        path = recipe_in(here, teacher.url)
        made(path)
        for change in ("filter.min_words=3", "collect.sampling.temperature=0.1", "dedupe.on=prompt"):
            with pytest.raises(StaleRunError, match=f"acceptance.{change.partition('=')[0]} was"):
                flow.run_stages(load_recipe(path, [change]), flow.run_folder("sky"), STAGES)
        flow.run_stages(load_recipe(path, ["collect.timeout_s=7"]), flow.run_folder("sky"), STAGES[:1])
        path = recipe_in(here, teacher.url, generate={"target_kept": None})
        flow.run_stages(load_recipe(path), flow.run_folder("other"), STAGES[:1])
        flow.run_stages(load_recipe(path, ["filter.min_words=3"]), flow.run_folder("other"), STAGES[:1])


def test_answers_of_a_file_cannot_be_asked_in_rounds(here: Path) -> None:
    path = recipe_in(here, "http://127.0.0.1:1/v1", collect={"teachers": [], "file": "answers.jsonl"})
    with pytest.raises(
        RecipeError, match=r"generate\.target_kept asks the teachers in rounds, and collect\.file has no"
    ):
        load_recipe(path)


def test_plan_estimates_the_rounds(here: Path) -> None:
    path = recipe_in(here, "http://127.0.0.1:1/v1", generate={"target_kept": 400, "count": None})
    said = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan", path.name], cwd=here, capture_output=True, text=True, check=True
    ).stdout
    assert "800" in said and "generate asks in rounds" in " ".join(said.split())


def test_rounds_of_prompts_that_a_teacher_writes(here: Path) -> None:
    new_domain("rivers", here)

    def both(text: str) -> str:
        writes = "numbered list" in text or "Here is a prompt" in text or "Imagine " in text
        return written(text) if writes else say(text)

    methods = {"self_instruct": 1, "evolve": 1, "persona": 1, "facets": 1}
    with scripted(both) as teacher:
        path = recipe_in(here, teacher.url, generate={"methods": methods, "target_kept": 50, "count": 20})
        counts = made(recipe_with(path, domain="rivers"))
        assert all_asked_once(teacher)
    target = counts["generate"]["target"]
    assert len(target["rounds"]) > 1 and counts["dedupe"]["outcomes"]["kept"] == target["kept"] >= 50
    assert {row["method"] for row in rows_of("sky", "generate", "prompts")} == methods.keys()
    assert counts["collect"]["usage"]["requests_sent"] == 0


def recipe_with(path: Path, **fields: str) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))
    return path


def test_rounds_of_questions_about_documents(here: Path) -> None:
    places = [f"{name} Station has {number} docks" for number, name in enumerate(NAMES, 3)]
    for number, place in enumerate(places):
        text = f"{place}. " + " ".join(f"Dock {place[:3]}{i} is kept by {NAMES[i - number]}." for i in range(12))
        (here / f"handbook-{number}.txt").write_text(text)

    def write_or_answer(text: str) -> str:
        keepers = re.findall(r"Dock (\w+) is kept by (\w+)\.", text)
        if text.startswith("You write questions"):
            return "\n".join(
                f"{i}. Who keeps the dock called {dock} in good order?" for i, (dock, _) in enumerate(keepers, 1)
            )
        known = dict(keepers)
        dock = next((name for name in known if f"called {name} " in text), None)
        if dock is None or int(hashlib.sha256(dock.encode()).hexdigest()[0], 16) < 6:
            return "I'm sorry, but I can't help with that."
        return f"The dock {dock} is kept by {known[dock]}."

    methods = {"methods": {"documents": 1.0}, "documents": {"files": [str(here / "*.txt")]}}
    with scripted(write_or_answer) as teacher:
        counts = made(recipe_in(here, teacher.url, generate=methods))
        assert all_asked_once(teacher)
    target = counts["generate"]["target"]
    assert target["kept"] >= 40 and len(target["rounds"]) > 1
    assert counts["dedupe"]["outcomes"]["kept"] == target["kept"] and counts["collect"]["usage"]["requests_sent"] == 0
    assert all(row["context"] for row in rows_of("sky", "dedupe", "kept"))
