"""LoRAs of one network: each is read once, and then put in by copies on the device, for all rows or for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from actors.core import storage
from actors.core.errors import UserError
from actors.movie_characters.diffusion import copy_all

Shape = tuple[Any, ...]
"""Layers and ranks of a LoRA: names and shapes of its tensors."""


class _Factor(nn.Module):
    """One of the two matrices that a LoRA adds to a linear layer: the same for all rows of a call, or one per row."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight
        self.each: Tensor | None = None
        """(B, out, in): the matrix of each row; None: weight for all."""

    def forward(self, x: Tensor) -> Tensor:
        if self.each is None:
            return nn.functional.linear(x, self.weight)
        # Vectors, such as the embedding of the timestep, have no axis of tokens.
        return (x[:, None] @ self.each.mT)[:, 0] if x.ndim == 2 else x @ self.each.mT


@dataclass(frozen=True)
class _Place:
    """The adapter of the UNet for all LoRAs of one shape."""

    name: str
    parameters: list[Tensor]
    factors: list[_Factor]
    """The layers that hold the parameters, in their order; empty where some are no matrices of linear layers, so that
    all rows of a call share one LoRA."""


class Loras:
    """LoRAs of one UNet, of which it holds those of one call: a single one, or one for each row of the batch.

    Side by side in the UNet each would make all that come after it, and every switch, slower.
    """

    def __init__(self, unet: Any, prefix: str = "unet") -> None:
        """prefix: what the names of a file's tensors begin with."""
        self._unet, self._prefix = unet, prefix
        self._now: tuple[str, ...] = ()
        self._active: str | None = ""
        """Name of the adapter that is switched on, "" where none is, None where that is unclear."""
        self._places: dict[Shape, _Place] = {}
        self._read: dict[str, tuple[_Place, Tensor]] = {}
        """By file its place, and its weights in one piece (n,) on the device."""

    def together(self, uri: str) -> str:
        """What LoRAs must have in common to be used in the same call; raises UserError where the file holds none."""
        place, _ = self._of(uri)
        return place.name if place.factors else uri

    def use(self, uris: Sequence[str]) -> None:
        """Put in one LoRA for all rows, or one for each row, of files that `personalise` saved.

        Raises UserError where a file holds none.
        """
        wanted = tuple(uris) if len(set(uris)) > 1 else (uris[0],)
        if wanted == self._now:
            return
        # What fails on the way leaves none in place.
        self._now = ()
        weights = [self._of(uri)[1] for uri in wanted]
        place = self._of(wanted[0])[0]
        sizes = [parameter.numel() for parameter in place.parameters]
        # No copy waits for the device, and their number does not grow with that of the layers.
        if len(wanted) == 1:
            parts = weights[0].split(sizes)
            copy_all(place.parameters, [part.view_as(own) for part, own in zip(parts, place.parameters, strict=True)])
            for factor in place.factors:
                factor.each = None
        else:
            parts = torch.stack(weights).split(sizes, 1)
            for factor, part in zip(place.factors, parts, strict=True):
                factor.each = part.view(len(wanted), *factor.weight.shape)
        if self._active != place.name:
            self._unet.set_adapter(place.name)
            self._unet.enable_adapters()
        self._active, self._now = place.name, wanted

    def leave(self) -> None:
        """Take them out again."""
        if self._active != "":
            self._unet.disable_adapters()
        self._now, self._active = (), ""

    def _of(self, uri: str) -> tuple[_Place, Tensor]:
        if uri not in self._read:
            self._read[uri] = self._load(uri)
        return self._read[uri]

    def _load(self, uri: str) -> tuple[_Place, Tensor]:
        try:
            weights = load(storage.read_bytes(uri))
        except SafetensorError as error:
            raise UserError(f"{uri} is not a safetensors file. Personalise that character again.") from error
        shape = tuple(
            sorted((key, tuple(one.shape)) for key, one in weights.items() if key.startswith(f"{self._prefix}."))
        )
        if not shape:
            raise UserError(f"{uri} holds no LoRA of a {self._prefix}. Personalise that character again.")
        there = shape in self._places
        name = self._places[shape].name if there else f"place{len(self._places)}_"
        self._now, self._active = (), None
        self._unet.load_lora_adapter(weights, prefix=self._prefix, adapter_name=name, hotswap=there)
        if not there:
            self._places[shape] = _placed(self._unet, name)
        place = self._places[shape]
        return place, torch.cat([parameter.detach().flatten() for parameter in place.parameters])


def _placed(unet: Any, name: str) -> _Place:
    """The adapter that diffusers has just added, in the precision of the UNet."""
    own = [parameter for path, parameter in unet.named_parameters() if f".{name}." in path]
    for parameter in own:
        parameter.data = parameter.data.to(unet.dtype)
    # Beside them is its dropout, which has no parameters.
    plain = {
        path: layer
        for path, layer in unet.named_modules()
        if path.endswith(f".{name}") and type(layer) is nn.Linear and layer.bias is None
    }
    if [id(layer.weight) for layer in plain.values()] != [id(parameter) for parameter in own]:
        return _Place(name, own, [])
    factors = {path: _Factor(layer.weight) for path, layer in plain.items()}
    for path, factor in factors.items():
        unet.set_submodule(path, factor)
    return _Place(name, own, list(factors.values()))
