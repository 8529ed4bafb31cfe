"""Distil on a schedule with Airflow 3: one task a stage, each in the project's own environment.

Airflow and the pipeline cannot share an environment, so only strings cross: a task is the command `seqkd STAGE RECIPE
--run NAME`, run by the project's Python (SEQKD_PYTHON, else .venv/bin/python of this checkout). A stage is a
transaction: a task that was killed and is tried again goes on where it stopped, and a finished one is skipped.

    SEQKD_PYTHON   the interpreter that has seqkd installed
    SEQKD_HOME     the folder to run in: its prompts/ and data/ are used, its data/runs is written
"""

import os
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

HOME = Path(os.environ.get("SEQKD_HOME") or Path(__file__).resolve().parent.parent)
PYTHON = os.environ.get("SEQKD_PYTHON") or str(HOME / ".venv" / "bin" / "python")
STAGES = ("generate", "collect", "filter", "dedupe", "assemble", "train", "evaluate")


@dag(
    dag_id="seqkd_distill",
    description=__doc__.splitlines()[0],
    schedule="@weekly",
    catchup=False,
    max_active_runs=1,
    params={
        "recipe": Param("quickstart", type="string", description="A recipe's name, or the path of a YAML file"),
        "run": Param(None, type=["null", "string"], description="The run's name; none: RECIPE-DATE"),
        "overrides": Param([], type="array", items={"type": "string"}, description="as --set: section.field=value"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["seqkd"],
)
def distill() -> None:
    """generate >> collect >> filter >> dedupe >> assemble >> train >> evaluate"""
    previous = None
    for name in STAGES:
        this = stage.override(task_id=name)(name)
        if previous is not None:
            previous >> this
        previous = this


@task.bash(cwd=str(HOME), append_env=True)
def stage(name: str, params: dict[str, Any] | None = None, dag_run: Any = None) -> str:
    """The shell command of one stage. Its output is the task's log; exit code 0 is success."""
    assert params is not None and dag_run is not None  # Airflow passes its context by these names
    recipe = params["recipe"]
    run = params["run"] or f"{Path(recipe).stem}-{dag_run.run_after:%Y%m%d}"
    overrides = [word for override in params["overrides"] for word in ("--set", override)]
    return shlex.join([PYTHON, "-m", "pipeline", name, recipe, "--run", run, *overrides])


distill()
