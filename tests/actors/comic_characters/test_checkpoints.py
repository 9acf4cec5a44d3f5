"""Checkpoints of the reference give the features and vectors of its networks, and none of their code is run."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models import resnet18

from actors.comic_characters.checkpoints import read_backbone, read_head, settings_of_checkpoint
from actors.comic_characters.network import load_head, load_networks, make_backbone
from actors.comic_characters.network_settings import BackboneConfig, HeadConfig
from actors.comic_characters.weights import check_backbone_weights
from actors.core.errors import UserError

WIDTH = 512
BEHIND = BackboneConfig("resnet18", 32, 32, projection=True)


def simclr(seed: int = 0) -> nn.Module:
    """The reference's network of stage 1, some steps of batch norm after its first weights."""
    torch.manual_seed(seed)
    network: Any = resnet18(num_classes=WIDTH)
    norms = [nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(16, affine=False)]
    second, last = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 16, bias=False)
    network.fc = nn.Sequential(network.fc, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), last, norms[2])
    network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


def below(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}


class Settings(dict):
    """As Lightning's AttributeDict: a class of the program that wrote the checkpoint."""


class Kind:
    """As an enumeration of that program."""

    def __reduce__(self) -> Any:
        return (Kind, ())


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def saved(path: Path, state: Mapping[str, Tensor], **more: Any) -> str:
    torch.save({"epoch": 3, "state_dict": dict(state), "callbacks": {Kind: {"best": torch.tensor(1.0)}}, **more}, path)
    return str(path)


def stage_2(path: Path, face: nn.Module, body: nn.Module, **settings: Any) -> tuple[str, nn.Linear]:
    """A checkpoint of stage 2, whose networks have lost the last layer of their projection, and its linear layer."""
    linear = nn.Linear(WIDTH * (2 if settings.get("fusion_strategy", "cat") == "cat" else 1), 8)
    state = below("id_net.1", linear)
    if settings.get("fusion_strategy") == "weighted_sum":
        state["fusion_model.weights"] = torch.randn(WIDTH, 2)
    for kind, network in (("face", face), ("body", body)):
        own = below(f"backbone_{kind}.convnet", network)
        state |= {name: tensor for name, tensor in own.items() if not name.split(".fc.")[-1].startswith(("6.", "7."))}
    about = Settings(use_linear=True, l2_normalize_embeddings=True, ssl_backbone_face=Kind(), **settings)
    return saved(path, state, hyper_parameters=about), linear


def test_a_checkpoint_of_stage_1_gives_the_features_of_its_network(tmp_path: Path) -> None:
    network: Any = simclr()
    uri = saved(tmp_path / "a.ckpt", below("model.convnet", network), hyper_parameters=Settings(model_name="resnet18"))
    pictures = torch.randn(4, 3, 32, 32)
    weights = read_backbone(uri)
    check_backbone_weights(BEHIND, weights, uri)
    with torch.no_grad():
        found = load_networks(BEHIND, weights)["face"](pictures)
        torch.testing.assert_close(found, network.fc[:6](_convnet(network)(pictures)), rtol=1e-4, atol=1e-5)
        plain = load_networks(BackboneConfig("resnet18", 32, 32), weights)["body"](pictures)
        torch.testing.assert_close(plain, _convnet(network)(pictures))
    assert not torch.allclose(plain, found)
    with pytest.raises(UserError, match=r"holds the weights of resnet18, and backbone.name=resnet50"):
        check_backbone_weights(BackboneConfig(), weights, uri)


def _convnet(network: nn.Module) -> nn.Module:
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten())


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["sum", "cat", "favor_face", "favor_body", "weighted_sum"])
def test_a_checkpoint_of_stage_2_gives_the_vectors_of_its_model(tmp_path: Path, fusion: str) -> None:
    network: Any = simclr()
    uri, linear = stage_2(tmp_path / "b.ckpt", network, network, fusion_strategy=fusion)
    tree = settings_of_checkpoint(uri)
    assert tree["backbone"] == {
        "name": "resnet18",
        "face_size": 96,
        "body_size": 128,
        "shared": True,
        "projection": True,
    }
    config = HeadConfig(**tree["fine_tune"]["head"])
    head = load_head(config, WIDTH, read_head(uri))
    network_of_both = load_networks(BackboneConfig(**tree["backbone"]), read_backbone(uri))["face"]
    pictures = torch.randn(2, 3, 3, 32, 32)
    faces, bodies = (network_of_both(one) for one in pictures)
    bodies[0] = 0
    there = torch.tensor([[True, False], [True, True], [True, True]])
    weights = torch.load(uri, weights_only=False)["state_dict"].get("fusion_model.weights", torch.zeros(WIDTH, 2))
    share = weights.softmax(1)
    fused = {
        "sum": faces + bodies,
        "cat": torch.cat([faces, bodies], 1),
        "favor_face": faces,
        "favor_body": torch.where(there[:, 1:], bodies, faces),
        "weighted_sum": faces * share[:, 0] + bodies * share[:, 1],
    }[fusion]
    torch.testing.assert_close(head(faces, bodies, there), normalize(linear(fused)))


def test_a_checkpoint_with_two_networks_has_both(tmp_path: Path) -> None:
    uri, _ = stage_2(tmp_path / "b.ckpt", simclr(0), simclr(1), fusion_strategy="sum")
    assert settings_of_checkpoint(uri)["backbone"]["shared"] is False
    found = load_networks(BackboneConfig("resnet18", 32, 32, shared=False, projection=True), read_backbone(uri))
    picture = torch.randn(2, 3, 32, 32)
    assert found["face"] is not found["body"]
    assert not torch.allclose(found["face"](picture), found["body"](picture))
    with pytest.raises(UserError, match=r"networks of their own for face and body. Set backbone.shared=false"):
        check_backbone_weights(BEHIND, read_backbone(uri), uri)


def test_one_file_each_makes_two_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [make_backbone("resnet10") for _ in range(2)]
    save_file(
        {name: tensor.contiguous() for name, tensor in nets[0].state_dict().items()}, tmp_path / "face.safetensors"
    )
    torch.save(nets[1].state_dict(), tmp_path / "body.pth")
    weights = read_backbone({"face": f"{tmp_path}/face.safetensors", "body": f"{tmp_path}/body.pth"})
    config = BackboneConfig("resnet10", 32, 32, shared=False)
    check_backbone_weights(config, weights, "w")
    found, picture = load_networks(config, weights), torch.randn(2, 3, 32, 32)
    for kind, net in zip(("face", "body"), nets, strict=True):
        torch.testing.assert_close(found[kind](picture), net.eval()(picture))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"one network .* Set backbone.shared=true, or features.weights="):
        check_backbone_weights(config, read_backbone(f"{tmp_path}/body.pth"), "w")


@pytest.mark.parametrize("call", [os.system, subprocess.check_output, eval])
def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, call: Any) -> None:
    marker = tmp_path / "run"
    arguments = [["touch", str(marker)]] if call is subprocess.check_output else [f"touch {marker}"]
    if call is eval:
        arguments = [f"open({str(marker)!r}, 'w')"]
    uri = saved(tmp_path / "a.ckpt", below("model.convnet", simclr()), hyper_parameters=Attack(call, *arguments))
    if call is os.system:
        # PyTorch knows it as one that is only there to attack.
        with pytest.raises(UserError, match="without running its code"):
            read_backbone(uri)
    else:
        assert "backbone.conv1.weight" in load(read_backbone(uri))
    assert not marker.exists()
    # The attack is one: a plain load runs it.
    torch.load(uri, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"fusion_strategy": "self_attn"},
        {"fusion_strategy": "mean"},
        {"fusion_strategy": "sum", "use_trainable_padding_vectors": True},
        {"fusion_strategy": "sum", "start_id_net_with_relu": True},
    ],
)
def test_models_that_would_be_computed_otherwise_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    network = simclr()
    uri, _ = stage_2(tmp_path / "b.ckpt", network, network, **settings)
    with pytest.raises(UserError, match=rf"{list(settings)[-1]}=.*features.weights"):
        settings_of_checkpoint(uri)


def test_other_files_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a.ckpt is no checkpoint"):
        read_backbone(str(tmp_path / "a.ckpt"))
    with pytest.raises(UserError, match=r"holds no network: .* other.weight"):
        read_backbone(saved(tmp_path / "b.ckpt", {"other.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"id_net.1.weight is missing"):
        settings_of_checkpoint(saved(tmp_path / "c.ckpt", below("model.convnet", simclr())))
