"""The two ways a job ends that are not bugs: bad input (exit 2) and unfinished but resumable work (exit 75)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_UNFINISHED = 75  # sysexits.h EX_TEMPFAIL: submit again and it goes on where it stopped


class InputError(ValueError):
    """Bad input or configuration, told in one message: where, found, expected, what to do."""

    def __init__(self, where: str | Path, found: str, expected: str, hint: str) -> None:
        self.where, self.found, self.expected, self.hint = str(where), found, expected, hint
        super().__init__(f"{where}: found {found}; expected {expected}. {hint}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, ...]]:
        """Come back from a worker process as it was raised; exceptions are pickled as their message alone."""
        return type(self), (self.where, self.found, self.expected, self.hint)


class Unfinished(Exception):
    """Work was interrupted at a point from which the same command resumes it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for a mistyped name, or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
