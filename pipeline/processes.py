"""Several processes that train one student, as torchrun and accelerate launch start them.

Rank 0 does the whole of a stage's work: it locks the run, reads its state, writes and publishes. The others wait for
what it says and only train along.
"""

import os
from collections.abc import Callable
from typing import Any


def rank() -> int:
    """This process's number, as torchrun and accelerate launch set it; 0 where there is only one."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def together(stage: Callable[[], None], along: Callable[[Any], None]) -> None:
    """Rank 0 does `stage`, which says what there is to do (`tell`); the others do `along` with what it said, or nothing
    if it said nothing because the stage was complete or failed before its training."""
    if rank() == 0:
        failed: Any = True
        try:
            stage()
        except SystemExit as end:
            failed = end.code
            raise
        finally:
            tell(None)
            if not failed:
                _leave()
        return
    work = _shared(None)
    if work:
        along(work)
    _leave()


_told = False


def tell(work: Any) -> None:
    """Rank 0 says once to the others what to do; any later word is not heard."""
    global _told
    if count() > 1 and not _told:
        _told = True
        _shared(work)


def _shared(work: Any) -> Any:
    """What rank 0 said."""
    from accelerate import PartialState

    PartialState()  # joins the processes
    return from_first(work)


def from_first(value: Any) -> Any:
    """A value of rank 0 in every process. (accelerate's own function leaves the values alone on a CPU.)"""
    if count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _leave() -> None:
    """All processes end together: those that still wait for one that is gone would abort. (Where the first one fails,
    torchrun ends the others.)"""
    if count() > 1:
        import torch

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
