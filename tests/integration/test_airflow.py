"""The Airflow DAG in a real Airflow 3, in an environment of its own; the stages run in the project's."""

import json
import subprocess
from pathlib import Path

import pytest

from environments import ROOT, clean_environment, make_environment
from pipeline import flow

TEST = """
import sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder=sys.argv[1])
assert not bag.import_errors, bag.import_errors
dag = bag.dags["seqkd_distill"]
assert dag.topological_sort() and [task.task_id for task in dag.topological_sort()] == sys.argv[3].split(",")
import json
run = dag.test(run_conf=json.loads(sys.argv[2]))
print("STATE", run.state, {ti.task_id: str(ti.state) for ti in run.get_task_instances()})
sys.exit(run.state != "success")
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """(python of the Airflow environment, its variables): a migrated database in a temporary home."""
    python = make_environment("airflow") / "bin" / "python"
    home = tmp_path_factory.mktemp("airflow")
    variables = clean_environment(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    )
    migrate = [python, "-m", "airflow", "db", "migrate"]
    subprocess.run(migrate, env=variables, check=True, capture_output=True, timeout=300)
    return python, variables


def run_dag(airflow, data: Path, conf: dict) -> subprocess.CompletedProcess:
    """`dag.test()` with these parameters; the stages write into the data folder."""
    python, variables = airflow
    return subprocess.run(
        [python, "-c", TEST, ROOT / "dags" / "airflow_distill.py", json.dumps(conf), ",".join(flow.STAGES)],
        env=variables | {"SEQKD_HOME": str(data), "SEQKD_DATA": str(data)},
        cwd=data,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_the_dag_distils_and_a_second_run_repeats_nothing(airflow, quickstart):
    overrides = ["train.sft.max_steps=60", "evaluate.limit=60"]
    conf = {"recipe": "quickstart", "run": "scheduled", "overrides": overrides}
    done = run_dag(airflow, quickstart, conf)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    run = quickstart / "runs" / "scheduled"
    manifests = {stage: flow.read_manifest(run, stage) for stage in flow.STAGES}
    assert manifests["train"]["basis"]["recipe"]["train"]["sft"]["max_steps"] == 60
    # Another run of the same questions: every answer was in the store.
    first = flow.read_manifest(quickstart / "runs" / "quickstart", "collect")
    assert manifests["collect"]["counts"]["usage"]["requests_sent"] == 0
    assert manifests["collect"]["files"] == first["files"]
    assert (run / "evaluate" / "report.html").is_file()
    again = run_dag(airflow, quickstart, conf)
    assert again.returncode == 0, again.stdout[-4000:]
    assert {stage: flow.read_manifest(run, stage) for stage in flow.STAGES} == manifests


def test_a_stage_that_fails_fails_its_task(airflow, tmp_path):
    done = run_dag(airflow, tmp_path, {"recipe": "quickstart", "run": "bad", "overrides": ["generate.cuont=1"]})
    assert done.returncode == 1
    assert "Did you mean 'count'?" in done.stdout + done.stderr
