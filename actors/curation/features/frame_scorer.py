"""The features that need a model, measured where the model lives: latents, and RAFT's flow beside them."""

from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from actors.core.computed import COMPUTED, joined
from actors.core.stage import Batch
from actors.curation.features.latents import LatentsConfig, encode, latent_distances, load_vae
from actors.curation.features.motion import MotionConfig
from actors.curation.features.raft import load_raft, raft_precision, raft_speeds
from actors.models.devices import sent

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

PAIRS_PER_CALL = {"cpu": 8, "cuda": 64}
"""Pairs of frames that RAFT gets at once: a GPU waits for the next operation with fewer."""


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
        # On a GPU two batches are under way: one is prepared and sent while the other is computed.
        self._turn, self._finished = Lock(), 0.0

    def __call__(self, batch: Batch) -> Batch:
        names = (["mse", "cos_sim"] if self._vae else []) + (["max_velocity", "mean_velocity"] if self._raft else [])
        added = {name: np.array(batch[name], np.float32) for name in (*names, "latents_s")}
        added[COMPUTED] = np.array(batch.get(COMPUTED, [""] * len(batch["frames"])), object)
        rows = [i for i, frames in enumerate(batch["frames"]) if len(frames) >= 2]
        if rows:
            self._measure(batch, rows, added)
        kept = {name: column for name, column in batch.items() if self._keep_frames or name != "frames"}
        return {**kept, **added}

    def _measure(self, batch: Batch, rows: list[int], added: Batch) -> None:
        import torch

        started = perf_counter()
        scenes = [batch["frames"][i] for i in rows]
        sizes = [len(scene) for scene in scenes]
        # The last frame of a scene and the first of the next are neighbours in the batch but no pair.
        pairs = np.delete(np.arange(sum(sizes) - 1), np.cumsum(sizes)[:-1] - 1)
        with torch.inference_mode():
            frames = sent(scenes, self._device)
            with self._turn:
                values = self._of_pairs(frames, pairs)
            # One copy for all; the next batch is queued on a GPU meanwhile.
            found = values.cpu().numpy()
        with self._turn:
            began, self._finished = max(started, self._finished), perf_counter()
            added["latents_s"][rows] += (self._finished - began) * np.array(sizes) / sum(sizes)
        of_scenes = np.split(found, np.cumsum(np.array(sizes) - 1)[:-1], axis=1)
        if self._vae is not None:
            added["mse"][rows], added["cos_sim"][rows] = np.array([one[:2].mean(1) for one in of_scenes]).T
        if self._raft is not None:
            added["max_velocity"][rows] = [one[-1].max() for one in of_scenes]
            added["mean_velocity"][rows] = [one[-1].mean() for one in of_scenes]
        for row in rows:
            added[COMPUTED][row] = joined(added[COMPUTED][row], *self._computed)

    def _of_pairs(self, frames: "torch.Tensor", pairs: np.ndarray) -> "torch.Tensor":
        """Of each pair what the models measure, float32 (1 to 3, P): mse, cos_sim, speed."""
        import torch

        values = []
        if self._vae is not None:
            where = sent([pairs], self._device)
            latents = encode(self._vae, frames, self._frames_per_call)
            values += [of_all[where] for of_all in latent_distances(latents)]
        if self._raft is not None:
            values.append(raft_speeds(self._raft, frames, pairs, PAIRS_PER_CALL[self._device]))
        return torch.stack(values)
