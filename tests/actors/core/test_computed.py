"""Whether values were computed in one way or in several."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from actors.comic_characters.network_settings import FeaturesConfig
from actors.core.computed import counted, joined, mixed
from actors.core.stage import ModelStage


def test_two_ways_are_told_with_their_counts_the_most_first():
    [note] = mixed({"cpu float32": 300, "cuda bfloat16": 1200, "": 7}, "vectors", "images", "Embed again.")
    assert note == (
        "vectors of 1,200 images were computed on cuda in bfloat16, of 300 on cpu in float32: these are not exactly "
        "comparable. Embed again."
    )


def test_each_model_that_worked_on_a_row_is_judged_by_itself():
    cuda, cpu = (joined("motion: vectors", f"latents: {way}") for way in ("cuda bfloat16", "cpu float32"))
    other = joined("motion: farneback", "latents: cpu float32")
    [latents] = mixed({cuda: 2, cpu: 1}, "scores", "scenes", "")
    assert latents.startswith("latents of 2 scenes were computed on cuda in bfloat16, of 1 on cpu in float32")
    [motion] = mixed({cpu: 3, other: 4}, "scores", "scenes", "")
    assert motion.startswith("motion of 4 scenes was computed by farneback, of 3 by vectors")
    assert len(mixed({cuda: 2, cpu: 3, other: 4}, "scores", "scenes", "")) == 2


@pytest.mark.parametrize("counts", [{}, {"": 9, "cpu float32": 1}, {np.nan: 5, "cpu float32": 1, "cuda bfloat16": 0}])
def test_what_is_unknown_or_not_there_mixes_with_nothing(counts: dict[Any, int]):
    assert mixed(counts, "scores", "scenes", "") == []


def test_rows_are_counted_also_where_they_lack_it():
    assert counted([{"computed": "cpu float32"}, {"computed": None}, {}]) == Counter({"": 2, "cpu float32": 1})


def test_a_stage_says_device_and_precision():
    assert ModelStage().computed == FeaturesConfig().computed == "cpu float32"
    assert ModelStage(num_gpus=0.5).computed == "cuda bfloat16"
    assert ModelStage(num_gpus=1, dtype="float32").computed == FeaturesConfig(num_gpus=1).computed == "cuda float32"
