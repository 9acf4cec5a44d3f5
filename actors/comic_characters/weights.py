"""Weights of a backbone and of a head held against the settings, without torch, whose import takes seconds."""

from actors.comic_characters.network_settings import RESNETS, HeadConfig
from actors.core.checkpoints import shapes_of
from actors.core.errors import UserError

Shapes = dict[str, tuple[int, ...]]


def check_backbone_weights(name: str, weights: bytes, uri: str) -> None:
    """Raise UserError where weights are not those of a ResNet of this name; uri: where they are."""
    names = {key.removeprefix("backbone.") for key in _shapes(weights, uri)}
    blocks = [len({key.split(".")[1] for key in names if key.startswith(f"layer{n}.")}) for n in range(1, 5)]
    expansion = 4 if any(".conv3." in key for key in names) else 1
    if (expansion, blocks) == RESNETS[name]:
        return
    own = next((other for other, about in RESNETS.items() if about == (expansion, blocks)), None)
    raise UserError(
        f"{uri} holds the weights of {own or 'another network'}, and backbone.name={name}. "
        + (f"Set backbone.name={own}, or use other weights." if own else "Use other weights.")
    )


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
