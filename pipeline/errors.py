"""The errors a user can act on.

    SeqkdError                exit code 1, one sentence, no traceback
    ├── UserError             exit code 2: what was asked for cannot be done
    │   ├── RecipeError       a recipe, an override, a prompt or data file is wrong: FILE:LINE: FIELD: what to do
    │   ├── StaleRunError     a finished stage was made from something else than what is asked for now
    │   └── BusyError         another process holds the run (or the cache entry)
    ├── StorageError          the disk is full or read-only; nothing that was published is harmed
    ├── StopRun               a provider's answer makes going on pointless (quota, key, spend limit)
    └── AccountError          rows were lost or doubled: a defect of ours, and the run fails rather than hide it

The command line prints `seqkd: error: MESSAGE` and exits with `exit_code`. Anything else that escapes is a defect and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class SeqkdError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code = 1


class UserError(SeqkdError):
    """What was asked for cannot be done as asked; the message says what to change."""

    exit_code = 2


class RecipeError(UserError):
    """A file that the user wrote is wrong; the message begins with FILE:LINE: FIELD where they are known."""


class StaleRunError(UserError):
    """A finished stage does not match the recipe any more."""


class BusyError(UserError):
    """Another process is at work on the same run or cache entry."""


class StorageError(SeqkdError):
    """The operating system refused to store something (disk full, read-only folder)."""

    exit_code = 2


class StopRun(SeqkdError):
    """A provider said something after which no further request can succeed."""


class AccountError(SeqkdError):
    """The account of a stage does not add up."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word nearest to `word`, or the list of known words, or nothing."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(choices)}." if choices else ""


def where(path: Path | str, line: int | None = None, field: str = "") -> str:
    """FILE:LINE: FIELD, as far as it is known, to begin a message with."""
    place = f"{path}:{line}" if line else f"{path}"
    return f"{place}: {field}" if field else place
