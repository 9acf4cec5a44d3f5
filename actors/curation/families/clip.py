"""The family `clip`: how well texts fit the key frames of scenes by CLIP, and how pleasing the frames are."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, ModelStage
from actors.curation.measuring.family import Reads
from actors.models.clip import EmbeddingsConfig, check_clip, load_clip, scene_vectors, text_vectors
from actors.models.devices import moved
from actors.models.hub import check_hub, local_digest

TEXTS = ("caption", "recaption")
HUB = "hf-hub:"


@dataclass(frozen=True)
class ClipConfig(ModelStage):
    """The CLIP model that compares texts with key frames, and the head that rates them."""

    workers: int = 0
    """Workers at once over the whole cluster. 0: as many as CPUs or GPUs allow."""
    batch_size: int = 32
    """Scenes per call of a worker. The model gets all their key frames at once, up to three a scene: lower it where GPU
    memory is short."""
    model: str = "ViT-g-14"
    """A model name of open_clip, hf-hub:ORGANISATION/NAME, or a folder with open_clip_config.json and weights."""
    pretrained: str | None = "laion2b_s12b_b42k"
    """Pretrained weights of a model given by name: a tag of open_clip, or a file; hf-hub: and folders have theirs."""
    aesthetic: str | None = None
    """Head that rates pictures, trained for this model: a .safetensors file, a path, s3:// or
    hf-hub:ORGANISATION/NAME/FILE. null: `aesthetic` is NaN."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return self.embeddings().worker_gb

    def embeddings(self) -> EmbeddingsConfig:
        """The model's part of it."""
        return EmbeddingsConfig(
            model=self.model,
            pretrained=self.pretrained,
            dtype=self.dtype,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )


class ClipScorer:
    """Compare captions with the key frames of scenes, and rate the key frames.

    clip_caption    float32, 0 to 100: CLIPScore of the caption, 100 * max(cos, 0) of the vectors of text and key frame,
                    mean over key frames; NaN without a caption
    clip_recaption  float32, 0 to 100: the same of the recaption
    aesthetic       float32, mostly 1 to 10: what a linear head gives for the vector, of length 1, of a key frame, mean
                    over key frames; NaN where aesthetic=null

    CLIPScore is of Hessel et al. (2021), who have 2.5 instead of 100; the scale is that of `evaluate`. The head is
    LAION's aesthetic predictor or one like it: version 1 (sa_0_4_vit_l_14_linear) is one linear layer, version 2
    (sac+logos+ava1-l14-linearMSE) several without an activation between them, which make one. Both are for OpenAI's
    ViT-L-14 and are published as .pth files: save their tensors as .safetensors under the same names. A head with
    activations between its layers (reluMSE) has the same names and would give wrong values.
    """

    reads: Reads = "keyframes"
    columns: ClassVar[dict[str, pa.DataType]] = {
        "clip_caption": pa.float32(),
        "clip_recaption": pa.float32(),
        "aesthetic": pa.float32(),
    }
    settings = ClipConfig
    texts = True

    def __init__(self, config: ClipConfig) -> None:
        import torch

        self._clip = load_clip(config.embeddings(), "measure.clip")
        self._head = None
        if config.aesthetic:
            weight, bias = load_head(config.aesthetic)
            width = text_vectors(self._clip, [""], 1).shape[1]
            if len(weight) != width:
                raise UserError(
                    f"measure.clip.aesthetic={config.aesthetic} takes vectors of {len(weight)} numbers, and "
                    f"measure.clip.model={config.model} gives {width}. Give a head that was trained for this model."
                )
            self._head = torch.from_numpy(weight).to(config.device), bias

    @staticmethod
    def check(config: ClipConfig) -> None:
        """Raise UserError where the model or the head cannot be had; loads no weights."""
        check_clip(config.embeddings(), "measure.clip")
        head, setting = config.aesthetic, f"measure.clip.aesthetic={config.aesthetic}"
        if head is None:
            return
        if not head.endswith(".safetensors"):
            raise UserError(f"{setting} is no .safetensors file. Save the tensors of the head as one.")
        if head.startswith(HUB):
            check_hub(setting, *_on_hub(head), "a file")
        elif not storage.exists(head):
            raise UserError(f"{setting}: there is no such file")

    @staticmethod
    def identity(config: ClipConfig) -> str:
        """The digest of the weights, wherever they lie, except of those that have a name."""
        head = config.aesthetic
        rates = (
            "" if head is None or head.startswith(HUB) else hashlib.sha256(storage.read_bytes(head)).hexdigest()[:12]
        )
        return local_digest(config.model, config.pretrained) + rates

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """Measure scenes: `frames`, uint8 (1 to 3, H, W, 3) RGB each, and `caption` and `recaption`, "" for none."""
        import torch

        scenes = list(batch["frames"])
        counts = [len(scene) for scene in scenes]
        texts = np.array([batch[name] for name in TEXTS], str)
        # Each once: row 0 is for scenes without one, whose score is overwritten.
        known, places = np.unique(texts, return_inverse=True)
        with torch.inference_mode():
            pictures = scene_vectors(self._clip, scenes, sum(counts))
            found = pictures.new_full((3, len(pictures)), np.nan)
            if known.tolist() != [""]:
                words = text_vectors(self._clip, known.tolist(), len(known))
                rows = moved(
                    torch.from_numpy(np.repeat(places.reshape(texts.shape), counts, axis=1)), self._clip.device
                )
                found[:2] = (words[rows] * pictures).sum(2).clamp_(min=0) * 100
            if self._head:
                weight, bias = self._head
                found[2] = pictures @ weight + bias
            values = found.cpu().numpy()
        means = np.add.reduceat(values, np.cumsum([0, *counts[:-1]]), axis=1) / counts
        means[:2][texts == ""] = np.nan
        return dict(zip(self.columns, means.astype(np.float32), strict=True))


def _on_hub(head: str) -> tuple[str, Sequence[str]]:
    """Repository and file of a head on the Hugging Face Hub."""
    organisation, name, file = [*head.removeprefix(HUB).split("/", 2), "", ""][:3]
    return f"{organisation}/{name}", (file,)


def load_head(uri: str) -> tuple[np.ndarray, float]:
    """Weights float32 (D,) and bias of a head of one or more linear layers without activations, as one layer."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if uri.startswith(HUB):
        from huggingface_hub import hf_hub_download

        repository, (file,) = _on_hub(uri)
        uri = hf_hub_download(repository, file)
    try:
        tensors = load(storage.read_bytes(uri))
        weight, bias = np.ones((1, 1)), np.zeros(1)
        # From the last layer, which gives one number, back to the first.
        for name in sorted((name for name in tensors if tensors[name].ndim == 2), key=_number, reverse=True):
            before = tensors.get(f"{name.removesuffix('weight')}bias", np.zeros(len(tensors[name])))
            weight, bias = weight @ tensors[name].astype(np.float64), bias + weight @ before.astype(np.float64)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"measure.clip.aesthetic={uri} is no head of linear layers: {error}") from error
    return weight[0].astype(np.float32), float(bias[0])


def _number(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]
