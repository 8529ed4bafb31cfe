"""A training's checkpoints: made by the clock, sealed with digests, and found again after a kill.

The Trainer writes a checkpoint file by file and in place, so one that is there need not be whole. A list of its files'
digests, written when all of them are on the disk, is what makes it complete.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline import artifacts, processes
from pipeline.errors import SeqkdError

SAVE_EVERY_S = 30.0  # a killed training loses at most about this much work
_COMPLETE = "complete.json"  # path of each file -> its digest


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`. Those that were cut off or damaged are removed, so that they neither
    count when the Trainer drops old ones nor are mistaken for a good one."""
    best: Path | None = None
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for path in sorted(found, key=_step, reverse=True):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
        elif best is None:
            best = path
    return best


def best_steps(state: Any, args: Any) -> tuple[int, int | None]:
    """Of a training with early stopping, before its last evaluation: the step whose model it ends with, and the step of
    a better one of which there is no whole checkpoint, None if there was none."""
    # Without a checkpoint of the best one the Trainer ends with the last.
    kept = _step(Path(state.best_model_checkpoint)) if state.best_model_checkpoint else state.global_step
    name = _metric(args)
    sign = -1 if args.greater_is_better else 1
    # One at step 0 (eval_on_start) does not count: it is of no model that was trained.
    evaluated = [(sign * event[name], event["step"]) for event in state.log_history if name in event and event["step"]]
    best = min(evaluated, default=(0, kept))[1]
    return kept, best if best != kept else None


def check_best(state: Any) -> None:
    """Raise SeqkdError if the best checkpoint, from which a training with early stopping takes its model in the end,
    was damaged since it was sealed. (The Trainer would go on with the last model, as if it were the best.)"""
    best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
    # The last one is never sealed.
    if best and _step(best) != state.global_step and not _is_whole(best):
        raise SeqkdError(
            f"{best}, the checkpoint of the best model, is damaged. Run the same command again: the training goes on "
            "from a whole one, or begins anew if there is none."
        )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _metric(args: Any) -> str:
    """What the best model is the best by, as evaluations log it."""
    return "eval_" + str(args.metric_for_best_model).removeprefix("eval_")


def saving(by_time: bool, accelerator: Any) -> Any:
    """The Trainer's callback that seals each checkpoint and, with `by_time`, asks for one every SAVE_EVERY_S seconds.
    With several processes the first one's clock counts for all."""
    from transformers import TrainerCallback

    saved = time.monotonic()

    class Saving(TrainerCallback):
        """Methods are the Trainer's hooks; see transformers.TrainerCallback."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not args.load_best_model_at_end or not state.best_global_step:
                return
            folder = Path(args.output_dir)  # not the one that the state names: a run may have been moved
            best = Path(state.best_model_checkpoint or f"checkpoint-{state.best_global_step}").name
            if not (folder / best).is_dir():
                # It was damaged, and last_checkpoint has removed it. The best that is left is the one that this
                # training resumes from; the Trainer would keep the number of the one that is gone.
                name = _metric(args)
                state.best_metric = next(event[name] for event in reversed(state.log_history) if name in event)
                state.best_global_step = state.global_step
                best = f"checkpoint-{state.global_step}"
            state.best_model_checkpoint = str(folder / best)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.save_in_time(control)
            self.log_first(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.save_in_time(control)  # with logging_strategy: epoch
            self.log_first(control)

        def save_in_time(self, control: Any) -> None:
            nonlocal saved
            # Only where something is logged: see log_first.
            if by_time and control.should_log and not control.should_training_stop:
                due = time.monotonic() - saved > SAVE_EVERY_S
                if processes.from_first(due):
                    control.should_save = True
                    saved = time.monotonic()

        def log_first(self, control: Any) -> None:
            # What is saved is logged before: a loss that is not finite then ends the training without a checkpoint of
            # it, and the running mean of the loss, which is not part of a checkpoint, is empty.
            control.should_log = control.should_log or control.should_save

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            accelerator.wait_for_everyone()  # each process writes the state of its own random generators
            # Resumed at its end, a training would take a step more (transformers 5.23).
            if accelerator.is_main_process and not control.should_training_stop:
                _seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Saving()


def _seal(checkpoint: Path) -> None:
    artifacts.sync_tree(checkpoint)
    # Sharded weights (FSDP, DeepSpeed) lie in folders of their own.
    found = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    files = {name: artifacts.file_digest(path) for name, path in sorted(found.items())}
    partial = checkpoint / (_COMPLETE + ".partial")
    artifacts.write_json(partial, files)
    partial.rename(checkpoint / _COMPLETE)
    for folder in (checkpoint, checkpoint.parent):
        artifacts.sync_folder(folder)


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / _COMPLETE).read_text())
        return all(artifacts.file_digest(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False
