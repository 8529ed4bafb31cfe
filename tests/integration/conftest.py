"""The quickstart, run once for all tests of this folder."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory, worker_id) -> Path:
    """A data folder (SEQKD_DATA) in which `seqkd run quickstart` has been run, teacher and response store included.

    One for all of pytest's processes: the first one runs it, the others wait and find each stage complete."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "quickstart"
    folder.mkdir(exist_ok=True)
    # As many threads as a user has, for the floats; but with other tests beside it threads that spin while they wait
    # take the cores from one another, and it lasts three times as long.
    variables = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    variables["OMP_WAIT_POLICY"] = "passive"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "run", "quickstart"],
            cwd=folder, env=variables | {"SEQKD_DATA": str(folder)}, capture_output=True, text=True, timeout=1500,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return folder
