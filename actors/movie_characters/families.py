"""The kinds of diffusion models that can be personalised, by the name of diffusers' pipeline, and what they differ in.

StableDiffusion   a UNet predicts noise; the condition is a text encoder's output for 77 tokens
StableDiffusionXL a UNet predicts noise; two text encoders, a pooled text, and the sizes of picture and crop
StableDiffusion3  a transformer predicts the velocity of a flow (Esser et al., 2024); three text encoders, a pooled text
Flux              a transformer predicts the velocity of a flow; two text encoders, a pooled text, distilled guidance

A condition is one matrix, float32 (S, d): the tokens, and below them the pooled text in as many rows as it fills.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.errors import UserError

if TYPE_CHECKING:
    # Only workers that hold a model pay for importing torch.
    from torch import Tensor

INDEX = "model_index.json"
"""The file that diffusers writes into the folder of a pipeline."""
TRAIN_TIMESTEPS = 1000
"""Timesteps of the noise schedule."""
GUIDANCE = 3.5
"""Guidance scale that a distilled Flux is given, in training as in prediction: that of diffusers."""
_ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
_JOINT = (*(f"attn.{name}" for name in _ATTENTION), *(f"attn.add_{name}_proj" for name in "kqv"), "attn.to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    pipeline: str
    """The class of diffusers."""
    network: str
    """Folder and name of what predicts: unet or transformer."""
    network_class: str
    layers: tuple[str, ...]
    """Layers of the network that a LoRA adds to: those of diffusers' training scripts."""
    predict: "Callable[[Any, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]"
    """What the network makes of noisy latents (B, C, h, w), timesteps (B,), tokens (B, S, d), pooled texts (B, p), and
    sizes (B, 6): height and width of the picture, top and left of the crop in it, height and width of the crop."""
    pooled: Callable[[Any], int] = lambda network: 0
    """Numbers of the pooled text that a network takes."""
    embed: "Callable[[Any, str], tuple[Tensor, Tensor]] | None" = None
    """Tokens (1, S, d) and pooled text (1, p) of a prompt, by a pipeline that has its text encoders only; None: the
    single text encoder's output."""
    flow: bool = False
    """Whether it predicts the velocity of a flow, noise - latent, in place of noise."""
    sized: bool = False
    """Whether it looks at sizes."""
    multiple: int = 8
    """Of which the sides of pictures are multiples."""

    def unpack(self, network: Any, conditions: "Tensor") -> "tuple[Tensor, Tensor]":
        """Tokens (B, S, d) and pooled texts (B, p) of conditions."""
        width = self.pooled(network)
        rows = -(-width // conditions.shape[-1])
        end = conditions.shape[1] - rows
        return conditions[:, :end], conditions[:, end:].flatten(1)[:, :width]


def pack(tokens: "Tensor", pooled: "Tensor") -> "Tensor":
    """Tokens (1, S, d) and the pooled text (1, p) as one condition; what the last row lacks is 0."""
    import torch

    width = tokens.shape[-1]
    rows = torch.nn.functional.pad(pooled, (0, -pooled.shape[-1] % width)).unflatten(1, (-1, width))
    return torch.cat([tokens, rows], 1)


def _unet(unet: Any, noisy: "Tensor", times: "Tensor", tokens: "Tensor", pooled: "Tensor", sizes: "Tensor") -> "Tensor":
    return unet(noisy, times, tokens, return_dict=False)[0]


def _xl(unet: Any, noisy: "Tensor", times: "Tensor", tokens: "Tensor", pooled: "Tensor", sizes: "Tensor") -> "Tensor":
    added = {"text_embeds": pooled, "time_ids": sizes.to(noisy.dtype)}
    return unet(noisy, times, tokens, added_cond_kwargs=added, return_dict=False)[0]


def _sd3(net: Any, noisy: "Tensor", times: "Tensor", tokens: "Tensor", pooled: "Tensor", sizes: "Tensor") -> "Tensor":
    return net(noisy, tokens, pooled, times, return_dict=False)[0]


def _flux(net: Any, noisy: "Tensor", times: "Tensor", tokens: "Tensor", pooled: "Tensor", sizes: "Tensor") -> "Tensor":
    import torch

    shape = [side // 2 for side in noisy.shape[2:]]
    places = [torch.arange(count, device=noisy.device, dtype=noisy.dtype) for count in (1, *shape)]
    found = net(
        as_squares(noisy),
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        timestep=times / TRAIN_TIMESTEPS,
        img_ids=torch.cartesian_prod(*places),
        txt_ids=noisy.new_zeros(tokens.shape[1], 3),
        guidance=torch.full_like(times, GUIDANCE) if net.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return torch.nn.functional.pixel_shuffle(found.mT.unflatten(2, shape), 2)


def as_squares(latents: "Tensor") -> "Tensor":
    """Latents (B, C, h, w) as the tokens of a Flux, each a square of 2 x 2: (B, h / 2 · w / 2, 4 C)."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents, 2).flatten(2).mT


def _embed_xl(pipeline: Any, prompt: str) -> "tuple[Tensor, Tensor]":
    device = pipeline.text_encoder_2.device
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    empty = not prompt and pipeline.config.force_zeros_for_empty_prompt
    return (tokens * 0, pooled * 0) if empty else (tokens, pooled)


def _embed_sd3(pipeline: Any, prompt: str) -> "tuple[Tensor, Tensor]":
    how = {"device": pipeline.text_encoder.device, "do_classifier_free_guidance": False}
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, **how)
    return tokens, pooled


def _embed_flux(pipeline: Any, prompt: str) -> "tuple[Tensor, Tensor]":
    return pipeline.encode_prompt(prompt, device=pipeline.text_encoder.device)[:2]


def _pooled_of_unet(unet: Any) -> int:
    return unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim


def _pooled_of_transformer(transformer: Any) -> int:
    return transformer.config.pooled_projection_dim


SD = Family("StableDiffusionPipeline", "unet", "UNet2DConditionModel", _ATTENTION, _unet)
XL = Family(
    "StableDiffusionXLPipeline",
    "unet",
    "UNet2DConditionModel",
    _ATTENTION,
    _xl,
    pooled=_pooled_of_unet,
    embed=_embed_xl,
    sized=True,
)
SD3 = Family(
    "StableDiffusion3Pipeline",
    "transformer",
    "SD3Transformer2DModel",
    _JOINT,
    _sd3,
    pooled=_pooled_of_transformer,
    embed=_embed_sd3,
    flow=True,
    multiple=16,
)
FLUX = Family(
    "FluxPipeline",
    "transformer",
    "FluxTransformer2DModel",
    (*_JOINT, *_FEED_FORWARD),
    _flux,
    pooled=_pooled_of_transformer,
    embed=_embed_flux,
    flow=True,
    multiple=16,
)
FAMILIES = {one.pipeline: one for one in (SD, XL, SD3, FLUX)}


def family_of(model: str, setting: str) -> Family:
    """The kind of a model: a folder that diffusers saved, or a name on the Hugging Face Hub.

    Raises UserError where it is none of these. A folder of parts without an index is a StableDiffusion.
    """
    index_file = Path(model, INDEX)
    if is_local(model) and not index_file.is_file():
        return SD
    try:
        index = dict(json.loads((index_file if is_local(model) else _from_hub(model, setting)).read_text()))
    except ValueError as error:
        raise UserError(f"{setting}={model}: {INDEX} is not what diffusers writes ({error})") from error
    name = index.get("_class_name", "")
    if name in FAMILIES:
        return FAMILIES[name]
    # Other pipelines of the same parts, such as those of inpainting.
    if "transformer" in index:
        raise UserError(f"{setting}={model} is a {name}. Give a model of one of: {', '.join(FAMILIES)}.")
    return XL if "text_encoder_2" in index else SD


def is_local(model: str) -> bool:
    """Whether a model is a folder, also one that is missing, and no name on the Hub."""
    return Path(model).exists() or model.startswith(("/", ".", "~"))


def _from_hub(model: str, setting: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, INDEX))
    except Exception as error:  # The library lets through what its HTTP client raises.
        problem = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"{setting}={model} cannot be downloaded from the Hugging Face Hub ({problem}). Pass a folder that a "
            "pipeline of diffusers saved, or set HF_TOKEN."
        ) from error
