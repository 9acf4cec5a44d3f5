"""Requests of runs that were counted by a proxy before an S3 server, without those for films and for files that are
written: 12 films, 50 clips, in parts of 64 and of 8 rows."""

import pytest

from pipelines.curation.estimating.requests import run_requests


@pytest.mark.parametrize(
    ("parts", "seconds", "puts", "gets"),
    [(3, 50, 86 + 91 + 1 - 59, 152 + 73 - 48), (12, 80, 121 + 91 + 1 - 86, 200 + 73 - 48)],
)
def test_requests_are_those_of_runs_that_were_counted(parts: int, seconds: int, puts: int, gets: int) -> None:
    assert run_requests(parts, 3, 50, seconds) == pytest.approx((puts, gets), rel=0.05)


def test_a_long_run_tells_ever_less_often_how_far_it_is() -> None:
    idle = run_requests(0, 3, 0, 0)
    day = run_requests(0, 3, 0, 86_400)
    # The lease each 10 s; the page and the progress at intervals that grow from 10 s to 60 s.
    assert day.gets - idle.gets == 8640
    assert 2 * 86_400 / 60 < day.puts - idle.puts - 8640 < 1.1 * 2 * 86_400 / 60


def test_parts_that_are_compacted_are_read_once_more() -> None:
    gets = [run_requests(parts, 4, 0, 0).gets - run_requests(0, 4, 0, 0).gets for parts in (900, 1000, 100_000)]
    assert gets == [4 * 900 + 256, 4 * 1000, 4 * 100_000]
