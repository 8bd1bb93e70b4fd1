"""Files that a command writes, checked before the work."""

import os
from collections.abc import Hashable, Sequence
from pathlib import Path

from pipecat_duplex.session import DuplexError


def file_name(path: Path) -> str:
    """Return the name of a file as any terminal can show it: a name need not be text.

    Args:
        path: The file; ``-`` is the standard input.
    """
    if str(path) == "-":
        return "the standard input"
    return os.fsencode(path).decode(errors="backslashreplace")


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path | None] = ()) -> None:
    """Check that files can be written, and leave everything as it was.

    Args:
        outputs: The files; None is skipped.
        inputs: Files that are read and must not be written over.

    Raises:
        DuplexError: A file cannot be written, or two names are one file.
    """
    read = {_identity(path) for path in inputs if path is not None}
    written: set[Hashable] = set()
    for path in outputs:
        if path is None:
            continue
        name = file_name(path)
        _check_writable(path, name)
        if not _is_file(path):
            continue  # a pipe or a device takes what it is given
        identity = _identity(path)
        if identity in read:
            raise DuplexError(f"{name} is the recording itself: write somewhere else")
        if identity in written:
            raise DuplexError(f"{name} is to hold two things: name another file for one of them")
        written.add(identity)


def _check_writable(path: Path, name: str) -> None:
    try:
        if path.is_dir():
            raise DuplexError(f"{name} is a folder: name a file in it")
        if not path.absolute().parent.is_dir():
            raise DuplexError(f"there is no folder {file_name(path.parent)}: make it first")
        if not _is_file(path):
            return  # opening a pipe would wait for its reader
        is_new = not path.exists()
        with path.open("ab"):
            pass
        if is_new:
            os.unlink(os.path.realpath(path))
    except OSError as error:
        raise DuplexError(
            f"{name} cannot be written: {error.strerror or error}; choose another place"
        ) from error


def _is_file(path: Path) -> bool:
    """Tell whether a path is a regular file, or free for one."""
    return path.is_file() or not path.exists()


def _identity(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
