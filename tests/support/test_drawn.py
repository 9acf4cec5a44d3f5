"""What other tests take for granted of drawn characters."""

import numpy as np
import pytest

from tests.support.drawn import SIZE, Cast, Sheets, Sketches, identities, picture


@pytest.mark.parametrize("make", [Sketches, Sheets])
def test_a_characters_poses_differ_and_are_its_own(make: type):
    cast: Cast = make()
    first, second = identities(cast, 2, seed=0)
    poses = [cast.draw(first, pose) for pose in range(cast.poses)]
    assert all(pose.shape == (SIZE, SIZE, 4) and (pose[..., 3] > 127).mean() > 0.1 for pose in poses)
    assert len({pose.tobytes() for pose in poses}) > 40
    other = [cast.draw(second, pose) for pose in range(cast.poses)]
    assert all((mine != theirs).any() for mine, theirs in zip(poses, other, strict=True))


def test_no_layer_gives_an_identity_away():
    cast = Sketches()
    found = identities(cast, 20, seed=1)
    assert len(set(found)) == 20
    for layer, choices in enumerate(cast.choices):
        assert np.bincount([identity[layer] for identity in found], minlength=choices).min() >= 2
    assert not set(identities(cast, 200, seed=2, other_than=found)) & set(found)
    assert identities(cast, 20, seed=1) == found


def test_pictures_are_seeded_and_differ_in_what_is_behind():
    cast = Sketches()
    (one,) = identities(cast, 1, seed=0)
    first, again, other = (picture(cast, one, 3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (SIZE, SIZE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and (first != other).any(-1).mean() > 0.5
