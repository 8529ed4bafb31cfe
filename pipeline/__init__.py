"""seqkd: sequence-level knowledge distillation as a pipeline (Kim & Rush, 2016, arXiv:1606.07947).

    generate   domain prompts from templates, a fact base or a file   -> prompts
    collect    a teacher's answers to every prompt                    -> completions, failures
    filter     which answers are good enough                          -> kept, rejected
    dedupe     one row of each group that says the same               -> kept, duplicates
    assemble   without held-out questions, split in two               -> train, validation, withheld
    train      the student, with TRL                                  -> student/, metrics.jsonl
    evaluate   what the student kept of its teacher                   -> scores.json, predictions, report.html

Each is one file in pipeline/stages/, run by pipeline/flow.py as a transaction in data/runs/NAME/STAGE/.

    >>> import pipeline
    >>> run = pipeline.open_run("quickstart")
    >>> run.kept, run.rejected, run.scores        # pandas DataFrames
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.runs import Run

__all__ = ["open_run"]


def open_run(name: str, data: Path | str | None = None) -> Run:
    """Open a run to look at it.

    name: the run's name, as in `seqkd run --run NAME`. data: the folder that holds runs/, instead of SEQKD_DATA or
    ./data. Raises UserError, naming the nearest run, if there is none of that name.
    """
    from pipeline.runs import open_run

    return open_run(name, data)
