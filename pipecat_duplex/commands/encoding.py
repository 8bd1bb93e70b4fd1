"""Standard output and error in any encoding: what it lacks is written in plain letters."""

import codecs
import sys
from io import TextIOWrapper

_PLAIN = {
    "✓": "+",
    "•": "*",
    "…": "...",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "μ": "u",
}


def print_in_any_encoding() -> None:
    """Never let a character that the terminal or the file lacks end a command."""
    codecs.register_error("plain", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="plain")


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_plain(character) for character in missing), error.end


def _plain(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no text
        return f"\\x{code - 0xDC00:02x}"
    if 0x2500 <= code <= 0x259F:  # lines and blocks
        return "-"
    return _PLAIN.get(character, "?")
