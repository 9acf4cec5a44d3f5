"""Films are divided among GPUs and CPUs so that each is measured once, by the one that was to."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.cutting.videos import Choice
from actors.media.film import VideoConfig
from pipelines.core.ray_data import rows_of
from pipelines.curation.cutting.division import ON_CPUS, Division, at_once
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.cutting.score import READ, _decoded, stages_of
from pipelines.curation.settings import CurationConfig, check
from tests.actors.media.test_film import torchcodec_fault
from tests.support import films

NVDEC = VideoConfig(decoder="torchcodec", num_gpus=0.25)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 0.9, 1.0])
def test_films_are_dealt_evenly_and_each_to_one_side(share: float):
    ours = [Choice(share=share).deals(number) for number in range(50)]
    theirs = [Choice(share=share, others=True).deals(number) for number in range(50)]
    assert [not one for one in ours] == theirs
    for count in range(1, 51):
        assert abs(sum(ours[:count]) - share * count) <= 0.5


@pytest.mark.parametrize(
    ("wanted", "cpus", "gpus", "workers", "expected"),
    [
        ("auto", 16, 1, 0, (4, 9)),  # 3 CPUs are the pools' and the tasks'
        (2, 16, 1, 0, (4, 2)),
        ("auto", 16, 2, 0, (8, 5)),
        ("auto", 16, 1, 3, (3, 10)),
        ("auto", 6, 1, 0, None),
        (4, 7, 1, 0, None),
    ],
)
def test_cpus_decode_beside_gpus_what_these_leave(
    wanted: Any, cpus: float, gpus: float, workers: int, expected: tuple[int, int] | None
):
    video = VideoConfig(workers=workers, num_gpus=0.25)
    stages = {"latents": Stage(workers=2), "read": Stage(), "video": video, ON_CPUS: Stage(0)}
    assert at_once(wanted, stages, ("latents",), {"CPU": cpus, "GPU": gpus}) == expected


def test_stages_have_one_for_cpus_where_it_is_asked_for(tmp_path: Path):
    config = CurationConfig(input="", output="", video=NVDEC, cpu_films=3)
    stage = stages_of(config, False)[1][ON_CPUS]
    assert (stage.workers, stage.num_gpus) == (3, 0)
    assert ON_CPUS not in stages_of(CurationConfig(input="", output="", video=NVDEC), False)[1]


@pytest.mark.parametrize(("films_on_cpus", "video"), [(2, VideoConfig()), ("auto", VideoConfig()), (-1, NVDEC)])
def test_films_beside_gpus_need_gpus(tmp_path: Path, films_on_cpus: Any, video: VideoConfig):
    films.film(tmp_path / "in.mp4")
    config = CurationConfig(
        input=str(tmp_path / "in.mp4"), output=str(tmp_path / "out"), video=video, cpu_films=films_on_cpus
    )
    with pytest.raises(UserError, match=r"cpu_films=.*video\.num_gpus"):
        check(config)


@pytest.mark.slow
def test_both_sides_together_measure_each_film_once(ray_cluster: None, tmp_path: Path):
    """Both on CPUs here."""
    if torchcodec_fault():
        pytest.skip(f"torchcodec cannot be loaded: {torchcodec_fault()}")
    films.many(tmp_path / "in", 5)
    video = VideoConfig(decoder="torchcodec", num_cpus=0.5)
    output = str(tmp_path / "out")
    config = CurationConfig(input=str(tmp_path / "in"), output=output, video=video, frames=FramesConfig(size=64))
    make_plan(config)
    stages = {"read": READ, "video": video, ON_CPUS: Stage(1, 0.5)}
    found = list(rows_of(_decoded(config, stages, Choice(), Division(1, 1, 0.6))))
    alone = list(rows_of(_decoded(config, stages, Choice())))
    counts = Counter((row["video_id"], row["scene_id"]) for row in found)
    assert counts == Counter((row["video_id"], row["scene_id"]) for row in alone)
    assert set(counts.values()) == {1} and len({video for video, _ in counts}) == 5
