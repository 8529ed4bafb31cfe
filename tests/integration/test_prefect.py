"""The Prefect flow in a real Prefect, in an environment of its own; the stages run in the project's."""

import os
import signal
import subprocess
import time

import pytest

from environments import ROOT, clean_environment, make_environment
from pipeline import flow

TEST = """
import sys
sys.path.insert(0, sys.argv[1])
from prefect.testing.utilities import prefect_test_harness
import prefect_distill

with prefect_test_harness(server_startup_timeout=180):
    prefect_distill.distill(sys.argv[2], sys.argv[3], sys.argv[4:])
print("FLOW SUCCEEDED")
"""


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    """(python of the Prefect environment, its variables)."""
    python = make_environment("prefect") / "bin" / "python"
    return python, clean_environment(
        PREFECT_HOME=str(tmp_path_factory.mktemp("prefect")),
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )


def start_flow(prefect, data, run):
    """The flow as a process of its own; the stages write into the data folder."""
    python, variables = prefect
    return subprocess.Popen(
        [python, "-c", TEST, ROOT / "dags", "quickstart", run, "train.sft.max_steps=60", "evaluate.limit=60"],
        env=variables | {"SEQKD_HOME": str(data), "SEQKD_DATA": str(data)},
        cwd=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_killed_flow_run_again_repeats_no_finished_work(prefect, quickstart):
    run = quickstart / "runs" / "monday"
    first = start_flow(prefect, quickstart, "monday")
    deadline = time.monotonic() + 400
    while flow.read_manifest(run, "filter") is None:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0][-4000:]
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {stage: flow.read_manifest(run, stage) for stage in ("generate", "collect", "filter")}

    second = start_flow(prefect, quickstart, "monday")
    said = second.communicate(timeout=600)[0]
    assert second.returncode == 0 and "FLOW SUCCEEDED" in said, said[-4000:]
    assert {stage: flow.read_manifest(run, stage) for stage in before} == before
    assert said.count("complete, skipped") >= 3
    assert flow.read_manifest(run, "evaluate")["basis"]["recipe"]["evaluate"]["limit"] == 60
