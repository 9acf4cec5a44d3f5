"""What is measured of sound is what was drawn: closed forms of tones, silence and clipping."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

from actors.core.errors import UserError
from actors.curation.families.sound import Sound, SoundConfig
from actors.curation.measuring.family import fingerprint, scorer_class

RATE = 48_000


def tone(
    seconds: float, db: float = -23.0, hz: float = 997.0, channels: int = 2, rate: int = RATE, clip: float = math.inf
) -> np.ndarray:
    """A sine whose peak is at so many dB of full scale: float32 (channels, samples)."""
    at = np.arange(round(seconds * rate)) / rate
    wave = 10 ** (db / 20) * np.sin(2 * np.pi * hz * at)
    return np.tile(np.clip(wave, -clip, clip), (channels, 1)).astype(np.float32)


def measured(*sounds: np.ndarray, rate: int = RATE, **settings: Any) -> list[dict[str, Any]]:
    batch = {"sound": np.empty(len(sounds), object), "sample_rate": np.full(len(sounds), rate)}
    batch["sound"][:] = sounds
    found = Sound(SoundConfig(**settings))(batch)
    return [{name: values[i] for name, values in found.items()} for i in range(len(sounds))]


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize(
    ("channels", "db", "lufs"),
    [
        (2, -23.0, -23.0),  # EBU Tech 3341, case 1
        (2, -33.0, -33.0),  # case 2
        (1, -20.0, -23.01),  # one channel has half the power of two
        (6, -23.0, -23.0 + 10 * math.log10((3 + 2 * 1.41) / 2)),  # LFE has none, the surrounds 1.41
    ],
)
def test_loudness_of_a_sine_is_that_of_the_standard(rate: int, channels: int, db: float, lufs: float) -> None:
    (found,) = measured(tone(5, db, channels=channels, rate=rate), rate=rate)
    assert found["loudness"] == pytest.approx(lufs, abs=0.1)
    assert found["has_sound"] is True and found["silence"] == 0 and found["clipping"] == 0


def test_loudness_leaves_quiet_parts_out() -> None:
    """EBU Tech 3341, case 3: -36, -23 and -36 dB are -23 LUFS together, by the relative gate."""
    sound = np.concatenate([tone(10, -36), tone(60, -23), tone(10, -36)], axis=1)
    assert measured(sound)[0]["loudness"] == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("samples", [0, 1, 5, 9_600, 19_199])
def test_what_is_shorter_than_a_block_has_no_loudness(samples: int) -> None:
    (found,) = measured(tone(1)[:, :samples])
    assert math.isnan(found["loudness"]) and found["has_sound"] is True
    assert math.isnan(found["silence"]) if not samples else 0 <= found["silence"] <= 1


def test_silence_is_the_share_that_was_drawn() -> None:
    for seconds in (0.0, 1.0, 2.5, 4.0):
        sound = np.concatenate([tone(4 - seconds), np.zeros((2, round(seconds * RATE)), np.float32)], axis=1)
        assert measured(sound)[0]["silence"] == pytest.approx(seconds / 4, abs=0.01)
    quiet = tone(2, -70)
    assert [one["silence"] for one in measured(quiet, silence_db=-60) + measured(quiet, silence_db=-80)] == [1, 0]
    (nothing,) = measured(np.zeros((2, RATE), np.float32))
    assert nothing["has_sound"] is True and nothing["silence"] == 1 and math.isnan(nothing["loudness"])


@pytest.mark.parametrize("over_db", [0.5, 3.0, 12.0])
def test_clipping_is_the_share_of_a_sine_beyond_full_scale(over_db: float) -> None:
    """A sine of amplitude a is beyond 1 for 1 - 2 asin(1/a)/π of the time."""
    share = 1 - 2 * math.asin(10 ** (-over_db / 20)) / math.pi
    left = tone(2, over_db, hz=101, channels=1, clip=1)
    sound = np.concatenate([left, tone(2, -6, hz=101, channels=1)])
    assert measured(sound)[0]["clipping"] == pytest.approx(share / 2, abs=0.01)


def test_a_peak_that_touches_full_scale_is_not_clipped() -> None:
    sound = np.zeros((1, RATE), np.float32)
    sound[0, ::100] = sound[0, 1::100] = 1
    sound[0, 2::100] = -1
    assert measured(sound)[0]["clipping"] == 0


def test_a_film_without_sound_has_no_values_and_mates_do_not_matter() -> None:
    sounds = [np.zeros((0, 0), np.float32), tone(1), tone(0.1), tone(2, 6, clip=1)]
    together = measured(*sounds)
    assert together[0] == pytest.approx(
        {"has_sound": False, **dict.fromkeys(("loudness", "silence", "clipping", "speech"), math.nan)}, nan_ok=True
    )
    for one, among in zip(sounds, together, strict=True):
        assert measured(one)[0] == pytest.approx(among, nan_ok=True)


def loud_share(samples: np.ndarray) -> float:
    """Stands for a detector: 16,000 samples a second of one channel."""
    assert samples.dtype == np.float32 and samples.ndim == 1
    return float((np.abs(samples[: len(samples) // 160 * 160].reshape(-1, 160)).max(1) > 0.05).mean())


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_speech_is_what_the_detector_says_of_mono_at_16_khz(rate: int) -> None:
    sound = np.concatenate([tone(1, -6, 440, rate=rate), np.zeros((2, 3 * rate), np.float32)], axis=1)
    (found,) = measured(sound, rate=rate, detector=f"{__name__}:loud_share")
    assert found["speech"] == pytest.approx(0.25, abs=0.01)
    assert math.isnan(measured(sound, rate=rate)[0]["speech"])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Sound.check(SoundConfig(detector=f"{__name__}:loud_share"))
    for wrong in ("nowhere.at_all:speech", "json", "json:", ":f"):
        with pytest.raises(UserError, match=r"sound\.detector"):
            Sound.check(SoundConfig(detector=wrong))
    with pytest.raises(UserError, match="silence_db"):
        SoundConfig(silence_db=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra `sound`"):
        Sound.check(SoundConfig())


def test_it_is_a_family() -> None:
    assert scorer_class("sound") is Sound
    prints = {fingerprint("sound", SoundConfig(silence_db=db)) for db in (-60.0, -50.0)}
    assert len(prints) == 2 and fingerprint("sound", SoundConfig(workers=3)) in prints
