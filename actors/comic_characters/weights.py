"""Weights of a backbone and of a head held against the settings, without torch, whose import takes seconds."""

from actors.comic_characters.network_settings import KINDS, RESNETS, BackboneConfig, HeadConfig, feature_size
from actors.core.checkpoints import shapes_of
from actors.core.errors import UserError

Shapes = dict[str, tuple[int, ...]]


def check_backbone_weights(config: BackboneConfig, weights: bytes, uri: str) -> None:
    """Raise UserError where weights are not those of these networks; uri: where they are."""
    shapes = _shapes(weights, uri)
    separate = all(any(key.startswith(f"{kind}.") for key in shapes) for kind in KINDS)
    if separate == config.shared:
        found = "networks of their own for face and body" if separate else "one network for face and body"
        more = "" if separate else ", or features.weights={face: FILE, body: FILE}"
        raise UserError(f"{uri} holds {found}. Set backbone.shared={str(not separate).lower()}{more}.")
    for kind in KINDS if separate else ("",):
        _check_network(config, {k.removeprefix(f"{kind}."): v for k, v in shapes.items() if k.startswith(kind)}, uri)


def _check_network(config: BackboneConfig, shapes: Shapes, uri: str) -> None:
    own = network_of({key.removeprefix("backbone."): shape for key, shape in shapes.items()})
    if own != config.name:
        raise UserError(
            f"{uri} holds the weights of {own or 'another network'}, and backbone.name={config.name}. "
            + (f"Set backbone.name={own}, or use other weights." if own else "Use other weights.")
        )
    width = feature_size(config.name)
    if config.projection and any(shapes.get(f"head.{layer}.weight") != (width, width) for layer in (0, 3)):
        raise UserError(
            f"{uri} holds no projection head with two hidden layers of {width}. Set backbone.projection=false."
        )


def network_of(shapes: Shapes) -> str | None:
    """The name of the ResNet that has weights of these shapes, by torchvision's names; None where there is none."""
    blocks = [len({key.split(".")[1] for key in shapes if key.startswith(f"layer{n}.")}) for n in range(1, 5)]
    expansion = 4 if any(".conv3." in key for key in shapes) else 1
    width = shapes.get("layer1.0.conv1.weight", (0,))[0]
    return next((name for name, about in RESNETS.items() if about == (expansion, blocks, width)), None)


def check_head_weights(config: HeadConfig, features: int, weights: bytes, uri: str) -> None:
    """Raise UserError where weights are not those of a head of these settings; uri: where they are."""
    found, wanted = _shapes(weights, uri), head_shapes(config, features)
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))[0]
        raise UserError(
            f"{uri} holds the weights of another head than {config} on {features} features: {wrong} has the shape "
            f"{found.get(wrong)}, not {wanted.get(wrong)}. Set backbone.name and fine_tune.head as they were trained."
        )


def head_shapes(config: HeadConfig, features: int) -> Shapes:
    """The shapes of the parameters of a head, by name."""
    shapes: Shapes = {
        "linear.weight": (config.dimensions, features * (2 if config.fusion == "cat" else 1)),
        "linear.bias": (config.dimensions,),
    }
    if config.padding == "learned":
        shapes["padding"] = (2, features)
    if config.fusion == "weighted":
        shapes["weights"] = (2,)
    if config.fusion == "weighted_dimensions":
        shapes["weights"] = (2, features)
    if config.fusion in ("self_attention", "face_to_body"):
        shapes |= {
            "attention.in_proj_weight": (3 * features, features),
            "attention.in_proj_bias": (3 * features,),
            "attention.out_proj.weight": (features, features),
            "attention.out_proj.bias": (features,),
        }
    return shapes


def _shapes(weights: bytes, uri: str) -> Shapes:
    try:
        return shapes_of(weights)
    except ValueError as error:
        raise UserError(f"{uri} is no file of safetensors: {error}. Train again, or use other weights.") from error
