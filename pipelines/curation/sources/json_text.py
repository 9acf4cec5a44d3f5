"""JSON as programs write it becomes JSON as its standard has it, piece by piece.

Python writes NaN and Infinity, cuts of texts leave half a surrogate pair, and numbers may have any length: the parser
would refuse the whole file for any of them. Here NaN becomes null, Infinity and numbers beyond 64 bits become text,
and half a pair becomes U+FFFD, so that whoever reads the value can say what is wrong with it.
"""

import re
from typing import BinaryIO

DEEPEST = 256
"""Levels of brackets in a row; the parser's memory grows with their square."""
PIECE = 1 << 16
"""Bytes that are read at once."""
_LONGEST_ESCAPE = 12
_HALVES = (rb"\ud", rb"\uD", b"\xed")
"""What text with half a surrogate pair holds, and little else does."""
_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\xed[\xa0-\xbf].)"
    rb"|\\.",
    re.DOTALL,
)
_DIGITS = bytes.maketrans(b"0123456789.E+", b"00000000000e-")
_ODD_NUMBERS = (b"NaN", b"Infinity", b"0" * 18, b"0e000", b"0e-000")
"""What text holds where `_STRING_OR_ODD_NUMBER` may change a number, its digits all 0."""
_STRING_OR_ODD_NUMBER = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"?|(NaN)|(-?Infinity|-?[0-9.]{18,}(?:[eE][+-]?[0-9]+)?|-?[0-9.]+[eE][+-]?[0-9]{3,})',
    re.DOTALL,
)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LETTERS = frozenset(b"NanInfity0123456789.eE+-\xed" + bytes(range(0xA0, 0xC0)))
"""Of what a piece must not end with: a number, or the first two bytes of half a pair."""


class DeepError(ValueError):
    """Brackets within brackets, too many for the parser."""


class StandardJson:
    """A file of JSON to read from; `replaced` counts the halves of surrogate pairs that became U+FFFD."""

    def __init__(self, file: BinaryIO) -> None:
        self.replaced = 0
        self._file = file
        self._left = b""
        self._inside = False

    def read(self, size: int = -1) -> bytes:
        """The next piece, whatever its size; b"" at the end."""
        if size == 0:
            return b""
        while True:
            new = self._file.read(PIECE)
            whole = self._left + new
            cut = _cut(whole) if new else len(whole)
            piece, self._left = whole[:cut], whole[cut:]
            if piece or not new:
                return self._standard(piece)

    def tell(self) -> int:
        """Bytes read from the file."""
        return self._file.tell()

    def _standard(self, piece: bytes) -> bytes:
        if any(half in piece for half in _HALVES):
            piece = _SURROGATE.sub(self._whole_pair, piece)
        digits = piece.translate(_DIGITS)
        if any(number in digits for number in _ODD_NUMBERS):
            start = b'"' if self._inside else b""
            piece = _STRING_OR_ODD_NUMBER.sub(_standard_number, start + piece)[len(start) :]
        if b"[" * DEEPEST in piece.translate(_BRACKETS, _NO_BRACKETS):
            raise DeepError(f"{DEEPEST} brackets within each other")
        quotes = (re.sub(rb"\\.", b"", piece, flags=re.DOTALL) if b"\\" in piece else piece).count(b'"')
        self._inside ^= bool(quotes & 1)
        return piece

    def _whole_pair(self, found: re.Match[bytes]) -> bytes:
        if found[1] is None:
            return found[0]
        self.replaced += 1
        return rb"\ufffd"


def _standard_number(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return b"null"
    return found[0] if found[2] is None else b'"' + found[2] + b'"'


def _cut(text: bytes) -> int:
    """Where text can be cut without cutting an escape or a number; 0: nowhere."""
    cut = len(text)
    while cut:
        escape = text.rfind(b"\\", max(cut - _LONGEST_ESCAPE, 0), cut)
        if escape >= 0:
            cut = escape
        elif text[cut - 1] in _LETTERS:
            cut -= 1
        else:
            break
    return cut
