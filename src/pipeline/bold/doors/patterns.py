"""Patterns of paths: where a layout, or a user's data-set file, says that the BOLD files of a person lie.

A pattern is a path below the data set's folder with {subject}, {session}, {run} and *; `{subject:07}` fills an id up
with zeros. A pattern may go on inside an archive as if that were a folder: `*.npz/{subject}`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.bold.doors.series import archive_keys
from pipeline.bold.inputs import LABEL
from pipeline.errors import InputError

PLACES = ("subject", "session", "run")
_PLACE = re.compile(r"\{(\w+)(?::0(\d+))?\}")


@dataclass(frozen=True)
class File:
    """A file with a run of a person, or a member of an archive."""

    path: Path
    subject: str
    session: str
    run: str
    member: str | None = None


def check_pattern(where: str, pattern: str) -> None:
    """An InputError that names the key `where` unless the pattern stays below its folder and is well formed."""
    hint = "See src/pipeline/bold/doors/patterns.py."
    if "\\" in pattern or PurePosixPath(pattern).is_absolute() or ".." in pattern.split("/"):
        raise InputError(where, f"'{pattern}'", "a path below the data set's folder, without '..'", hint)
    odd = [match[0] for match in _PLACE.finditer(pattern) if match[1] not in PLACES]
    if odd or re.search(r"[{}]|\*\*", _PLACE.sub("", pattern)):
        raise InputError(where, f"'{(odd or [pattern])[0]}'", "{subject}, {session}, {run} and single *", hint)
    if "{subject" not in pattern:
        raise InputError(where, f"'{pattern}'", "{subject} in it, since each person has their own files", hint)


def find_files(folder: Path, pattern: str, subject: str, session: str = "1") -> list[File]:
    """Files of a person that the pattern describes, by name; a label that it does not name is `session` or run 1."""
    named = re.compile(_expression(pattern, subject))
    found = []
    for path, member, text in _candidates(folder, pattern, subject):
        if match := named.fullmatch(text):
            labels = {"session": session, "run": "1"} | match.groupdict()
            found.append(File(path, subject, labels["session"], labels["run"], member))
    return found


def _candidates(folder: Path, pattern: str, subject: str) -> Iterator[tuple[Path, str | None, str]]:
    """(file, member, its path as text) of whatever the wildcards let through."""
    outside, archive, inside = pattern.partition(".npz/")
    for path in sorted(folder.glob(_wildcards(outside + archive.removesuffix("/"), subject))):
        if path.name.startswith("."):
            continue
        text = path.relative_to(folder).as_posix()
        if inside:
            yield from ((path, key, f"{text}/{key}") for key in archive_keys(path))
        else:
            yield path, None, text


def _pieces(pattern: str) -> Iterator[tuple[str, str]]:
    """The pattern in its order as (literal text, what follows it: '*', a name in braces, or nothing at the end)."""
    place = 0
    for match in re.finditer(r"\*|" + _PLACE.pattern, pattern):
        yield pattern[place : match.start()], match[0]
        place = match.end()
    yield pattern[place:], ""


def _filled(mark: str, subject: str) -> str | None:
    """The subject's label where the mark is {subject}; None for any other mark."""
    match = _PLACE.fullmatch(mark)
    return subject.zfill(int(match[2] or 0)) if match and match[1] == "subject" else None


def _wildcards(pattern: str, subject: str) -> str:
    """The pattern for `Path.glob`."""
    return "".join(
        glob.escape(text) + (_filled(mark, subject) or ("*" if mark else "")) for text, mark in _pieces(pattern)
    )


def _expression(pattern: str, subject: str) -> str:
    """The pattern as a regular expression with groups `session` and `run`; a second {run} must repeat the first."""
    seen: set[str] = set()
    parts = []
    for text, mark in _pieces(pattern):
        parts.append(re.escape(text))
        match = _PLACE.fullmatch(mark)
        if mark == "*":
            parts.append("[^/]*")
        elif match and match[1] != "subject":
            parts.append(f"(?P={match[1]})" if match[1] in seen else f"(?P<{match[1]}>{LABEL})")
            seen.add(match[1])
        else:
            parts.append(_filled(mark, subject) or "")
    return "".join(parts)
