"""The family `safety`: what an image classifier of one's own says of the key frames of scenes."""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Batch, ModelStage
from actors.curation.measuring.family import Reads
from actors.models.devices import sent_apart
from actors.models.hub import check_hub, first_line, local_digest
from actors.models.memory import weight_bytes, worker_gb
from actors.models.pixels import fitted

if TYPE_CHECKING:
    import torch

INSTEAD = "a folder that transformers or timm saved"
GIVE = f"Give {INSTEAD}, with config.json and safetensors, or its name on the Hugging Face Hub"


@dataclass(frozen=True)
class SafetyConfig(ModelStage):
    """The image classifier."""

    workers: int = 0
    """Workers at once over the whole cluster. 0: as many as CPUs or GPUs allow."""
    batch_size: int = 32
    """Scenes per call of a worker. The model gets all their key frames at once, up to three a scene: lower it where GPU
    memory is short."""
    model: str | None = None
    """Image classifier of transformers or timm: a folder with config.json and safetensors, or ORGANISATION/NAME on the
    Hugging Face Hub. None ships with the project."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return worker_gb(weight_bytes(self.model or ""), call_gb=0.9, num_gpus=self.num_gpus)


class SafetyScorer:
    """Classify the key frames of scenes, with any classifier: for nudity, violence, or anything else.

    safety_<label>  float32, 0 to 1: probability of a label of the model, greatest over key frames. Labels are in lower
                    case, with _ for what is no letter or digit; those without a name have numbers.

    The probabilities of a picture add up to 1 (softmax), unless the model says that labels do not exclude each other
    (transformers' multi_label_classification) or has one label: then each is by itself (sigmoid). Greatest over key
    frames means that they do not add up to 1 over a scene.
    """

    reads: Reads = "keyframes"
    columns: dict[str, pa.DataType]
    settings = SafetyConfig

    def __init__(self, config: SafetyConfig) -> None:
        import torch

        self.check(config)
        if config.device == "cpu":
            torch.set_num_threads(max(1, int(config.num_cpus)))
        name = str(config.model)
        load = _transformers if _library(_config(name)) == "transformers" else _timm
        try:
            model, labels, self._exclusive, self._prepare, (mean, std) = load(name)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"measure.safety.model={config.model} cannot be loaded ({first_line(error)}). {GIVE}."
            ) from error
        self._device, self._dtype = config.device, getattr(torch, config.precision)
        self._model = (
            model.to(self._device, self._dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
        )
        self._mean, self._std = (torch.tensor(x, device=self._device).view(1, 3, 1, 1) for x in (mean, std))
        self.columns = dict.fromkeys(column_names(labels), pa.float32())

    @staticmethod
    def check(config: SafetyConfig) -> None:
        """Raise UserError where the model cannot be had; reads its config.json alone."""
        if not config.model:
            raise UserError(f"measure.safety.model=null: no classifier ships with the project. {GIVE}.")
        setting = f"measure.safety.model={config.model}"
        if not (Path(config.model) / "config.json").is_file():
            if Path(config.model).exists() or config.model.startswith(("/", ".", "~")):
                raise UserError(f"{setting}: no config.json there. {GIVE}.")
            if not check_hub(setting, config.model, ("config.json",), INSTEAD):
                return
        library = _library(_config(config.model))
        if not library:
            raise UserError(f"{setting} is no image classifier of transformers or timm. {GIVE}.")
        if not importlib.util.find_spec(library):
            raise UserError(f'{setting} needs the extra `{library}`: pip install -c constraints.txt -e ".[{library}]"')

    @staticmethod
    def identity(config: SafetyConfig) -> str:
        """The digest of settings and weights in a local folder."""
        return local_digest(config.model)

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """Measure scenes: `frames`, uint8 (1 to 3, H, W, 3) RGB each."""
        import torch

        scenes = list(batch["frames"])
        with torch.inference_mode():
            shown = [self._prepare(one.permute(0, 3, 1, 2)) for one in sent_apart(scenes, self._device)]
            pixels = torch.cat(shown).float().div_(255).sub_(self._mean).div_(self._std).to(self._dtype)
            found = self._model(pixels.contiguous(memory_format=torch.channels_last))
            logits = getattr(found, "logits", found).float()
            values = (logits.softmax(1) if self._exclusive else logits.sigmoid()).cpu().numpy()
        greatest = np.maximum.reduceat(values, np.cumsum([0, *map(len, scenes[:-1])]))
        return dict(zip(self.columns, greatest.T, strict=True))


Prepare = Callable[["torch.Tensor"], "torch.Tensor"]
Loaded = tuple[Any, list[str], bool, Prepare, tuple[Sequence[float], Sequence[float]]]
"""A model, its labels, whether they exclude each other, what brings pictures uint8 (N, 3, H, W) to its size, and the
mean and deviation of its pixels, which are 0 to 1."""


def _config(model: str) -> dict[str, Any]:
    path = Path(model) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, "config.json"))
    return json.loads(path.read_bytes())


def _library(about: dict[str, Any]) -> str | None:
    """Whose model a config.json describes."""
    classes = about.get("architectures") or []
    if any(name.endswith("ForImageClassification") for name in classes):
        return "transformers"
    return "timm" if "architecture" in about else None


def _transformers(model: str) -> Loaded:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    # Other weights are pickles, which may run code.
    loaded: Any = AutoModelForImageClassification.from_pretrained(model, use_safetensors=True)
    processor: Any = AutoImageProcessor.from_pretrained(model, backend="torchvision")
    settings = loaded.config
    labels = [settings.id2label[number] for number in range(settings.num_labels)]
    exclusive = settings.num_labels > 1 and settings.problem_type != "multi_label_classification"

    def prepare(pixels: "torch.Tensor") -> "torch.Tensor":
        return processor(pixels, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]

    mean, std = (0.0,) * 3, (1.0,) * 3
    if getattr(processor, "do_normalize", False):
        mean, std = processor.image_mean, processor.image_std
    return loaded, labels, exclusive, prepare, (mean, std)


def _timm(model: str) -> Loaded:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    folder = Path(model)
    name = f"local-dir:{folder}" if (folder / "config.json").is_file() else f"hf-hub:{model}"
    loaded: Any = timm.create_model(name, pretrained=True)
    expects = resolve_data_config(pretrained_cfg=loaded.pretrained_cfg)
    steps: Any = create_transform(**expects, is_training=False)
    names = loaded.pretrained_cfg.get("label_names") or range(loaded.num_classes)
    labels = [str(names[number]) for number in range(loaded.num_classes)]
    # Its last two make a tensor of it and normalise that.
    shape = steps.transforms[:-2]
    return loaded, labels, len(labels) > 1, lambda pixels: fitted(pixels, shape), (expects["mean"], expects["std"])


def column_names(labels: Sequence[str]) -> list[str]:
    """A column for each label; those that would have the same name get the number of the label behind it."""
    plain = [re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") for label in labels]
    return [
        f"safety_{name if name and plain.count(name) == 1 else f'{name}_{number}'.lstrip('_')}"
        for number, name in enumerate(plain)
    ]
