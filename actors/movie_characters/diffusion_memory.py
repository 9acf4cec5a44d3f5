"""Memory of workers that hold a diffusion model, for what Ray reserves of a node."""

from dataclasses import dataclass, fields
from typing import Literal

from actors.core.stage import Stage
from actors.models.memory import weight_bytes, worker_gb
from actors.movie_characters.diffusion import DiffusionConfig

NETWORKS, VAE, TEXTS = ("unet", "transformer"), ("vae",), ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders of a model's parts."""
Work = Literal["predict", "draw", "train"]
PIXELS = 512 * 512
"""Size of the pictures for which memory of calls was measured."""
VAE_GB = 1.2
"""Of drawing such a picture on a CPU."""
EVALUATION_GB, UNET_BYTES = 0.32, 3.44e9
"""Of one of the evaluations in a call, by the UNet of Stable Diffusion 1, and that one's size in float32. Of others it
grows with their width, as the square root of their size."""


@dataclass(frozen=True)
class HoldingConfig(DiffusionConfig):
    """The same workers, and what they hold."""

    model: str = ""
    """The model, as its commands name it."""
    pixels: int = PIXELS
    """Pixels of a picture."""
    work: Work = "predict"
    """What a call does; predict: `evaluations_per_call` times. What training takes beside the model was not
    measured."""
    texts: bool = False
    """Whether text encoders stay beside it."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        network = sum(weight_bytes(self.model, part) for part in NETWORKS)
        others = [weight_bytes(self.model, part) for part in (*VAE, *(TEXTS if self.texts else ()))]
        predict = self.evaluations_per_call * EVALUATION_GB * (network / UNET_BYTES) ** 0.5
        call = {"predict": predict, "draw": VAE_GB, "train": 0.0}[self.work] * self.pixels / PIXELS
        return worker_gb(network, *others, call_gb=call, num_gpus=self.num_gpus)


def holding(config: DiffusionConfig, model: str, pixels: int, work: Work = "predict", texts: bool = False) -> Stage:
    """Settings of workers with what each holds."""
    own = {one.name: getattr(config, one.name) for one in fields(config)}
    return HoldingConfig(**own, model=model, pixels=pixels, work=work, texts=texts)
