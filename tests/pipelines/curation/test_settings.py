"""What is checked before any work: settings that cannot work together, and scores of another kind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.core.stage import Stage
from actors.curation.cutting.scenes import FEATURES, FramesConfig, Windows, WindowsConfig
from actors.curation.features.latents import LatentsConfig
from actors.curation.features.motion import MotionConfig
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import SCENES, SCORES
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.settings import (
    RETRYABLE,
    CurationConfig,
    RetryConfig,
    VideosConfig,
    check,
    measured_by,
    windows,
)


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    """Settings that pass, with a VAE that is looked at by its config.json alone."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    return CurationConfig(
        input=str(tmp_path / "films"), output=str(tmp_path / "out"), latents=LatentsConfig(model=str(tmp_path / "vae"))
    )


def test_sound_settings_pass_and_write_nothing(config: CurationConfig, tmp_path: Path):
    check(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("input", "output"),
    [
        ("{0}/films", "{0}/films/out"),
        ("{0}/films/", "{0}/films/out/"),
        ("{0}/films", "{0}/films"),
        ("{0}/films", "file://{0}/films/out"),
        ("file://{0}/films", "{0}/films/sub/out"),
        ("{0}/films", "{0}/elsewhere/../films/out"),
        ("{0}/link", "{0}/films/out"),
        ("s3://bucket/films", "s3://bucket/films/out"),
        ("s3://bucket", "s3://bucket/out"),
    ],
)
def test_an_output_inside_its_input_is_refused(config: CurationConfig, tmp_path: Path, input: str, output: str):
    (tmp_path / "link").symlink_to(tmp_path / "films")
    with pytest.raises(ValueError, match="lies inside input"):
        check(replace(config, input=input.format(tmp_path), output=output.format(tmp_path)))


def test_a_relative_output_inside_its_input_is_refused(
    config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="lies inside input"):
        check(replace(config, output="films/out"))
    with pytest.raises(ValueError, match="lies inside input"):
        check(replace(config, input="."))
    check(replace(config, output="films-out"))


@pytest.mark.parametrize("output", ["{0}/films-out", "{0}/film", "{0}/out/films"])
def test_an_output_beside_its_input_is_fine(config: CurationConfig, tmp_path: Path, output: str):
    check(replace(config, output=output.format(tmp_path)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"motion": MotionConfig(num_gpus=1)}, r"motion\.flow=farneback runs on CPUs.*motion\.flow=raft"),
        ({"motion": MotionConfig(flow="scaled", num_gpus=0.5)}, r"motion\.flow=scaled runs on CPUs"),
        ({"video": VideoConfig(num_gpus=1)}, r"video\.decoder=pyav runs on CPUs.*torchcodec"),
        ({"latents": LatentsConfig(model="/nowhere")}, r"latents\.model=/nowhere: no config\.json there"),
        ({"latents": LatentsConfig(workers=0)}, r"latents\.workers=0"),
        ({"motion": MotionConfig(workers=0)}, r"motion\.workers=0"),
        ({"motion": MotionConfig(flow="raft"), "frames": FramesConfig(size=132)}, r"frames\.size=132.*a multiple of 8"),
        ({"motion": MotionConfig(flow="raft"), "frames": FramesConfig(size=120)}, r"frames\.size=120.*from 128"),
    ],
)
def test_settings_that_cannot_work_together_are_told_with_the_remedy(
    config: CurationConfig, groups: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        check(replace(config, **groups))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Stage, {"workers": -1}),
        (Stage, {"batch_size": 0}),
        (Stage, {"num_cpus": -0.5}),
        (VideoConfig, {"num_gpus": -1}),
        (FramesConfig, {"interval_ms": 0}),
        (FramesConfig, {"size": 8}),
        (FramesConfig, {"min": 1}),
        (FramesConfig, {"min": 61}),
        (SelectConfig, {"count": 1, "fraction": 0.5}),
        (SelectConfig, {"count": -1}),
        (SelectConfig, {"fraction": 1.1}),
        (SelectConfig, {"fraction": -0.1}),
    ],
)
def test_values_without_a_meaning_are_refused(kind: type, settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)


@pytest.mark.parametrize("settings", [{"count": 0}, {"fraction": 0}, {"fraction": 1}])
def test_bounds_are_themselves_allowed(settings: dict[str, Any]):
    SelectConfig(**settings)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"frames": FramesConfig(interval_ms=500)}, "frames.interval_ms=250 there, 500 here"),
        ({"frames": FramesConfig(size=120)}, "frames.size=240 there, 120 here"),
        ({"shots": ShotsConfig(detector="content")}, "shots.detector=gradual there, content here"),
        ({"motion": MotionConfig(flow="scaled")}, "motion.flow=farneback there, scaled here"),
        ({"video": VideoConfig(decoder="torchcodec")}, "video.decoder=pyav there, torchcodec here"),
    ],
)
def test_scores_of_another_kind_are_refused_with_what_differs(
    config: CurationConfig, groups: dict[str, Any], told: str
):
    make_plan(config)
    check(config)
    with pytest.raises(ValueError, match="holds scores made with other settings") as error:
        check(replace(config, **groups))
    assert f"({told})" in str(error.value)


def test_scores_of_another_version_are_refused_too(config: CurationConfig, tmp_path: Path):
    make_plan(config)
    path = tmp_path / "out" / "plan" / "settings.json"
    made = json.loads(path.read_text())
    del made["measured_by"]["motion.flow"]
    made["measured_by"]["frames.colour"] = "grey"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"motion\.flow=None there, farneback here") as error:
        check(config)
    assert "frames.colour=grey there, None here" in str(error.value)


def test_bars_are_cut_off_as_the_output_was_begun(config: CurationConfig, tmp_path: Path):
    assert config.cutting.frames.crop_bars is True
    make_plan(replace(config, frames=FramesConfig(crop_bars=False)))
    check(config)
    assert config.cutting.frames.crop_bars is False
    with pytest.raises(ValueError, match=r"frames\.crop_bars=False there, True here"):
        check(replace(config, frames=FramesConfig(crop_bars=True)))
    # An output of an earlier version goes on without.
    path = tmp_path / "out" / "plan" / "settings.json"
    made = json.loads(path.read_text())
    del made["measured_by"]["frames.crop_bars"]
    path.write_text(json.dumps(made))
    check(config)
    assert config.cutting.frames.crop_bars is False
    with pytest.raises(ValueError, match=r"frames\.crop_bars=False there, True here"):
        check(replace(config, frames=FramesConfig(crop_bars=True)))


def test_shots_are_found_as_the_output_was_begun(config: CurationConfig):
    assert (config.cutting.shots.detector, config.cutting.shots.width) == ("gradual", 128)
    assert replace(config, shots=ShotsConfig("adaptive")).cutting.shots.width == 256
    make_plan(replace(config, shots=ShotsConfig("content", width=200)))
    check(config)
    assert (config.cutting.shots.detector, config.cutting.shots.width) == ("content", 200)
    with pytest.raises(ValueError, match=r"shots\.width=200 there, 256 here"):
        check(replace(config, shots=ShotsConfig(width=256)))


def test_cuts_that_are_calm_on_one_side_are_found_as_the_output_was_begun(config: CurationConfig, tmp_path: Path):
    assert config.cutting.shots.one_sided is True
    make_plan(config)
    assert config.cutting.shots.one_sided is True
    # An output of an earlier version goes on without.
    path = tmp_path / "out" / "plan" / "settings.json"
    made = json.loads(path.read_text())
    del made["measured_by"]["shots.one_sided"]
    path.write_text(json.dumps(made))
    check(config)
    assert config.cutting.shots.one_sided is False


@pytest.mark.parametrize("name", ["deinterlace", "color_managed"])
def test_pictures_are_converted_as_the_output_was_begun(config: CurationConfig, tmp_path: Path, name: str):
    def converted() -> bool:
        return getattr(config.cutting.frames, name)

    assert converted() is True
    make_plan(replace(config, frames=FramesConfig(**{name: False})))
    check(config)
    assert converted() is False
    # An output of an earlier version goes on without.
    path = tmp_path / "out" / "plan" / "settings.json"
    made = json.loads(path.read_text())
    del made["measured_by"][f"frames.{name}"]
    path.write_text(json.dumps(made))
    check(config)
    assert converted() is False
    with pytest.raises(ValueError, match=rf"frames\.{name}=False there, True here"):
        check(replace(config, frames=FramesConfig(**{name: True})))


def test_windows_stay_as_the_output_was_begun_though_thresholds_change(config: CurationConfig):
    assert windows(replace(config, frames=FramesConfig(min=2, max=90))) == Windows(90, 0, 2)
    make_plan(config)
    assert windows(replace(config, frames=FramesConfig(min=2, max=90))) == windows(config) == Windows(60, 0, 4)
    other = replace(config, windows=WindowsConfig(length_s=10, overlap_s=1))
    assert windows(other) == Windows(40, 4, 4)
    with pytest.raises(ValueError, match=r"windows\.length_s=15\.0 there, 10 here"):
        check(other)


def test_an_output_of_an_earlier_version_keeps_its_shots_whole(config: CurationConfig, tmp_path: Path):
    make_plan(config)
    path = tmp_path / "out" / "plan" / "settings.json"
    made = json.loads(path.read_text())
    made["measured_by"] = {name: value for name, value in made["measured_by"].items() if "windows" not in name}
    path.write_text(json.dumps(made))
    check(config)
    assert windows(config).samples == 0
    with pytest.raises(ValueError, match=r"windows\.length_s=0\.0 there, 15 here"):
        check(replace(config, windows=WindowsConfig(length_s=15)))


@pytest.mark.parametrize("length", [0.5, 15.5, 60])
def test_windows_that_could_not_be_measured_are_refused(config: CurationConfig, length: float):
    with pytest.raises(ValueError, match=f"windows.length_s={length:g}: .* 1 to 15 s"):
        check(replace(config, windows=WindowsConfig(length_s=length)))


def test_what_does_not_change_a_row_may_change(config: CurationConfig):
    make_plan(config)
    check(
        replace(
            config,
            frames=FramesConfig(min=2, max=90),
            select=SelectConfig(count=3, min_velocity=1),
            videos=VideosConfig(end=0),
            video=VideoConfig(workers=7, stall_s=5),
            motion=MotionConfig(weights="unused"),
            latents=replace(config.latents, batch_size=9),
        )
    )


def test_weights_count_only_where_they_are_used(config: CurationConfig):
    raft = replace(config, motion=MotionConfig(flow="raft", weights="C_T_V1"))
    assert measured_by(raft)["motion.weights"] == "C_T_V1"
    assert measured_by(replace(config, motion=MotionConfig(weights="C_T_V1")))["motion.weights"] is None


def test_retry_tries_what_may_pass_or_the_codes_it_is_given_with_the_settings_of_run(config: CurationConfig):
    asked = RetryConfig(config.input, config.output, latents=config.latents)
    assert asked.again() == RETRYABLE
    assert replace(asked, codes="crashed,timeout").again() == {"crashed", "timeout"}
    assert replace(asked, codes="crashed").run() == config


def test_tables_hold_the_seven_features_in_their_order():
    for schema in (SCORES, SCENES):
        assert [name for name in schema.names if name in FEATURES] == list(FEATURES)


def test_what_may_pass_by_itself_is_tried_again_and_what_is_in_the_file_is_not():
    assert {"fetch_failed", "not_found", "crashed", "stalled", "timeout", "export_failed"} <= RETRYABLE
    assert not {"truncated", "not_a_video", "decode_error", "bad_span", "duplicate_id", "fetch_gone"} & RETRYABLE
