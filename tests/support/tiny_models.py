"""Models of real architectures with random weights, small enough for tests."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = """\
{% for message in messages %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}\
{% endfor %}{% endfor %}"""


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
"""The shape of a transformer."""


def captioning_model(
    folder: Path,
    words: Sequence[str],
    text: Mapping[str, int] = SMALL,
    vision: Mapping[str, int] = SMALL,
    side: int = 8,
    patch: int = 4,
    dtype: str = "float32",
) -> str:
    """A LLaVA that knows these words and no others, as transformers saves it; it ends after any of the first half.

    text, vision: the shapes of its parts; side, patch: of pictures.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<unk>", "<pad>", "</s>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokens = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=patch,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    shapes: tuple[Any, Any] = text, vision
    about = LlamaConfig(vocab_size=len(vocabulary), **shapes[0])
    sees = CLIPVisionConfig(image_size=side, patch_size=patch, **shapes[1])
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=sees,
            text_config=about,
            image_token_index=vocabulary["<image>"],
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, *range(4, 4 + len(words) // 2)]
    model.generation_config.pad_token_id = 1
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return str(folder)


def stable_diffusion(folder: Path, side: int = 16, predicts: Any = "epsilon", levels: int = 2, seed: int = 0) -> str:
    """A Stable Diffusion of the classes of the real one, as a diffusers pipeline saves it: 16 numbers a token, text of
    77 tokens that are single letters, latents of half the picture's sides, and half of that with each further level."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = letters()
    torch.manual_seed(seed)
    text: Any = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae_blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (4, *(8,) * (levels - 1)),
        "norm_num_groups": 2,
    }
    unet_blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "sample_size": side // 2,
    }
    return save_pipeline(
        folder,
        AutoencoderKL(sample_size=side, **vae_blocks),
        CLIPTextModel(text),
        UNet2DConditionModel(**unet_blocks),
        schedule(predicts),
    )


def lora(model: str, folder: Path, name: str, rank: int = 2, seed: int = 0) -> str:
    """A LoRA of two layers of each attention of a model's UNet, as diffusers saves it; returns the file."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    torch.manual_seed(seed)
    layers: Any = {"target_modules": ["to_q", "to_v"], "init_lora_weights": False}
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, **layers))
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, weights, weight_name=name)
    return str(folder / name)


def letters() -> Any:
    """A tokenizer of CLIP's class that knows single letters."""
    from transformers import CLIPTokenizer

    ends = ("<|startoftext|>", "<|endoftext|>")
    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *ends]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77)


def schedule(predicts: Any = "epsilon") -> Any:
    """Stable Diffusion's own noise schedule."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=predicts,
    )


def save_pipeline(folder: Path, vae: Any, text_encoder: Any, unet: Any, scheduler: Any) -> str:
    """Save a Stable Diffusion that knows single letters, as diffusers does; returns the folder."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    parts: Any = {"vae": vae, "text_encoder": text_encoder, "tokenizer": letters(), "unet": unet}
    nothing: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, scheduler=scheduler, **nothing).save_pretrained(folder)
    return str(folder)


def backbone(folder: Path, seed: int = 0) -> str:
    """A ResNet of timm's with random weights, for pictures of 32 x 32, as timm saves it."""
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 5}
    model = timm.create_model("resnet18", pretrained_cfg_overlay={"input_size": (3, 32, 32)}, **sizes)
    save_for_hf(model, str(folder), model_args=sizes, safe_serialization=True)
    return str(folder)


def text_encoder(projected: int | None = None, width: int = 16, seed: int = 0) -> Any:
    """A text encoder of CLIP for `letters`; projected: numbers of a pooled text, of the class that has one."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = letters()
    torch.manual_seed(seed)
    about: Any = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projected or 8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(about)


def stable_diffusion_xl(folder: Path, seed: int = 0) -> str:
    """A StableDiffusionXL, as diffusers saves it: 32 numbers a token and 8 of the pooled text."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    torch.manual_seed(seed)
    unet: Any = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": (2, 2),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8 + 6 * 4,
        "sample_size": 8,
    }
    parts: Any = {"vae": tiny_vae(), "unet": UNet2DConditionModel(**unet), "scheduler": schedule()}
    parts |= {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(8, seed=1)}
    pipeline = StableDiffusionXLPipeline(**parts, tokenizer=letters(), tokenizer_2=letters())
    pipeline.save_pretrained(folder)
    return str(folder)


def stable_diffusion_3(folder: Path, seed: int = 0) -> str:
    """A StableDiffusion3 without T5, as diffusers saves it: 32 numbers a token and 24 of the pooled text."""
    import torch
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    torch.manual_seed(seed)
    transformer: Any = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 40,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 16,
    }
    parts: Any = {"vae": tiny_vae(0.06), "transformer": SD3Transformer2DModel(**transformer)}
    parts |= {"text_encoder": text_encoder(8), "text_encoder_2": text_encoder(16, seed=1), "text_encoder_3": None}
    tokenizers: Any = {"tokenizer": letters(), "tokenizer_2": letters(), "tokenizer_3": None}
    StableDiffusion3Pipeline(**parts, **tokenizers, scheduler=flow_schedule(shift=3.0)).save_pretrained(folder)
    return str(folder)


def flux(folder: Path, seed: int = 0) -> str:
    """A Flux with distilled guidance, as diffusers saves it: 32 numbers a token and 16 of the pooled text."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    transformer: Any = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    sizes: Any = {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    parts: Any = {"vae": tiny_vae(0.06), "transformer": FluxTransformer2DModel(**transformer)}
    parts |= {"text_encoder": text_encoder(), "text_encoder_2": T5EncoderModel(T5Config(**sizes))}
    tokenizers: Any = {"tokenizer": letters(), "tokenizer_2": letters()}
    scheduler = flow_schedule(shift=3.0, use_dynamic_shifting=True)
    FluxPipeline(**parts, **tokenizers, scheduler=scheduler).save_pretrained(folder)
    return str(folder)


def tiny_vae(shift: float | None = None) -> Any:
    """A VAE whose latents have four channels and half the picture's sides."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "shift_factor": shift,
    }
    return AutoencoderKL(sample_size=16, **blocks)


def flow_schedule(**about: Any) -> Any:
    """The schedule of a flow."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**about)


def sentence_transformer(folder: Path, words: Sequence[str] = ("moon", "man", "love")) -> str:
    """A tiny BERT with random weights whose tokens are these words. Returns the folder."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **size)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)
