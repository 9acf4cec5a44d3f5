"""Images and texts as vectors of one space, by a CLIP model of open_clip: what belongs together has a high cosine."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.core.errors import UserError
from actors.core.loading import loading
from actors.core.stage import Batch, ModelStage
from actors.media.images import Shape
from actors.models.devices import moved, sent, sent_apart
from actors.models.hub import check_hub
from actors.models.memory import weight_bytes, worker_gb
from actors.models.pixels import fitted

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

CONFIG = "open_clip_config.json"
"""What open_clip reads first in a folder or repository of its own."""
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weights that open_clip looks for in a repository which names no file."""
CALL_GB = 0.6
"""Memory of a call on a CPU, in GiB, at most."""
_INSTEAD = f"a folder with its {CONFIG} and weights"


@dataclass(frozen=True)
class EmbeddingsConfig(ModelStage):
    """The CLIP model that embeds images and texts."""

    model: str = "ViT-g-14"
    """A model name of open_clip, hf-hub:ORGANISATION/NAME, or a folder with open_clip_config.json and weights."""
    pretrained: str | None = "laion2b_s12b_b42k"
    """Pretrained weights of a model given by name: a tag of open_clip, or a file; hf-hub: and folders have theirs."""
    batch_size: int = 4
    """Rows of images per call of a worker."""
    images_per_call: int = 0
    """Images or texts per call of the model. 0: 32 on a CPU, 256 on a GPU; lower it where GPU memory is short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1 or self.images_per_call < 0:
            raise UserError(f"workers start at 1, images_per_call at 0: {self}")

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return worker_gb(weights_of(self), call_gb=CALL_GB, num_gpus=self.num_gpus, copied=True)

    @property
    def per_call(self) -> int:
        """Images or texts per call of the model, with 0 resolved."""
        return self.images_per_call or (256 if self.num_gpus > 0 else 32)

    def name(self) -> str:
        """The model, its weights and its precision in one word: embeddings of another one lie in another space."""
        own = _folder(self.model) or self.model.startswith("hf-hub:")
        return ":".join([self.model, *([] if own or not self.pretrained else [self.pretrained]), self.precision])


@dataclass(frozen=True)
class Clip:
    """A model that was loaded, with the preprocessing and the tokenizer that are its own."""

    model: Any
    transform: Any
    tokenizer: Any
    device: str
    dtype: "torch.dtype"
    mean: "torch.Tensor"
    """float32 (3, 1, 1), on the device; with std, what its transform normalises pixels by."""
    std: "torch.Tensor"


def check_clip(config: EmbeddingsConfig, where: str = "embeddings") -> None:
    """Raise UserError where the model cannot be had, before a run begins; loads and downloads no weights.

    where: what the settings are called in messages.
    """
    name, tag, setting = config.model, config.pretrained, f"{where}.model={config.model}"
    if folder := _folder(name):
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{setting} has no weights: put a .safetensors file beside its {CONFIG}")
        return
    if name.startswith(("/", ".", "~", "local-dir:")) or Path(name).is_dir():
        raise UserError(f"{setting}: no {CONFIG} there; give a folder that open_clip has saved")
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        if check_hub(setting, repository, (CONFIG,), _INSTEAD):
            check_hub(setting, repository, WEIGHTS, _INSTEAD)
        return
    # open_clip takes ViT-B/32 for ViT-B-32.
    known, names, weights = name.replace("/", "-"), *registry()
    if known not in names:
        near = ", ".join(get_close_matches(known, names, 3, 0.3))
        raise UserError(f"{setting} is no folder, no hf-hub:... and no name of open_clip; near it: {near}")
    if tag and Path(tag).is_file():
        return
    source = weights.get_pretrained_cfg(known, tag or "")
    if not source:
        tags = ", ".join(weights.list_pretrained_tags_by_model(known)) or "none: give a file"
        raise UserError(f"{where}.pretrained={tag} is no file, and no weights of {name}; it has {tags}")
    if source.get("hf_hub"):
        repository, _, file = source["hf_hub"].rpartition("/")
        files = (f"{file.rpartition('.')[0]}.safetensors", file) if file else WEIGHTS
        check_hub(setting, repository, files, _INSTEAD)


def weights_of(config: EmbeddingsConfig) -> int:
    """Size in bytes of the model's weights; 0 where it is not known."""
    name, tag = config.model, config.pretrained or ""
    if _folder(name) or name.startswith("hf-hub:"):
        return weight_bytes(name)
    if Path(tag).is_file():
        return weight_bytes(tag)
    # Those of others are downloaded from elsewhere.
    repository, _, _file = (
        (registry()[1].get_pretrained_cfg(name.replace("/", "-"), tag) or {}).get("hf_hub", "").rpartition("/")
    )
    return weight_bytes(repository) if repository else 0


@lru_cache(1)
def registry() -> tuple[list[str], Any]:
    """Names of open_clip's models, and its module of pretrained weights, both without importing torch.

    Importing open_clip takes 8 CPU-seconds, too many for saying that a name is misspelled.
    """
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    names = []
    for path in sorted((folder / "model_configs").glob("*.json")):
        if {"embed_dim", "vision_cfg", "text_cfg"} <= json.loads(path.read_bytes()).keys():
            names.append(path.stem)
    # The same file under another package, which does not run that of open_clip.
    package = ModuleType("_open_clip_registry")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    # It asks whether this is installed, and that would import torch; what it says of weights does not depend on it.
    asked, name = sys.modules.get("safetensors.torch"), "safetensors.torch"
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        return names, importlib.import_module(f"{package.__name__}.pretrained")
    finally:
        del sys.modules[name]
        if asked is not None:
            sys.modules[name] = asked


def _folder(model: str) -> Path | None:
    """The folder that a model is, where it is one."""
    folder = Path(model.removeprefix("local-dir:"))
    return folder if (folder / CONFIG).is_file() else None


def input_shape(config: EmbeddingsConfig) -> Shape:
    """What the model takes, told by its configuration: for decoding, without the model."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    own: dict[str, Any] = {}
    if folder := _folder(config.model):
        own = json.loads((folder / CONFIG).read_bytes())
        vision = own["model_cfg"]["vision_cfg"]
    elif config.model.startswith("hf-hub:"):
        from huggingface_hub import hf_hub_download

        own = json.loads(Path(hf_hub_download(config.model.removeprefix("hf-hub:"), CONFIG)).read_bytes())
        vision = own["model_cfg"]["vision_cfg"]
    else:
        known = config.model.replace("/", "-")
        vision = (open_clip.get_model_config(known) or {}).get("vision_cfg", {})
        own = {"preprocess_cfg": get_pretrained_cfg(known, config.pretrained or "")}
    steps = own.get("preprocess_cfg") or {}
    size = vision.get("image_size", 224)
    if not isinstance(size, int):
        raise UserError(f"embeddings.model={config.model} takes images of {size}; give one that takes squares")
    return Shape(
        size,
        mode=steps.get("resize_mode") or "shortest",
        interpolation=steps.get("interpolation") or "bicubic",
        fill=steps.get("fill_color") or 0,
    )


@loading()
def load_clip(config: EmbeddingsConfig, where: str = "embeddings") -> Clip:
    """Load the model, in evaluation mode and channels last, on a GPU where the stage holds one.

    Weights are safetensors where there are any; of others torch reads tensors only, so that they run no code. Raises
    ValueError where the model cannot be loaded, and where it has no weights.
    """
    import open_clip
    import torch
    from open_clip.model import get_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if config.device == "cpu":
        torch.set_num_threads(max(1, int(config.num_cpus)))
    dtype = getattr(torch, config.precision)
    folder = _folder(config.model)
    name = f"local-dir:{folder}" if folder else config.model
    own = name.startswith(("local-dir:", "hf-hub:"))
    try:
        model: Any = open_clip.create_model(
            name,
            None if own else config.pretrained,
            # Layer norms in bfloat16, too: not every model that open_clip has runs otherwise.
            precision="pure_bf16" if dtype == torch.bfloat16 else "fp32",
            device=config.device,
            require_pretrained=True,
            weights_only=True,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{where}.model={config.model} cannot be loaded by open_clip: {error}") from error
    # Its weights keep requires_grad: without it torch copies some for every text of a batch (12 x slower in bfloat16).
    model.to(memory_format=torch.channels_last).eval()
    transform: Any = image_transform_v2(PreprocessCfg(**get_model_preprocess_cfg(model)), is_train=False)
    normalise = transform.transforms[-1]
    mean, std = (torch.tensor(each, device=config.device).view(3, 1, 1) for each in (normalise.mean, normalise.std))
    return Clip(model, transform, tokenizer, config.device, dtype, mean, std)


def preprocess(clip: Clip, images: np.ndarray) -> "torch.Tensor":
    """Images uint8 (N, H, W, 3) RGB as the model takes them: (N, 3, S, S)."""
    return prepared(clip, sent([images], clip.device).permute(0, 3, 1, 2))


def prepared(clip: Clip, pixels: "torch.Tensor") -> "torch.Tensor":
    """What `preprocess` makes of pictures uint8 (N, 3, H, W) that are on the model's device: (N, 3, S, S)."""
    *shape, _to_rgb, _to_tensor, _normalise = clip.transform.transforms
    return fitted(pixels, shape).float().div_(255).sub_(clip.mean).div_(clip.std).to(clip.dtype)


def embed_images(clip: Clip, images: np.ndarray, per_call: int) -> np.ndarray:
    """Vectors of length 1, float32 (N, D), of images uint8 (N, H, W, 3) RGB."""
    return _encode(clip.model.encode_image, preprocess(clip, images), per_call).cpu().numpy()


def embed_texts(clip: Clip, texts: Sequence[str], per_call: int) -> np.ndarray:
    """Vectors of length 1, float32 (N, D); of a text that is longer than the model reads, its beginning counts."""
    return text_vectors(clip, texts, per_call).cpu().numpy()


def scene_vectors(clip: Clip, scenes: Sequence[np.ndarray], per_call: int) -> "torch.Tensor":
    """Vectors of length 1, float32 (sum of T, D) on the device, of the frames of scenes, uint8 (T, H, W, 3) RGB each.

    Scenes may differ in size, what the model takes does not. They go to the device in one copy.
    """
    import torch

    inputs = [prepared(clip, images.permute(0, 3, 1, 2)) for images in sent_apart(scenes, clip.device)]
    return _encode(clip.model.encode_image, torch.cat(inputs), per_call)


def text_vectors(clip: Clip, texts: Sequence[str], per_call: int) -> "torch.Tensor":
    """As `embed_texts`, on the device."""
    return _encode(clip.model.encode_text, moved(clip.tokenizer(list(texts)), clip.device), per_call)


def _encode(encode: Any, inputs: "torch.Tensor", per_call: int) -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        return torch.cat(
            [torch.nn.functional.normalize(encode(part).float(), dim=1) for part in inputs.split(per_call)]
        )


class TextEmbedder:
    """Embed texts.

    Reads:  text  str (N,)
    Adds:   embedding  float32 (N, D), each of length 1
    """

    def __init__(self, config: EmbeddingsConfig) -> None:
        self._config, self._clip = config, load_clip(config)

    def __call__(self, batch: Batch) -> Batch:
        return {**batch, "embedding": embed_texts(self._clip, batch["text"].tolist(), self._config.per_call)}


class FrameEmbedder:
    """Embed frames of scenes, those of all rows of a batch together.

    Reads:  frames  object array (N,), each uint8 (T, H, W, 3) RGB; T = 0 where there are none
    Adds:   embeddings  object array (N,), each float32 (ceil(T / every), D) of frames 0, every, 2 every, ...
    Drops:  frames
    """

    def __init__(self, config: EmbeddingsConfig, every: int = 1) -> None:
        self._config, self._every, self._clip = config, every, load_clip(config)

    def __call__(self, batch: Batch) -> Batch:
        scenes = [frames[:: self._every] for frames in batch["frames"]]
        found = np.zeros((0, 0), np.float32)
        if shown := [scene for scene in scenes if len(scene)]:
            found = scene_vectors(self._clip, shown, self._config.per_call).cpu().numpy()
        embeddings = np.empty(len(scenes), object)
        ends = np.cumsum([len(scene) for scene in scenes])
        for i, end in enumerate(ends):
            embeddings[i] = found[end - len(scenes[i]) : end]
        return {**{name: column for name, column in batch.items() if name != "frames"}, "embeddings": embeddings}


class ImageEmbedder:
    """Embed squares of images.

    Reads:  image  uint8 (N, S, S, 3) RGB, as `input_shape` says
            error  str (N,); rows with an error are left out
    Adds:   vector  float16 (N, D), each of length 1; NaN where there is an error
    Drops:  image
    """

    def __init__(self, config: EmbeddingsConfig) -> None:
        self._config, self._clip = config, load_clip(config)

    def __call__(self, batch: Batch) -> Batch:
        return with_vectors(batch, lambda images: embed_images(self._clip, images, self._config.per_call))


def with_vectors(batch: Batch, embed: Callable[[np.ndarray], np.ndarray]) -> Batch:
    """A batch with the vectors (M, D) that a function gives for the images of its sound rows, in place of images."""
    sound = batch["error"] == ""
    # One black image says how long vectors are where there is no other.
    found = embed(batch["image"][sound] if sound.any() else batch["image"][:1])
    vectors = np.full((len(sound), found.shape[1]), np.nan, np.float16)
    vectors[sound] = found[: sound.sum()]
    return {**{name: column for name, column in batch.items() if name != "image"}, "vector": vectors}
