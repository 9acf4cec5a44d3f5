"""Features that need a model: the same for a scene alone and among others, and only where there are frames."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large

from actors.core.stage import Batch
from actors.curation.features.frame_scorer import FrameScorer
from actors.curation.features.latents import LatentsConfig, encode, load_vae
from actors.curation.features.motion import MotionConfig
from actors.curation.features.raft import check_raft, load_raft, prepared, raft_speeds

NAN = np.float32(np.nan)
LATENTS = ("mse", "cos_sim")
MOTION = ("max_velocity", "mean_velocity")


def scene(frames: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """A scene of random patches that move: uint8 (frames, size, size, 3)."""
    random = np.random.default_rng(seed)
    picture = np.kron(random.integers(0, 256, (2 * size // 8, 2 * size // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return np.stack([picture[2 * i : 2 * i + size, 3 * i : 3 * i + size] for i in range(frames)])


def batch(*scenes: np.ndarray) -> Batch:
    """Rows as they come from the cut: what a model measures is missing, and arrays are read-only."""
    frames = np.empty(len(scenes), object)
    frames[:] = list(scenes)
    rows: Batch = {
        "scene_id": np.array([f"v.0_{i}" for i in range(len(scenes))], object),
        "frames": frames,
        **{name: np.full(len(scenes), NAN) for name in (*LATENTS, *MOTION)},
        "latents_s": np.zeros(len(scenes), np.float32),
        "computed": np.array([""] * len(scenes), object),
    }
    for column in rows.values():
        column.flags.writeable = False
    return rows


def one_by_one(scorer: FrameScorer, *scenes: np.ndarray) -> Batch:
    single = [scorer(batch(scene)) for scene in scenes]
    return {name: np.concatenate([one[name] for one in single]) for name in single[0]}


@pytest.fixture(scope="module")
def exact(vae_folder: str) -> LatentsConfig:
    return LatentsConfig(model=vae_folder, dtype="float32")


@pytest.fixture(scope="module")
def scorer(exact: LatentsConfig) -> FrameScorer:
    return FrameScorer(exact, None, cpus=1, gpu=False, keep_frames=False)


@pytest.fixture(scope="module")
def raft(tmp_path_factory: pytest.TempPathFactory) -> MotionConfig:
    """RAFT with random weights, from a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft.safetensors"
    save_file(raft_large().state_dict(), path)
    return MotionConfig(flow="raft", weights=str(path))


def test_latent_features_are_means_over_the_pairs_of_a_scene(scorer: FrameScorer, exact: LatentsConfig):
    frames = scene(4)
    with torch.inference_mode():
        latents = encode(load_vae(exact.model, torch.float32, "cpu"), torch.from_numpy(frames)).numpy()
    squares = [((b - a) ** 2).mean() for a, b in pairwise(latents)]
    angles = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairwise(latents)]
    out = scorer(batch(frames))
    assert out["mse"] == pytest.approx(np.mean(squares), rel=1e-4)
    assert out["cos_sim"] == pytest.approx(np.mean(angles), rel=1e-4)
    assert out["mse"].dtype == out["cos_sim"].dtype == np.float32


def test_scenes_of_a_batch_do_not_touch(scorer: FrameScorer):
    scenes = scene(5, seed=1), scene(2, seed=2), scene(3, seed=3)
    together, alone = scorer(batch(*scenes)), one_by_one(scorer, *scenes)
    for name in LATENTS:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)
        assert len(set(together[name].tolist())) == 3
    # A cut between two still scenes is no movement.
    still = np.repeat(scene(1, seed=4), 3, axis=0), np.repeat(scene(1, seed=5), 2, axis=0)
    assert scorer(batch(*still))["mse"].tolist() == [0, 0]


def test_two_batches_at_once_are_those_of_one_after_the_other(scorer: FrameScorer):
    batches = [batch(scene(3 + seed % 3, seed=seed), scene(4, seed=seed + 9)) for seed in range(6)]
    started = perf_counter()
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(scorer, batches))
    spent = perf_counter() - started
    for found, rows in zip(together, batches, strict=True):
        np.testing.assert_array_equal(found["mse"], scorer(rows)["mse"])
    # Seconds in which both were at work count once.
    assert 0 < sum(float(found["latents_s"].sum()) for found in together) <= spent


def test_rows_without_frames_keep_what_they_had_and_their_place(scorer: FrameScorer):
    none, one = np.zeros((0, 32, 32, 3), np.uint8), scene(1)
    rows = batch(none, scene(3, seed=1), one, scene(2, seed=2), none)
    out = scorer(rows)
    assert list(out["scene_id"]) == list(rows["scene_id"])
    for name in LATENTS:
        assert np.isnan(out[name]).tolist() == [True, False, True, False, True]
    assert (out["latents_s"] > 0).tolist() == [False, True, False, True, False]
    nothing = scorer(batch(none, one))
    assert np.isnan(nothing["mse"]).all()
    assert nothing.keys() == out.keys()


def test_rows_say_what_computed_them(scorer: FrameScorer, exact: LatentsConfig, raft: MotionConfig):
    rows = batch(scene(1, 128), scene(2, 128))
    assert scorer(rows)["computed"].tolist() == ["", "latents: cpu float32"]
    both = FrameScorer(exact, raft, cpus=1, gpu=False, keep_frames=False)
    assert both(rows)["computed"].tolist() == ["", "latents: cpu float32, motion: cpu float32"]
    # What an earlier stage has told stays.
    cut = {**rows, "computed": np.array(["motion: vectors"] * 2, object)}
    assert scorer(cut)["computed"].tolist() == ["motion: vectors", "motion: vectors, latents: cpu float32"]


def test_a_batch_that_holds_one_array_of_frames_is_the_same(scorer: FrameScorer):
    scenes = scene(3, seed=1), scene(3, seed=2)
    dense = {**batch(*scenes), "frames": np.stack(scenes)}
    np.testing.assert_array_equal(scorer(dense)["mse"], scorer(batch(*scenes))["mse"])


def test_the_columns_are_the_same_whatever_measured_them(exact: LatentsConfig, raft: MotionConfig):
    rows = batch(scene(2, 128))
    columns = set(rows) - {"frames"}
    for latents, motion in ((exact, None), (exact, raft), (None, raft)):
        assert set(FrameScorer(latents, motion, 1, False, keep_frames=False)(rows)) == columns
    kept = FrameScorer(exact, None, 1, False, keep_frames=True)(rows)
    assert set(kept) == {*columns, "frames"}
    assert kept["frames"] is rows["frames"]


def test_the_argument_is_left_as_it_was(scorer: FrameScorer):
    rows = batch(scene(3))
    scorer(rows)
    assert np.isnan(rows["mse"]).all()
    assert rows["latents_s"].tolist() == [0]


def test_half_precision_stays_close(scorer: FrameScorer, vae_folder: str):
    half = FrameScorer(LatentsConfig(model=vae_folder), None, 1, False, keep_frames=False)
    rows = batch(scene(4, seed=1), scene(3, seed=2))
    for name in LATENTS:
        np.testing.assert_allclose(half(rows)[name], scorer(rows)[name], rtol=0.02, atol=0.002)


@pytest.mark.slow
def test_flow_and_latents_share_a_worker(exact: LatentsConfig, raft: MotionConfig, scorer: FrameScorer):
    scenes = scene(3, 128, 1), np.zeros((0, 128, 128, 3), np.uint8), scene(2, 128, 2)
    both = FrameScorer(exact, raft, cpus=1, gpu=False, keep_frames=False)
    together, alone = both(batch(*scenes)), one_by_one(both, *scenes)
    for name in (*LATENTS, *MOTION):
        assert np.isfinite(together[name]).tolist() == [True, False, True]
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3)
    np.testing.assert_allclose(together["mse"], scorer(batch(*scenes))["mse"], rtol=1e-5)
    assert together["max_velocity"][0] > together["mean_velocity"][0] > 0
    # Of one pair the mean is the maximum.
    assert together["max_velocity"][2] == together["mean_velocity"][2]


def test_speeds_are_lengths_of_the_flow_in_pixels(raft: MotionConfig):
    model = load_raft(raft.weights, "cpu")
    frames = torch.from_numpy(scene(3, 128))
    pixels = frames.permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.inference_mode():
        speeds = raft_speeds(model, frames, np.arange(2), pairs_per_call=1)
        flow = model(pixels[:-1], pixels[1:])[-1]
    assert speeds.dtype == torch.float32
    torch.testing.assert_close(speeds, (flow[:, 0] ** 2 + flow[:, 1] ** 2).sqrt().mean((1, 2)), rtol=1e-3, atol=1e-5)


def test_slow_flow_stays_close_in_bfloat16(raft: MotionConfig):
    """Scenes are dropped as static by their mean velocity, 0.1 pixels a step: there a rounded flow must do, too."""
    models = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_raft(raft.weights, "cpu")
        for parameter in model.update_block.flow_head.conv2.parameters():
            parameter.mul_(0.02)
        models.append(prepared(model, "cpu", dtype))
    with torch.inference_mode():
        exact, rounded = (raft_speeds(model, torch.from_numpy(scene(3, 128)), np.arange(2)) for model in models)
    assert 0.01 < float(exact.min()) < float(exact.max()) < 1
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


def test_weights_are_a_file_or_one_of_torchvisions(raft: MotionConfig, tmp_path: Path):
    check_raft(raft.weights)
    check_raft("C_T_SKHT_V2")
    for wrong in ("C_T_V9", str(tmp_path), str(tmp_path / "none.safetensors"), "random"):
        with pytest.raises(ValueError, match=r"is neither a safetensors file nor one of torchvision's: .*C_T_SKHT_V2"):
            check_raft(wrong)


def test_a_worker_on_a_cpu_keeps_to_its_share(exact: LatentsConfig):
    for cpus, threads in ((2.0, 2), (1.5, 1), (0.25, 1)):
        FrameScorer(exact, None, cpus, gpu=False, keep_frames=False)
        assert torch.get_num_threads() == threads
