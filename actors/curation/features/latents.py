"""How far neighbouring frames lie apart in the latent space of a VAE."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.errors import UserError
from actors.core.loading import loading
from actors.core.stage import ModelStage
from actors.models.hub import check_hub
from actors.models.memory import weight_bytes, worker_gb

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

TINY = Path(__file__).parent / "tiny_vae_weights"
"""The encoder that ships with the project; its card says what it was trained on."""


@dataclass(frozen=True)
class LatentsConfig(ModelStage):
    """Which VAE encodes the frames, for mse and cos_sim."""

    model: str = "stabilityai/sdxl-vae"
    """The VAE: any diffusers VAE by its name on the Hugging Face Hub or by path, or `tiny`, the small encoder that
    ships with the project (no download, fastest)."""
    batch_size: int = 4
    """Scenes per call of a worker."""
    frames_per_call: int = 16
    """Frames that the encoder gets at once on a GPU. Lower it where GPU memory is short; CPUs ignore it."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        if self.model == "tiny":
            return 0.0 if self.num_gpus else 0.8
        weights = weight_bytes(self.model) or weight_bytes(self.model, "vae")
        return worker_gb(weights, call_gb=0.7, num_gpus=self.num_gpus)


def check_model(model: str) -> None:
    """Raise UserError where the VAE cannot be had; reads its config.json alone, so that a run can ask first."""
    if model == "tiny" or _folder(Path(model)) is not None:
        return
    if Path(model).exists() or model.startswith(("/", ".", "~")):
        raise UserError(f"latents.model={model}: no config.json there; give a folder that diffusers has saved")
    instead = "a folder that diffusers saved, or latents.model=tiny (the encoder that ships)"
    check_hub(f"latents.model={model}", model, ("config.json", "vae/config.json"), instead)


def _folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "vae") if (folder / "config.json").is_file()), None)


@loading()
def load_vae(model: str, dtype: "torch.dtype", device: str) -> Any:
    """A diffusers VAE in evaluation mode, channels last; raises UserError where it cannot be loaded."""
    import torch

    if model == "tiny":
        from actors.curation.features.tiny_encoder import load

        vae: Any = load(TINY, dtype)
    else:
        from diffusers.models.auto_model import AutoModel

        folder = _folder(Path(model))
        # Other weights are pickles, which may run code.
        how = {"torch_dtype": dtype, "use_safetensors": True}
        try:
            if folder is not None:
                vae = AutoModel.from_pretrained(str(folder), **how)
            else:
                try:
                    vae = AutoModel.from_pretrained(model, **how)
                except (OSError, ValueError):
                    vae = AutoModel.from_pretrained(model, subfolder="vae", **how)
        except (OSError, ValueError) as error:
            raise UserError(f"latents.model={model} cannot be loaded by diffusers: {error}") from error
    if not hasattr(vae, "encode"):
        raise UserError(f"latents.model={model} is a {type(vae).__name__}, not a VAE")
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def encode(vae: Any, frames: "torch.Tensor", frames_per_call: int = 1) -> "torch.Tensor":
    """Latents of frames uint8 (T, H, W, 3): float32 (T, D), the posterior mean where the VAE has one.

    Frames are scaled to [-1, 1], as diffusers' VAEs expect them.
    """
    import torch

    latents = []
    for chunk in frames.split(frames_per_call):
        pixels = chunk.permute(0, 3, 1, 2).to(vae.dtype).div_(127.5).sub_(1)
        out = vae.encode(pixels.contiguous(memory_format=torch.channels_last))
        mean = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        latents.append(mean.float().flatten(1))
    return torch.cat(latents)


def latent_distances(latents: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Mean squared difference and cosine similarity of each neighbouring pair of latents (T, D): two of (T - 1,)."""
    from torch.nn.functional import cosine_similarity

    before, after = latents[:-1], latents[1:]
    return (after - before).square().mean(1), cosine_similarity(before, after)
