"""How a worker begins."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage while a model is loaded.

    Its libraries make millions of objects that stay, and each collection looks through those that there are already: a
    fifth of the time that importing diffusers takes.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
