"""Names and files of movie characters, as other tools rely on them.

Ann_3/             an identity, one learned representation of the class Ann
  target_embeddings.safetensors, optimized_embeddings.safetensors   float32 (1, S, d), or .pt as the reference has;
                                      S: tokens (77 of a StableDiffusion), and below them the pooled text, if any
  target_text.txt                     the prompt
  pytorch_lora_weights.safetensors    a LoRA of the network, where one was trained
  unet/ and a diffusers pipeline      a UNet of its own, where one was trained
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from actors.core import storage
from actors.core.errors import UserError
from actors.movie_characters.names import class_of
from actors.movie_characters.personalise_settings import DONE

TARGET, OPTIMIZED = "target_embeddings", "optimized_embeddings"
TEXT = "target_text.txt"
LORA = "pytorch_lora_weights.safetensors"
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types of tensors in files of safetensors, as numpy reads them; it has no bfloat16."""


@dataclass(frozen=True)
class Learnt:
    """An identity as it lies in its folder."""

    name: str
    target: np.ndarray | None
    """float32 (S, d): the embedding of the prompt, where it is stored."""
    optimized: np.ndarray
    """float32 (S, d): the trained embedding."""
    text: str
    """The prompt, "" where it is not stored."""
    lora: str
    """The file of its LoRA, "" where it has none."""
    unet: str
    """The folder of its UNet, "" where it has none of its own."""
    weights: str
    """What changes with the files of LoRA and UNet: their names and sizes, and the bytes of the LoRA."""
    base: dict[str, Any] | None = None
    """The model that it was trained on, as `bases` records it; None where that is not recorded."""

    def check(self, alpha: float) -> None:
        """Raise UserError where `blend` needs the embedding of the prompt, which is neither stored nor computable."""
        if alpha and self.target is None and not self.text:
            raise UserError(f"{self.name} has neither {TARGET} nor {TEXT}, and alpha={alpha} needs one of them")

    def blend(self, alpha: float, embed: Callable[[str], np.ndarray]) -> np.ndarray:
        """alpha · target + (1 - alpha) · optimised, float32 (S, d); `embed` embeds the prompt where that is missing.

        Raises ValueError where a target is needed and can be had in neither way.
        """
        if alpha == 0:
            return self.optimized
        self.check(alpha)
        target = embed(self.text) if self.target is None else self.target
        return (alpha * target + (1 - alpha) * self.optimized).astype(np.float32)


def find_learnt(root: str, setting: str) -> list[Learnt]:
    """The identities below a folder, by name; raises UserError where there are none or one cannot be read."""
    folders: dict[str, dict[str, storage.Entry]] = defaultdict(dict)
    root = storage.absolute(root)
    for entry in storage.listing(root):
        name, slash, rest = entry.name.partition("/")
        if slash:
            folders[name][rest] = entry
    found = []
    for name, files in sorted(folders.items()):
        optimized = _embedding(name, files, OPTIMIZED)
        if optimized is None:
            continue
        class_of(name)
        unet = [rest for rest in files if rest.startswith("unet/")]
        sizes = ":".join(f"{rest} {files[rest].size}" for rest in sorted(unet))
        lora = files[LORA].uri if LORA in files else ""
        weights = hashlib.sha256(sizes.encode() + (storage.read_bytes(lora) if lora else b"")).hexdigest()
        text = storage.read_bytes(files[TEXT].uri).decode().strip() if TEXT in files else ""
        own = storage.join(root, name, "unet") if unet else ""
        about = json.loads(storage.read_bytes(files[DONE].uri)) if DONE in files else {}
        target = _embedding(name, files, TARGET)
        found.append(Learnt(name, target, optimized, text, lora, own, weights, about.get("base")))
    if not found:
        raise UserError(f"{setting}={root} holds no identities: folders CLASS_NUMBER with {OPTIMIZED}.safetensors")
    widths = {one.optimized.shape for one in found}
    if len(widths) > 1:
        raise UserError(f"{setting}={root}: embeddings of several shapes, {widths}: they are of different models")
    return found


def _embedding(name: str, files: dict[str, storage.Entry], which: str) -> np.ndarray | None:
    """An embedding float32 (S, d), None where there is none."""
    entry = next((files[file] for end in (".safetensors", ".pt") if (file := which + end) in files), None)
    if entry is None:
        return None
    found = read_embedding(storage.read_bytes(entry.uri), entry.uri)
    if found.ndim != 3 or len(found) != 1:
        raise UserError(f"{entry.uri} has the shape {found.shape}, and an embedding has (1, S, d)")
    return found[0]


def read_embedding(data: bytes, uri: str) -> np.ndarray:
    """The tensor of a file, float32: safetensors, or .pt, of which tensors only are read, so that it runs no code.

    Raises ValueError for other files.
    """
    return _of_torch(data, uri) if uri.endswith(".pt") else _of_safetensors(data, uri)


def _of_safetensors(data: bytes, uri: str) -> np.ndarray:
    # Not by torch, whose import takes seconds that a refusal need not cost.
    try:
        about = next(about for _, about in deserialize(data))
        dtype = _FLOATS[about["dtype"]]
    except (SafetensorError, StopIteration, KeyError) as error:
        raise UserError(f"{uri} holds no tensor that may be read: {str(error) or 'it is empty'}") from error
    found = np.frombuffer(about["data"], dtype).reshape(about["shape"])
    # bfloat16 is the upper half of a float32.
    return (found.astype(np.uint32) << 16).view(np.float32) if dtype == "<u2" else found.astype(np.float32)


def _of_torch(data: bytes, uri: str) -> np.ndarray:
    import pickle

    import torch

    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # Of damage torch's reader says whatever Python says.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{uri} holds no tensor that may be read: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(found, torch.Tensor):
        raise UserError(f"{uri} holds a {type(found).__name__}, not one tensor")
    return found.detach().float().numpy()


def write_embedding(embedding: np.ndarray, *where: str) -> None:
    """Write an embedding float32 (1, S, d) as <root>/<name>/<which>.safetensors; where: root, name, which."""
    from safetensors.numpy import save

    root, name, which = where
    storage.write_bytes(storage.join(root, name, f"{which}.safetensors"), save({which: embedding}))
