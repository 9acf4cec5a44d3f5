"""Weights of backbones and heads from files of several kinds, as safetensors with the names of ours.

.safetensors files are taken as they are. Others (.ckpt, .pth) are read by PyTorch's loader of weights only: what else
is in them, such as settings of PyTorch Lightning, becomes an object without behaviour, and no code of theirs is run.

Names of ours: `backbone.*`, and `head.*` for the projection head of stage 1; both below `face.` and `body.` where these
have networks of their own. Names of the reference (gsoykan/comic_char_reid): `model.convnet.*` of stage 1,
`backbone_face.convnet.*`, `backbone_body.convnet.*` and `id_net.*` of stage 2, where `convnet.fc` is the projection.
"""

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from actors.comic_characters.crops import Kind
from actors.comic_characters.network_settings import KINDS
from actors.comic_characters.weights import network_of
from actors.core import storage
from actors.core.checkpoints import Tensors, below
from actors.core.errors import UserError

Weights = str | Mapping[Kind, str]
"""A file, or one for faces and one for bodies."""
PICKLED = (".ckpt", ".pth", ".pt")
FUSIONS = {
    "sum": "sum",
    "cat": "cat",
    "favor_face": "favor_face",
    "favor_body": "favor_body",
    "weighted_sum": "weighted_dimensions",
}
"""Fusions of the reference that ours compute alike, by its names."""


def is_checkpoint(uri: str) -> bool:
    """Whether a file is named as a checkpoint of PyTorch."""
    return uri.lower().endswith(PICKLED)


def read_backbone(weights: Weights) -> bytes:
    """The weights of a backbone as safetensors. Raises UserError where a file has none, FileNotFoundError."""
    if isinstance(weights, str):
        if not is_checkpoint(weights):
            return storage.read_bytes(weights)
        return _saved(_backbone(weights))
    from safetensors.torch import load

    tensors: Tensors = {}
    for kind, uri in weights.items():
        found = load(storage.read_bytes(uri)) if not is_checkpoint(uri) else _backbone(uri)
        own = below(kind, found) or found
        own = {key if key.startswith(("backbone.", "head.")) else f"backbone.{key}": own[key] for key in own}
        tensors |= {f"{kind}.{key}": value for key, value in own.items()}
    return _saved(tensors)


def read_head(uri: str) -> bytes:
    """The weights of the head of stage 2 as safetensors. Raises UserError where a file has none, FileNotFoundError."""
    if not is_checkpoint(uri):
        return storage.read_bytes(uri)
    content = _read(uri)
    about, state = _stage_2(content, uri), content["state_dict"]
    head = {"linear.weight": state["id_net.1.weight"], "linear.bias": state["id_net.1.bias"]}
    if about["fusion"] == "weighted_dimensions":
        head["weights"] = state["fusion_model.weights"].T
    return _saved(head)


def settings_of_checkpoint(uri: str) -> dict[str, Any]:
    """The settings that vectors of a stage 2 checkpoint of the reference depend on, as a tree."""
    about = _stage_2(_read(uri), uri)
    found = _backbone(uri)
    shared = not any(key.startswith("face.") for key in found)
    own = found if shared else below("face", found)
    name = network_of({key.removeprefix("backbone."): tuple(tensor.shape) for key, tensor in own.items()})
    backbone = {"name": name, "face_size": 96, "body_size": 128, "shared": shared, "projection": "head.0.weight" in own}
    head = {"fusion": about["fusion"], "padding": "zero", "dimensions": about["dimensions"]}
    return {"backbone": backbone, "fine_tune": {"head": head}}


class _Inert:
    """What stands for other classes and functions of a checkpoint: whatever they are given, a dictionary comes of it.

    A dictionary, because the settings of Lightning are of a class of dictionaries.
    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def _read(uri: str) -> dict[str, Any]:
    import pickle

    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    data = storage.read_bytes(uri)
    try:
        others: Any = [(_Inert, name) for name in get_unsafe_globals_in_checkpoint(io.BytesIO(data))]
        with safe_globals(others):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise UserError(f"{uri} is no checkpoint whose weights can be read without running its code: {why}") from error
    if not isinstance(found, dict):
        raise UserError(f"{uri} holds a {type(found).__name__}, not weights by name")
    return found if "state_dict" in found else {"state_dict": found}


def _backbone(uri: str) -> Tensors:
    state = _read(uri)["state_dict"]
    if one := below("model", state):
        return _network(below("convnet", one) or one)
    both = {kind: _network(below(f"backbone_{kind}.convnet", state)) for kind in KINDS}
    both = {kind: tensors for kind, tensors in both.items() if tensors}
    if len(both) == 2:
        face, body = both["face"], both["body"]
        if face.keys() == body.keys() and all(bool((face[key] == body[key]).all()) for key in face):
            return face
        return {f"{kind}.{key}": value for kind, tensors in both.items() for key, value in tensors.items()}
    if both:
        # A model that takes only one part has no other network.
        return next(iter(both.values()))
    if "conv1.weight" not in state:
        raise UserError(
            f"{uri} holds no network: neither model.convnet, backbone_face.convnet nor the names of a ResNet, but "
            f"{', '.join(sorted(state)[:3])}"
        )
    return _network(state)


def _network(convnet: Tensors) -> Tensors:
    """A ResNet with the projection head in its `fc` by our names; other layers in `fc` are left out."""
    found = {f"backbone.{key}": value for key, value in convnet.items() if not key.startswith("fc.")}
    head = below("fc", convnet)
    if "1.running_mean" in head and "3.weight" in head:
        if (bias := head.pop("0.bias", None)) is not None:
            # Ours has no bias before batch norm, which subtracts the mean anyway.
            head["1.running_mean"] = head["1.running_mean"] - bias
        found |= {f"head.{key}": value for key, value in head.items()}
    return found


def _stage_2(content: dict[str, Any], uri: str) -> dict[str, Any]:
    """fusion and dimensions of a stage 2 checkpoint. Raises UserError where ours would not give the same vectors."""
    state, about = content["state_dict"], content.get("hyper_parameters", {})
    wrong = [f"{key} is missing" for key in ("id_net.1.weight", "id_net.1.bias") if key not in state]
    for name, needed in (
        ("use_linear", True),
        ("l2_normalize_embeddings", True),
        ("start_id_net_with_relu", False),
        ("by_pass_id_net", False),
        ("use_trainable_padding_vectors", False),
    ):
        if about.get(name, needed) != needed:
            wrong.append(f"{name}={about[name]}")
    only = about.get("only_mode")
    fusion = f"only_{only}" if only in KINDS else FUSIONS.get(about.get("fusion_strategy", "cat"))
    if fusion is None:
        wrong.append(f"fusion_strategy={about.get('fusion_strategy')}")
    heads = {key.split(".fc.")[1] for key in state if key.startswith("backbone_") and ".fc." in key}
    if heads and ("3.weight" not in heads or "6.weight" in heads):
        wrong.append("features behind another part of the projection head")
    if wrong:
        raise UserError(
            f"{uri} is no stage 2 model that is computed here ({'; '.join(wrong)}). Use it as features.weights, and "
            "train the head by `fine-tune`."
        )
    return {"fusion": fusion, "dimensions": len(state["id_net.1.weight"])}


def _saved(tensors: Tensors) -> bytes:
    from safetensors.torch import save

    # Tensors of one storage are copied: safetensors shares none.
    return save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})
