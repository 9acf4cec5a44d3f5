"""Vectors of pictures by a frozen network: torchvision's ResNets, trained on ImageNet, or any of timm.

The network sees all of a picture between bars, or its middle; never a picture that was squashed.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.core.loading import loading
from actors.core.stage import Batch, ModelStage
from actors.media.images import Shape
from actors.models.devices import sent
from actors.models.hub import check_host
from actors.models.memory import weight_bytes, worker_gb

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    import torch

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Names that are torchvision's; others are timm's."""
TORCHVISION = "https://download.pytorch.org"
"""Where torchvision has its weights."""
CALL_GB = 0.5
"""Memory of a call on a CPU, in GiB, and of the weights of a ResNet-50, which has no file before it is downloaded."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the pixels that torchvision's networks were trained on."""


@dataclass(frozen=True)
class BackboneConfig(ModelStage):
    """The image network (backbone) and its input."""

    model: str = "resnet50"
    """resnet18 to resnet152 (torchvision), any other name of timm, or a folder with config.json and weights."""
    weights: str | None = None
    """Weights file (.safetensors, or a .pth of tensors only) for a model given by name; null: download its pretrained
    weights."""
    fit: Literal["letterbox", "crop"] = "letterbox"
    """letterbox: the whole image between grey bars; crop: its centre."""
    batch_size: int = 32
    """Images per call of the network."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB; of a network by name the Hub knows the size where timm does not choose the
        weights."""
        weights = weight_bytes(self.weights or (self.model if _folder(self.model) else f"timm/{self.model}"))
        return worker_gb(weights, call_gb=CALL_GB, num_gpus=self.num_gpus)


def check_backbone(config: BackboneConfig) -> None:
    """Raise UserError where there is no such model or file; loads and downloads nothing."""
    name = config.model
    if config.weights and not storage.exists(config.weights):
        raise UserError(f"backbone.weights={config.weights}: there is no such file")
    if folder := _folder(name):
        if config.weights:
            raise UserError(f"backbone.model={name} is a folder with weights of its own: leave backbone.weights out")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"backbone.model={name} has no weights: put model.safetensors beside its config.json")
        return
    if name.startswith(("/", ".", "~")) or Path(name).is_dir():
        raise UserError(f"backbone.model={name}: no config.json there; give a folder as timm saves it")
    if name in RESNETS:
        return
    # As timm takes a name: what stands behind the dot are weights.
    if name.partition(".")[0] not in timm_names():
        near = ", ".join(get_close_matches(name, sorted(timm_names() | {*RESNETS}), 3, 0.3))
        raise UserError(
            f"backbone.model={name} is no folder, no ResNet of torchvision, no name of timm; near it: {near}"
        )


def check_weights(config: BackboneConfig) -> None:
    """Raise UserError where the weights of a network given by name are neither here nor to be had; downloads nothing.

    For commands that have pictures to embed.
    """
    name = config.model
    if config.weights or _folder(name):
        return
    setting, instead = f"backbone.model={name}", "a folder as timm saves it, or backbone.weights=FILE"
    if name in RESNETS:
        # As torch.hub has it, which takes seconds to import.
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        home = os.environ.get("TORCH_HOME") or os.path.join(caches, "torch")
        if not any(Path(home, "hub", "checkpoints").glob(f"{name}-*.pth")):
            check_host(setting, TORCHVISION, instead)
        return
    from huggingface_hub import constants

    # Where a name has no tag, timm has a default one.
    if not any(Path(constants.HF_HUB_CACHE).glob(f"models--timm--{name.partition('.')[0]}*")):
        check_host(setting, constants.ENDPOINT, instead)


@lru_cache(1)
def timm_names() -> frozenset[str]:
    """The names of timm's models, old ones too, as its files register them: to import it takes seconds."""
    # Of the package: to find what is in it would import it.
    spec = find_spec("timm")
    names: set[str] = set()
    for folder in spec.submodule_search_locations or () if spec else ():
        for text in (path.read_text() for path in Path(folder, "models").glob("*.py")):
            names.update(re.findall(r"^@register_model\n(?:@.*\n)*def (\w+)\(", text, re.MULTILINE))
            for block in re.findall(
                r"^register_model_deprecations\(__name__, \{(.*?)\}\)", text, re.MULTILINE | re.DOTALL
            ):
                names.update(re.findall(r"^\s*['\"]([^'\".]+)[^'\"]*['\"]\s*:", block, re.MULTILINE))
    return frozenset(names)


def _folder(model: str) -> Path | None:
    folder = Path(model)
    return folder if (folder / "config.json").is_file() else None


def _timm(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """The name that timm takes, and what the model expects of its input."""
    import timm
    from timm.data.config import resolve_data_config

    if folder := _folder(config.model):
        about = json.loads((folder / "config.json").read_bytes())
        return f"local-dir:{folder}", resolve_data_config(pretrained_cfg=about.get("pretrained_cfg", about))
    known = timm.get_pretrained_cfg(config.model)
    return config.model, resolve_data_config(pretrained_cfg=known.to_dict() if known else {})


def input_shape(config: BackboneConfig) -> Shape:
    """What the network takes, told without loading it."""
    mode = "longest" if config.fit == "letterbox" else "shortest"
    if config.model in RESNETS:
        return Shape(224, mode=mode, interpolation="bilinear", fill=116)
    expects = _timm(config)[1]
    size = expects["input_size"][-1]
    how = expects["interpolation"] if expects["interpolation"] in ("bicubic", "bilinear") else "bicubic"
    return Shape(size, mode=mode, interpolation=how, fill=round(255 * sum(expects["mean"]) / 3))


@lru_cache(maxsize=4)
def digest(path: str) -> str:
    """The beginning of a file's SHA-256, which tells weights apart."""
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()[:12]


def name(config: BackboneConfig) -> str:
    """The network, its weights and what it sees, in one word: vectors of another one lie in another space."""
    known, file = [config.model], config.weights
    if folder := _folder(config.model):
        # Wherever it lies, and whatever it is called.
        known, file = [], str(min(folder.glob("*.safetensors")))
    return ":".join([*known, *([digest(file)] if file else []), config.fit, config.precision])


@loading()
def load_backbone(config: BackboneConfig) -> tuple[Any, tuple[Any, Any]]:
    """The network without its last layer, in evaluation mode, and the mean and deviation of the pixels it takes.

    It gives float (N, D) of pictures (N, 3, S, S). Raises ValueError where it cannot be loaded, or has no weights.
    """
    import torch
    from safetensors import SafetensorError

    if config.device == "cpu":
        torch.set_num_threads(max(1, int(config.num_cpus)))
    try:
        if config.model in RESNETS:
            from torchvision import models

            model: Any = models.get_model(config.model, weights=None)
            classifier, pixels = "fc.", IMAGENET
            own: Any = models.get_model_weights(config.model)
            if config.weights:
                state = _weights(config.weights)
            else:
                state = own.DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
            _fill(model, state, classifier)
            model.fc = torch.nn.Identity()
        else:
            import timm

            known, expects = _timm(config)
            pixels = expects["mean"], expects["std"]
            model = timm.create_model(known, pretrained=config.weights is None)
            if config.weights:
                _fill(model, _weights(config.weights), *_classifiers(model))
            model.reset_classifier(0)
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(
            f"backbone.model={config.model} cannot be loaded ({str(error).partition(chr(10))[0]}); give a folder as "
            "timm saves it, backbone.weights=FILE, or check the name and the network"
        ) from error
    model = model.to(config.device, getattr(torch, config.precision), memory_format=torch.channels_last)
    return model.eval().requires_grad_(False), pixels


def check_loads(config: BackboneConfig) -> None:
    """Raise UserError where the network cannot be loaded, or has no weights.

    Loads it as a driver may, which has no GPU where its workers have one.
    """
    load_backbone(replace(config, num_gpus=0.0))


def _classifiers(model: Any) -> tuple[str, ...]:
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _weights(path: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    with storage.local(path) as file:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _fill(model: Any, state: dict[str, Any], *classifiers: str) -> None:
    """Load weights; those of the last layer may have another size or be missing, since it is left out."""
    kept = {key: value for key, value in state.items() if not key.startswith(classifiers)}
    problems = model.load_state_dict(kept, strict=False)
    missing = [key for key in problems.missing_keys if not key.startswith(classifiers)]
    if missing or problems.unexpected_keys:
        wrong = ", ".join([*missing, *problems.unexpected_keys][:3])
        raise UserError(f"these are the weights of another model: {wrong}")


class Backbone:
    """Give the vector of each picture.

    Reads:  image  uint8 (N, S, S, 3) RGB, as `input_shape` says
            error  str (N,); rows with an error are left out
    Adds:   vector  float16 (N, D); NaN where there is an error
    Drops:  image
    """

    def __init__(self, config: BackboneConfig) -> None:
        import torch

        self._model, pixels = load_backbone(config)
        self._device = config.device
        self._dtype = getattr(torch, config.precision)
        self._mean, self._scale = (torch.tensor(x, device=self._device).view(1, 3, 1, 1) for x in pixels)
        self._shape = input_shape(config)
        with torch.inference_mode():
            size = self._shape.size
            self.width = self._forward(np.zeros((1, size, size, 3), np.uint8)).shape[1]

    def _forward(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pixels = sent([images], self._device).permute(0, 3, 1, 2)
            return self.embed(pixels).cpu().numpy().astype(np.float16)

    def prepared(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Pictures uint8 (N, 3, H, W) on the model's device as the squares that it takes: `square` for many at once."""
        from torch.nn.functional import pad
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        height, width = pixels.shape[2:]
        shape = self._shape
        width, height = shape.scaled(width, height)
        pixels = resize(pixels, [height, width], InterpolationMode(shape.interpolation))
        across, down = max(0, shape.size - width), max(0, shape.size - height)
        sides = [across // 2, across - across // 2, down // 2, down - down // 2]
        pixels = pad(pixels, sides, value=shape.fill)
        top, left = (round((side - shape.size) / 2) for side in pixels.shape[2:])
        return pixels[:, :, top : top + shape.size, left : left + shape.size]

    def embed(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Vectors float32 (N, D) of pictures (N, 3, S, S) of 0 to 255 on the model's device, in inference mode."""
        x = ((pixels.float().div(255) - self._mean) / self._scale).to(self._dtype)
        return self._model(x).float()

    def __call__(self, batch: Batch) -> Batch:
        sound = batch["error"] == ""
        vectors = np.full((len(sound), self.width), np.nan, np.float16)
        if sound.any():
            vectors[sound] = self._forward(np.ascontiguousarray(batch["image"][sound]))
        return {**{name: column for name, column in batch.items() if name != "image"}, "vector": vectors}
