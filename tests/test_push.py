"""`seqkd push` with the real client of the hub, against a hub on loopback."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

import hub_server
from hub_server import TOKEN, Hub
from pipeline import artifacts, flow, push
from pipeline.errors import UserError
from test_cli import refused
from tiny import seqkd


@pytest.fixture
def hub():
    with hub_server.running() as hub:
        yield hub


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A folder with a copy of the finished run that a test may change."""
    shutil.copytree(finished / "data" / "runs" / "tiny", tmp_path / "data" / "runs" / "tiny")
    return tmp_path


def pushed(hub: Hub, cwd: Path, home: Path, *words: str, token: str | None = TOKEN, **more: str):
    """`seqkd push tiny me/student WORDS` with an empty Hugging Face home."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    # Without it the client speaks Xet's own protocol, in compiled code, to a server that is not the hub.
    env |= {"HF_HUB_DISABLE_XET": "1", **({"HF_TOKEN": token} if token else {}), **more}
    done = seqkd("push", "tiny", "me/student", *words, cwd=cwd, env=env)
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_what_arrives_is_what_is_there(finished, hub, tmp_path):
    done = pushed(hub, finished, tmp_path, "--dataset", "me/answers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{hub.url}/me/student", f"{hub.url}/datasets/me/answers"]
    run = finished / "data" / "runs" / "tiny"
    model, data = hub.repos["model", "me/student"], hub.repos["dataset", "me/answers"]
    assert model["private"] and data["private"]
    student = {path.name: path.read_bytes() for path in (run / "train" / "student").iterdir()}
    assert set(model["files"]) == set(student) and "model.safetensors" in student
    assert all(model["files"][name] == content for name, content in student.items() if name != "README.md")
    assert set(data["files"]) == {"train.parquet", "validation.parquet", "README.md"}
    assert data["files"]["train.parquet"] == (run / "assemble" / "train.parquet").read_bytes()

    card = ModelCard(model["files"]["README.md"].decode())
    assert card.data.datasets == ["me/answers"] and '"me/student"' in card.text
    scores = json.loads((run / "evaluate" / "scores.json").read_text())
    assert f"{100 * scores['student']['accuracy']:.1f}%" in card.text
    assert DatasetCard(data["files"]["README.md"].decode()).data.configs[0]["data_files"][0]["path"] == "train.parquet"
    for folder in (finished, tmp_path):  # the token is in no file either
        assert not any(TOKEN.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_dry_run_sends_nothing(finished, hub, tmp_path):
    done = pushed(hub, finished, tmp_path, "--dry-run", "--dataset", "me/answers", token=None)
    assert done.returncode == 0 and not hub.seen
    assert "me/student (model, private): 7 files" in done.stdout and "model.safetensors" in done.stdout
    assert "library_name: transformers" in done.stdout and "# answers" in done.stdout


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/api/repos/create", 401, "does not accept the token"),
        ("/api/repos/create", 403, "the right to write to the repositories of me"),
        ("preupload", 403, "the right to write"),
        ("/lfs/", 403, "may not write"),
        ("commit", 413, "too large"),
        ("commit", 500, "answered 500 (Oh no)"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(finished, hub, tmp_path, part, status, said):
    hub.fails = {part: (status, "Oh no")}
    if status in (401, 403) and "create" in part:
        hub.fails["/api/models/"] = (status, "Oh no")
    done = pushed(hub, finished, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("seqkd: error: me/student (model): ") and said in last and "http" not in last


def test_without_a_token_a_network_or_a_hub(finished, hub, tmp_path):
    refused(pushed(hub, finished, tmp_path, token=None), "set HF_TOKEN")
    done = pushed(hub, finished, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set, so nothing was sent" in done.stderr
    assert not hub.seen
    done = pushed(hub, finished, tmp_path, token="hf_AnotherAnotherAnotherAnother")
    assert done.returncode == 1 and "does not accept the token" in done.stderr
    done = pushed(hub, finished, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_repository_that_is_there(finished, hub, tmp_path):
    hub.repos["dataset", "me/student"] = {"private": True, "files": {}}
    done = pushed(hub, finished, tmp_path)
    assert done.returncode == 1 and "there is no such model" in done.stderr and "another type" in done.stderr
    hub.repos = {("model", "me/student"): {"private": False, "files": {}}}
    refused(pushed(hub, finished, tmp_path), "me/student exists already and is public, so nothing was sent")
    assert not hub.repos["model", "me/student"]["files"]
    assert pushed(hub, finished, tmp_path, "--public").returncode == 0
    assert "model.safetensors" in hub.repos["model", "me/student"]["files"]
    refused(seqkd("push", "tiny", "student", cwd=finished), "OWNER/NAME")


def test_only_what_cannot_run_is_sent(copied, hub):
    student = copied / "data/runs/tiny/train/student"
    (student / "optimizer.pt").write_bytes(pickle.dumps({}))
    (student / "modeling.py").write_text("print(1)\n")
    manifest = json.loads((student.parent / "manifest.json").read_text())
    manifest["files"]["student"]["sha256"] = artifacts.digest(student)  # as if train had written them
    (student.parent / "manifest.json").write_text(json.dumps(manifest))
    done = pushed(hub, copied, copied)
    assert done.returncode == 0 and "not sent: modeling.py, optimizer.pt" in done.stderr
    assert {Path(name).suffix for name in hub.repos["model", "me/student"]["files"]} <= set(push.SENT)


def test_a_card_of_the_users_own(copied, hub):
    (copied / "card.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    assert pushed(hub, copied, copied, "--card", "card.md").returncode == 0
    assert hub.repos["model", "me/student"]["files"]["README.md"] == (copied / "card.md").read_bytes()
    (copied / "card.md").write_text("---\nlicense: [\n---\n")
    refused(pushed(hub, copied, copied, "--card", "card.md"), "--card card.md: cannot be read as a card")
    refused(pushed(hub, copied, copied, "--card", "none.md"), "--card none.md: cannot be read as a card: No such file")


def test_stages_that_are_missing_or_do_not_fit_together(copied):
    run = copied / "data/runs/tiny"
    manifest = json.loads((run / "assemble/manifest.json").read_text())
    manifest["files"]["train.parquet"]["sha256"] = "0"
    (run / "assemble/manifest.json").write_text(json.dumps(manifest))
    refused(seqkd("push", "tiny", "me/student", cwd=copied), "assemble has been made anew since train read it")
    shutil.rmtree(run / "train")
    refused(seqkd("push", "tiny", "me/student", cwd=copied), "train is not complete")


def test_what_is_not_what_the_stage_wrote_is_not_sent(copied):
    """A student that was deleted was sent as a card alone."""
    run = copied / "data/runs/tiny"
    words = ("push", "tiny", "me/student", "--dry-run")
    with (run / "assemble/train.parquet").open("ab") as file:
        file.write(b"more")
    assert seqkd(*words, cwd=copied).returncode == 0
    refused(seqkd(*words, "--dataset", "me/answers", cwd=copied), "train.parquet: is not what assemble wrote")
    (run / "train/student/model.safetensors").unlink()
    refused(seqkd(*words, cwd=copied), "train/student: is not what train wrote")
    shutil.rmtree(run / "train/student")
    refused(seqkd(*words, cwd=copied), "Make it again with --from train")


def test_scores_of_another_student_are_not_told(copied):
    run = copied / "data/runs/tiny"
    manifest = json.loads((run / "evaluate/manifest.json").read_text())
    manifest["basis"]["inputs"]["train/student"] = "0"
    (run / "evaluate/manifest.json").write_text(json.dumps(manifest))
    done = seqkd("push", "tiny", "me/student", "--dry-run", cwd=copied)
    assert "evaluate examined another student" in done.stderr and "Not evaluated yet" in done.stdout
    shutil.rmtree(run / "evaluate")
    assert "evaluate has not run" in seqkd("push", "tiny", "me/student", "--dry-run", cwd=copied).stderr


def test_terms_are_named_and_asked_for_in_public(copied, hub):
    run = copied / "data/runs/tiny"
    for stage in flow.STAGES:
        manifest = json.loads((run / stage / "manifest.json").read_text())
        if "collect" in manifest["basis"]["recipe"]:
            manifest["basis"]["recipe"]["collect"]["teachers"] = [{"provider": "openai", "model": "gpt-x"}]
            (run / stage / "manifest.json").write_text(json.dumps(manifest))
    done = pushed(hub, copied, copied, "--public")
    refused(done, "OpenAI's terms", "https://openai.com/policies", "Add --yes")
    assert not hub.seen
    done = pushed(hub, copied, copied)  # for nobody else to see: named, not asked
    assert done.returncode == 0 and "OpenAI's terms" in done.stderr
    hub.repos = {}
    assert pushed(hub, copied, copied, "--public", "--yes").returncode == 0
    card = hub.repos["model", "me/student"]["files"]["README.md"].decode()
    assert not hub.repos["model", "me/student"]["private"]
    assert "OpenAI's terms do not allow" in card and "gpt-x" in card


def test_the_run_is_held_while_it_is_sent(finished):
    from pipeline.runs import Run

    run = Run(finished / "data" / "runs" / "tiny")
    with flow.lock(run.path), pytest.raises(UserError, match="in use"):
        push.push(run, "me/student", dry_run=True)
