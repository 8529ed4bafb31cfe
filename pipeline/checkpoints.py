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

SAVE_EVERY_S = 30.0  # a killed training loses at most about this much work
_COMPLETE = "complete.json"  # path of each file -> its digest


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`. Those that were cut off or damaged are removed, so that they neither
    count when the Trainer drops old ones nor are mistaken for a good one."""
    best: Path | None = None
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
        elif best is None:
            best = path
    return best


def saving(by_time: bool, accelerator: Any) -> Any:
    """The Trainer's callback that seals each checkpoint and, with `by_time`, asks for one every SAVE_EVERY_S seconds.
    With several processes the first one's clock counts for all."""
    from transformers import TrainerCallback

    saved = time.monotonic()

    class Saving(TrainerCallback):
        """Methods are the Trainer's hooks; see transformers.TrainerCallback."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal saved
            # Only at steps that log: see log_first.
            if by_time and control.should_log and not control.should_training_stop:
                due = time.monotonic() - saved > SAVE_EVERY_S
                if processes.from_first(due):
                    control.should_save = True
                    saved = time.monotonic()
            self.log_first(control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.log_first(control)

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
