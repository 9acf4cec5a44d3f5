"""A step for each of many films: of few in this process, of many on Ray's workers, each film by itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

FEW_FILMS = 8
"""Up to this many films, a step in the driver is faster than starting Ray."""
AT_ONCE = 200
"""Most tasks that Ray holds at a time, so that their answers do not pile up."""


def each_film(step: Callable[..., Any], films: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """The name of each film and what a step makes of it, as they are ready.

    films: arguments of the step, the first of which is the film's name.
    """
    if len(films) <= FEW_FILMS:
        yield from ((film[0], step(*film)) for film in films)
        return
    import ray

    from pipelines.core.attempts import repeated

    work = repeated(_done, num_cpus=1)
    shared = ray.put(step)
    running: dict[Any, str] = {}
    for film in films:
        running[work(shared, film)] = film[0]
        if len(running) == AT_ONCE:
            yield _first(running)
    while running:
        yield _first(running)


def _done(step: Callable[..., Any], film: tuple[Any, ...]) -> Any:
    return step(*film)


def _first(running: dict[Any, str]) -> tuple[str, Any]:
    """Of the tasks under way the first that ends, which is taken out."""
    import ray

    (ready,), _ = ray.wait(list(running), num_returns=1)
    return running.pop(ready), ray.get(ready)
