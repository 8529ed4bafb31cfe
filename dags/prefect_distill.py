"""Distil with Prefect: one task a stage, each in the project's own environment.

Prefect and the pipeline cannot share an environment, so only strings cross: a task is the command `seqkd STAGE RECIPE
--run NAME`, run by the project's Python (SEQKD_PYTHON, else .venv/bin/python of this checkout). A stage is a
transaction: a task that was killed and is tried again goes on where it stopped, and a finished one is skipped.

    python dags/prefect_distill.py quickstart --run monday --set train.sft.max_steps=100
"""

import argparse
import os
import subprocess
from datetime import date
from pathlib import Path

from prefect import flow, get_run_logger, task

HOME = Path(os.environ.get("SEQKD_HOME") or Path(__file__).resolve().parent.parent)
PYTHON = os.environ.get("SEQKD_PYTHON") or str(HOME / ".venv" / "bin" / "python")
STAGES = ("generate", "collect", "filter", "dedupe", "assemble", "train", "evaluate")


@task(retries=2, retry_delay_seconds=60, task_run_name="{name}")
def stage(name: str, recipe: str, run: str, overrides: list[str]) -> None:
    """Run one stage; its output goes to the task's log. Raises RuntimeError with its last line if it fails."""
    log = get_run_logger()
    words = [word for override in overrides for word in ("--set", override)]
    command = [PYTHON, "-m", "pipeline", name, recipe, "--run", run, *words]
    last = ""
    with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.rstrip()
                log.info(last)
        except BaseException:
            process.terminate()  # a cancelled task must not leave its stage running, holding the run's lock
            raise
    if process.returncode:
        raise RuntimeError(f"{name} ended with exit code {process.returncode}: {last}")


@flow(name="seqkd-distill")
def distill(recipe: str = "quickstart", run: str | None = None, overrides: list[str] | None = None) -> None:
    """generate >> collect >> filter >> dedupe >> assemble >> train >> evaluate. run: none is RECIPE-DATE."""
    name = run or f"{Path(recipe).stem}-{date.today():%Y%m%d}"
    for each in STAGES:
        stage(each, recipe, name, overrides or [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--run")
    parser.add_argument("--set", dest="overrides", action="append", metavar="A.B=C")
    arguments = parser.parse_args()
    distill(arguments.recipe, arguments.run, arguments.overrides)
