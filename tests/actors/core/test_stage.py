"""The precision of a model is settled before any worker starts."""

import pytest

from actors.core.stage import ModelStage


@pytest.mark.parametrize(
    ("dtype", "gpus", "precision"),
    [
        ("auto", 0, "float32"),
        ("auto", 0.25, "bfloat16"),
        ("bfloat16", 0, "bfloat16"),
        ("float32", 1, "float32"),
    ],
)
def test_auto_is_bfloat16_on_gpus_only(dtype, gpus, precision):
    assert ModelStage(dtype=dtype, num_gpus=gpus).precision == precision
