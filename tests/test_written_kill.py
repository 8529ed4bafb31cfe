"""Methods whose prompts a teacher writes: killed at any moment, the same command gives the same bytes."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from pipeline import flow
from pipeline.artifacts import file_digest
from pipeline.domain import new_domain
from pipeline.recipe import load_recipe
from scripted import scripted
from test_written import scripted as say
from tiny import command, seqkd

IN_FLIGHT = 4


def recipe_in(folder: Path, url: str) -> Path:
    new_domain("rivers", folder)
    teacher = {"provider": "openai", "model": "scripted", "base_url": url, "max_in_flight": IN_FLIGHT}
    methods = {"self_instruct": 1, "evolve": 1, "persona": 1, "conversation": 1}
    recipe = {
        "domain": "rivers",
        "generate": {"count": 40, "methods": methods, "conversation": {"turns": 3}},
        "collect": {"teachers": [teacher], "samples": 2},
    }
    (folder / "writing.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "writing.yaml"


def test_kill_9_while_a_teacher_writes_then_the_same_command_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("whole")
    monkeypatch.chdir(whole)
    with scripted(say) as teacher:
        counts = flow.run_stages(load_recipe(recipe_in(whole, teacher.url)), flow.run_folder("writing"), ["generate"])
        assert counts["generate"]["counts"]["outcomes"] == {"prompts": 40}
        needed = len(teacher.asked)
        assert set(teacher.asked.values()) == {1}
    draw, kills = random.Random(0), 4
    with scripted(say, latency_s=0.03) as teacher:
        recipe_in(broken, teacher.url)
        for kill in range(kills):  # each in another part of the work
            process = subprocess.Popen(command("generate", "writing.yaml"), cwd=broken, stderr=subprocess.DEVNULL)
            until = needed * (kill + draw.random()) / kills
            while process.poll() is None and len(teacher.asked) <= until:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was killed in the middle"
        done = seqkd("generate", "writing.yaml", cwd=broken)
        assert done.returncode == 0, done.stderr
        assert len(teacher.asked) == needed
        assert sum(times - 1 for times in teacher.asked.values()) <= kills * IN_FLIGHT
    made = "data/runs/writing/generate/prompts.parquet"
    assert file_digest(broken / made) == file_digest(whole / made)
