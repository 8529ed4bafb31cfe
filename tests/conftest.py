"""Settings for all tests: one OpenMP thread, no network, no key of the person who runs them."""

import os
import shutil
from pathlib import Path

import pytest

from tiny import make_tiny, seqkd

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SEQKD_DATA"):
    os.environ.pop(name, None)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """An empty working folder with the tiny domain."""
    return make_tiny(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A working folder in which `seqkd run tiny.yaml` has been run. Tests only read it."""
    folder = make_tiny(tmp_path_factory.mktemp("finished"))
    done = seqkd("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished working folder to change, and the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
