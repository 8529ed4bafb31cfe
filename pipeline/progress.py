"""What a person sees while work goes on: a bar with rate and time left on a terminal, plain lines everywhere else.

All of it goes to stderr; stdout is for results.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_EVERY_S = 10.0


def say(text: str) -> None:
    """One line for the user, above any bar."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` units of work; call what this yields with the number of units just done."""
    if total > 0 and sys.stderr.isatty():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit)


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    started = time.monotonic()
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, rate=unit)

        def advance(units: int) -> None:
            bar.advance(task, units)
            done = bar.tasks[task].completed
            bar.update(task, rate=f"{done / max(time.monotonic() - started, 1e-9):,.1f} {unit}/s")

        yield advance


def _lines(label: str, total: int, unit: str) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(units: int) -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last < PLAIN_EVERY_S:
            return
        last = now
        rate = done / (now - started)
        pace = f"{1 / rate:,.0f} s each" if 0 < rate < 0.5 else f"{rate:,.1f} a second"
        left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
        say(f"  {label}: {done:,} of {total:,} {unit}, {pace}{left}")

    return advance
