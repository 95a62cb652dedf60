"""From inputs on a command line to files that are read and files that are written, each whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    """A file to read and the one to write, or why that cannot be."""

    source: Path
    target: Path
    problem: str | None = None


def plan(inputs: Sequence[str], out: str, suffixes: Set[str]) -> list[Job]:
    """What to write for which input.

    Args:
        inputs: files, and folders, of which all files of known suffix are taken, in folders within them too.
        out: a file name; or a folder, if it ends in a separator or is one, or for several inputs or a folder.
        suffixes: the known ones, in lower case and with the dot.

    Returns:
        The jobs, in order. One whose result would overwrite an input or an earlier result has a problem, as has a
        folder that cannot be read or holds nothing.

    Raises:
        ValueError: `out` is a file and must be a folder, or has an unknown suffix.
    """
    folder = len(inputs) > 1 or out.endswith(("/", os.sep)) or os.path.isdir(out) or os.path.isdir(inputs[0])
    if folder and os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out} is a file; for several inputs or a folder, --out must be a folder")
    if not folder and Path(out).suffix.lower() not in suffixes:
        raise ValueError(f"--out {out} must end in / or in one of {' '.join(sorted(suffixes))}")
    jobs: list[Job] = []
    for given in map(Path, inputs):
        if not os.path.isdir(given):
            jobs.append(Job(given, Path(out, given.name) if folder else Path(out)))
            continue
        before = len(jobs)
        jobs += _walk(given, Path(out), suffixes)
        if len(jobs) == before:
            jobs.append(Job(given, Path(out), "no pictures or videos in this folder"))
    sources = {_identity(job.source) for job in jobs} - {None}
    first: dict[Path, Path] = {}
    for job in jobs:
        if job.problem is None:
            other = first.setdefault(job.target, job.source)
            if other is not job.source:
                job.problem = f"its result would have the same name as that of {other}: {job.target}"
            elif _identity(job.target) in sources:
                job.problem = f"its result would overwrite an input: {job.target}"
    return jobs


def _walk(folder: Path, out: Path, suffixes: Set[str]) -> Iterator[Job]:
    """The pictures and videos in a folder, but neither hidden ones nor results of an earlier run."""
    unreadable: list[OSError] = []
    results = os.path.realpath(out)
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and os.path.realpath(os.path.join(place, name)) != results
        )
        for name in sorted(names):
            path = Path(place, name)
            if name[0] != "." and path.suffix.lower() in suffixes:
                yield Job(path, out / path.relative_to(folder))
    for error in unreadable:
        yield Job(Path(error.filename), out, reason(error, Path(error.filename)))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def replacing(target: Path, force: bool) -> Iterator[Path]:
    """A name in the same folder for a file that takes its place only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        require_free(target, force)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def require_free(target: Path, force: bool) -> None:
    """ValueError if there is such a file already."""
    if os.path.lexists(target) and not force:
        raise ValueError(f"{target} exists; --force overwrites it")


def reason(error: BaseException, path: Path | None = None) -> str:
    """What an exception says, without the name of the file that is named already."""
    text = getattr(
        error, "strerror", None
    )  # of OSError, and of FFmpeg's errors, which name functions as files
    if text:
        name = str(getattr(error, "filename", None) or path).removeprefix("file:")
        return text if name in ("None", str(path)) or name.endswith("()") else f"{text}: {name}"
    if isinstance(error, (OSError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def printable(text: str) -> str:
    """In one line, without anything that a terminal obeys or cannot show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
