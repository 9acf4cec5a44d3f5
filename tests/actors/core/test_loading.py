"""Garbage is collected again once a model is loaded, or could not be."""

import gc

import pytest

from actors.core.loading import loading


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_collected_afterwards_as_it_was_before(before: bool) -> None:
    @loading()
    def load(fails: bool) -> bool:
        with loading():
            pass
        if fails:
            raise ValueError("no weights")
        return gc.isenabled()

    collects = gc.isenabled()
    try:
        gc.enable() if before else gc.disable()
        assert not load(False) and gc.isenabled() == before
        with pytest.raises(ValueError, match="no weights"):
            load(True)
        assert gc.isenabled() == before
    finally:
        gc.enable() if collects else gc.disable()
