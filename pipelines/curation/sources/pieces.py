"""The members of a large JSON object as they stand in its text, each found without being parsed."""

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

BLOCK = 1 << 18
"""Bytes that are looked through at once."""
SPACE = b" \t\r\n"
_QUOTE = 2
_KINDS = np.zeros(256, np.int8)
_KINDS[[ord("{"), ord("[")]] = 1
_KINDS[[ord("}"), ord("]")]] = -1
_KINDS[ord('"')] = _QUOTE
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_FIRST = re.compile(rb"[ \t\r\n]*\{")
_MEMBER = re.compile(rb'[ \t\r\n]*(,?)[ \t\r\n]*(?="[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*\{)', re.DOTALL)


class UnevenError(ValueError):
    """The text is not an object whose members are objects."""


def members(file: BinaryIO) -> Iterator[bytes]:
    """The members of the object in a file, `"key": {…}` as they stand; raises UnevenError where it comes to others.

    What is within a member is not looked at but for its brackets and quotes: whoever parses it finds what is wrong.
    """
    text = file.read(BLOCK)
    start = _FIRST.match(text)
    if start is None:
        raise UnevenError
    text, count = text[start.end() :], 0
    while True:
        ends, over = _ends(text)
        before = 0
        for end in ends:
            head = _MEMBER.match(text, before, end)
            # A comma between two, and none before the first.
            if head is None or bool(head[1]) != bool(count):
                raise UnevenError
            yield text[head.end() : end]
            before, count = end, count + 1
        if over is not None:
            if not count or text[before:over].strip(SPACE) or _has_more(text[over + 1 :], file):
                raise UnevenError
            return
        text = text[before:]
        more = file.read(max(BLOCK, len(text)))
        if not more:
            raise UnevenError
        text += more


def _ends(text: bytes) -> tuple[list[int], int | None]:
    """Where members end in text that begins between two of them, and where their object does; None: later."""
    plain = _ESCAPE.sub(b"__", text) if b"\\" in text else text
    kinds = _KINDS[np.frombuffer(plain, np.uint8)]
    places = np.flatnonzero(kinds)
    kinds = kinds[places]
    quotes = kinds == _QUOTE
    kinds[quotes | (np.cumsum(quotes, dtype=np.uint32) & 1).astype(bool)] = 0
    depth = np.cumsum(kinds, dtype=np.int32)
    closes = kinds == -1
    over = np.flatnonzero(closes & (depth == -1))
    last = over[0] if len(over) else len(kinds)
    ends = places[np.flatnonzero(closes[:last] & (depth[:last] == 0))] + 1
    return ends.tolist(), int(places[last]) if len(over) else None


def _has_more(text: bytes, file: BinaryIO) -> bool:
    while not text.strip(SPACE):
        if not (text := file.read(BLOCK)):
            return False
    return True
