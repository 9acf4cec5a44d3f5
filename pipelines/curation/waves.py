"""Work that is handed to Ray a wave at a time, so that the driver holds no more of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def waves(items: Iterable[Item], weight: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """The items in order, as many together as weigh no more than `most`, and one at least."""
    wave: list[Item] = []
    total = 0
    for item in items:
        heavy = weight(item)
        if wave and total + heavy > most:
            yield wave
            wave, total = [], 0
        wave.append(item)
        total += heavy
    if wave:
        yield wave
