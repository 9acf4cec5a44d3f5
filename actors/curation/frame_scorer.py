"""The features that need a model, measured where the model lives: latents, and RAFT's flow beside them."""

from time import perf_counter

import numpy as np

from actors.core.computed import COMPUTED, joined
from actors.core.stage import Batch
from actors.curation.latents import LatentsConfig, encode, latent_distances, load_vae
from actors.curation.motion import MotionConfig
from actors.curation.raft import load_raft, raft_precision, raft_speeds


class FrameScorer:
    """Measure what needs a model on the frames of scenes; one worker may hold a VAE, RAFT or both.

    Reads:  frames  object array (N,), each uint8 (T, H, W, 3) RGB; T < 2 where there is nothing to measure
    Adds:   mse, cos_sim  float32 (N,): means over neighbouring pairs, where it holds a VAE
            max_velocity, mean_velocity  float32 (N,): pixels per step, where it holds RAFT
            latents_s  float32 (N,): seconds spent on the row
            computed  str (N,): what is stored there, and device and precision of each model that has measured the row
    Drops:  frames, unless a later stage needs them
    Rows without frames keep what they had. Frames reach the device once for both.
    """

    def __init__(
        self, latents: LatentsConfig | None, motion: MotionConfig | None, cpus: float, gpu: bool, keep_frames: bool
    ) -> None:
        import torch

        self._keep_frames = keep_frames
        self._device = "cuda" if gpu else "cpu"
        if not gpu:
            torch.set_num_threads(max(1, int(cpus)))
        self._vae = self._raft = None
        self._computed: list[str] = []
        if latents is not None:
            self._vae = load_vae(latents.model, getattr(torch, latents.precision), self._device)
            self._frames_per_call = latents.frames_per_call if gpu else 1
            self._computed.append(f"latents: {self._device} {latents.precision}")
        if motion is not None:
            self._raft = load_raft(motion.weights, self._device)
            self._computed.append(f"motion: {self._device} {raft_precision(self._device)}")

    def __call__(self, batch: Batch) -> Batch:
        import torch

        names = (["mse", "cos_sim"] if self._vae else []) + (["max_velocity", "mean_velocity"] if self._raft else [])
        added = {name: np.array(batch[name], np.float32) for name in (*names, "latents_s")}
        added[COMPUTED] = np.array(batch.get(COMPUTED, [""] * len(batch["frames"])), object)
        rows = [i for i, frames in enumerate(batch["frames"]) if len(frames) >= 2]
        if rows:
            with torch.inference_mode():
                self._measure(batch, rows, names, added)
        kept = {name: column for name, column in batch.items() if self._keep_frames or name != "frames"}
        return {**kept, **added}

    def _measure(self, batch: Batch, rows: list[int], names: list[str], added: Batch) -> None:
        import torch

        started = perf_counter()
        sizes = [len(batch["frames"][i]) for i in rows]
        frames = torch.from_numpy(np.concatenate([batch["frames"][i] for i in rows])).to(self._device)
        # The last frame of a scene and the first of the next are neighbours in the batch but no pair.
        inside = torch.ones(len(frames) - 1, dtype=torch.bool, device=self._device)
        inside[np.cumsum(sizes)[:-1] - 1] = False
        pairs = [size - 1 for size in sizes]
        if self._vae is not None:
            for name, values in zip(
                names, latent_distances(encode(self._vae, frames, self._frames_per_call)), strict=False
            ):
                added[name][rows] = [float(scene.mean()) for scene in values[inside].split(pairs)]
        if self._raft is not None:
            speeds = raft_speeds(self._raft, frames[:-1][inside], frames[1:][inside]).split(pairs)
            added["max_velocity"][rows] = [float(scene.max()) for scene in speeds]
            added["mean_velocity"][rows] = [float(scene.mean()) for scene in speeds]
        for row in rows:
            added[COMPUTED][row] = joined(added[COMPUTED][row], *self._computed)
        added["latents_s"][rows] += (perf_counter() - started) * np.array(sizes) / sum(sizes)
