"""The quickstart, run once for all tests of this folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """A data folder (SEQKD_DATA) in which `seqkd run quickstart` has been run, teacher and response store included."""
    folder = tmp_path_factory.mktemp("quickstart")
    variables = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "quickstart"],
        cwd=folder, env=variables | {"SEQKD_DATA": str(folder)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return folder
