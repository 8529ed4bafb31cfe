"""Public benchmarks beside the held-out questions: tasks of EleutherAI's lm-evaluation-harness (Gao et al., 2024).

Needs the extra `harness` (lm-eval). The models are those that evaluate has open in this process; each one is asked the
same questions with the same worked examples. A teacher's system prompt is not given: a benchmark is asked as others
ask it.
"""

import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from logging.handlers import BufferingHandler
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.progress import say
from pipeline.recipe import Harness
from pipeline.teachers import local
from pipeline.teachers.local import Loaded

Tasks = dict[str, Any]  # as lm_eval's TaskManager loads them: {"tasks": {name: Task}, "groups": ..., "group_map": ...}


def load(config: Harness) -> Tasks:
    """The tasks with their questions. Raises UserError if lm-eval is not installed, if there is no such task, or if a
    task cannot be opened, such as one whose data set is on the hub while that cannot be reached."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "evaluate.harness needs a package that is not installed. Run: pip install 'seqkd[harness]', or remove "
            "evaluate.harness."
        )
    from lm_eval.tasks import TaskManager

    say("  evaluate.harness: reading the tasks")
    with _quiet():
        manager = TaskManager(include_path=str(config.include) if config.include else None)
        for name in config.tasks:
            if not manager.match_tasks([name]):
                hint = nearest(name, manager.all_tasks)
                raise UserError(f"evaluate.harness.tasks: lm-eval has no task '{name}'.{hint}")
        loaded: Tasks = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in manager.match_tasks(config.tasks):
            try:
                part = manager.load([name])
            except Exception as error:  # whatever the task's own code and its data set's make of it
                raise UserError(_unopened(name, error)) from error
            for kind, own in loaded.items():
                own.update(part.get(kind, {}))
    for task in loaded["tasks"].values():
        # As lm-eval's own command does: a task that insists on none keeps none.
        own = task.get_config("num_fewshot")
        if own is None or (config.num_fewshot is not None and own != 0):
            task.set_config("num_fewshot", config.num_fewshot or 0)
    return loaded


def measure(
    models: dict[str, Loaded], tasks: Tasks, config: Harness, batch_size: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Every model's results.

    tasks: from `load`. resamples: for standard errors that have no formula. Returns {"version": lm-eval's, "limit",
    "chat", "tasks": {task or group: {"group": is it one, "part_of": the group that it is in, "version", "questions",
    "num_fewshot", "higher_is_better": {metric: bool}, "models": {model: {metric: {"value", "stderr"}}}}},
    "truncated": {model: questions cut to fit its context}}. Raises UserError where a task cannot be run.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    found: dict[str, Any] = {}
    truncated: dict[str, int] = {}
    for name, loaded in models.items():
        say(f"  evaluate.harness: {name}, {', '.join(config.tasks)}")
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(seed)  # before each model, so that all see the same worked examples
        with _quiet() as warnings:
            try:
                results: Any = lm_eval.evaluate(
                    HFLM(
                        pretrained=loaded.model,
                        tokenizer=loaded.tokenizer,
                        batch_size=batch_size,
                        max_length=local.context_length(loaded),
                    ),
                    tasks,
                    limit=config.limit,
                    bootstrap_iters=resamples,
                    log_samples=False,
                    apply_chat_template=config.chat,
                    fewshot_as_multiturn=config.chat,
                )
            except (ValueError, AssertionError, ImportError, OSError, RuntimeError) as error:
                what = f"{name} cannot be asked {', '.join(config.tasks)}"
                raise UserError(f"evaluate.harness: {what}: {_first_line(error)}") from error
        truncated[name] = sum("runcat" in record.getMessage() for record in warnings)
        _add(found, name, results)
    return {
        "version": metadata.version("lm_eval"),
        "limit": config.limit,
        "chat": config.chat,
        "tasks": found,
        "truncated": truncated,
    }


def _add(found: dict[str, Any], model: str, results: dict[str, Any]) -> None:
    """Put what lm-eval returns for a model into the tasks' results."""
    groups = results["group_subtasks"]
    for name, figures in (results["results"] | results.get("groups", {})).items():
        metrics = {}
        for key, value in figures.items():
            metric, comma, treatment = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{treatment}")
            metrics[metric if treatment == "none" else key] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None,
            }
        if not metrics:
            continue
        task = found.setdefault(
            name,
            {
                "group": name in groups,
                "part_of": next((group for group, parts in groups.items() if name in parts), None),
                "version": str(results["versions"].get(name)),
                "questions": int(figures["sample_len"]) if figures.get("sample_len") else None,
                "num_fewshot": results["n-shot"].get(name),
                "higher_is_better": results["higher_is_better"].get(name, {}),
                "models": {},
            },
        )
        task["models"][model] = metrics


@contextlib.contextmanager
def _quiet() -> Iterator[Sequence[logging.LogRecord]]:
    """lm-eval's bars only on a terminal, and its warnings in a list instead."""
    import datasets

    logger, bars = logging.getLogger("lm_eval"), sys.stderr.isatty()
    kept = BufferingHandler(sys.maxsize)
    logger.addHandler(kept)
    propagate, logger.propagate = logger.propagate, False
    shown = datasets.are_progress_bars_disabled()
    if not bars:
        datasets.disable_progress_bars()
    try:
        with contextlib.nullcontext() if bars else contextlib.redirect_stderr(io.StringIO()):
            yield kept.buffer
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagate
        if not shown:
            datasets.enable_progress_bars()


def _unopened(name: str, error: Exception) -> str:
    said = _first_line(error)
    if isinstance(error, ConnectionError) or "offline" in str(error).lower():
        return (
            f"evaluate.harness.tasks: {name}: its data set is neither in the Hugging Face cache nor can the hub be "
            f"reached ({said}). Run it once where there is a network, or name a task whose data are here."
        )
    return f"evaluate.harness.tasks: {name} cannot be opened: {said}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
