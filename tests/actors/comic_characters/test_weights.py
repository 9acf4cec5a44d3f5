"""Weights are held against the settings without torch, and as torch would load them."""

from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save
from torch import nn

from actors.comic_characters.network import Head, load_head, make_backbone
from actors.comic_characters.network_settings import RESNETS, BackboneConfig, Fusion, HeadConfig, feature_size
from actors.comic_characters.weights import check_backbone_weights, check_head_weights, head_shapes
from actors.core.errors import UserError


def saved(model: nn.Module, prefix: str = "") -> bytes:
    return save({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()})


HEADS = [
    (fusion, padding)
    for fusion in get_args(Fusion)
    for padding in ("zero", "learned")
    if padding == "zero" or not fusion.startswith(("favor_", "only_"))
]
"""Fusions, and paddings that these have."""


@pytest.mark.parametrize(("fusion", "padding"), HEADS)
def test_shapes_of_a_head_are_those_of_its_parameters(fusion: Any, padding: Any) -> None:
    config = HeadConfig(fusion, padding, 12)
    head = Head(config, 16)
    assert head_shapes(config, 16) == {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    check_head_weights(config, 16, saved(head), "w")
    assert not load_head(config, 16, saved(head)).training
    with pytest.raises(UserError, match=r"w holds the weights of another head .* linear.bias has the shape \(12,\)"):
        check_head_weights(HeadConfig(fusion, padding, 13), 16, saved(head), "w")


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_backbones_are_told_apart_by_their_weights(name: Any) -> None:
    backbone = make_backbone(name).eval()
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, feature_size(name))
    for weights in (saved(backbone), saved(backbone, "backbone.")):
        check_backbone_weights(BackboneConfig(name), weights, "w")
        other: Any = "resnet18" if name != "resnet18" else "resnet50"
        with pytest.raises(UserError, match=f"w holds the weights of {name}, and backbone.name={other}. Set"):
            check_backbone_weights(BackboneConfig(other), weights, "w")


def test_other_files_are_refused() -> None:
    weights = saved(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"of another network, and backbone.name=resnet10"):
        check_backbone_weights(BackboneConfig("resnet10"), weights, "w")
    for torn in (b"", b"hello", weights[:-1], weights + b"0"):
        with pytest.raises(UserError, match="w is no file of safetensors: it has"):
            check_backbone_weights(BackboneConfig("resnet10"), torn, "w")
