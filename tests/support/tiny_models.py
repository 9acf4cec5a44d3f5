"""Models of real architectures with random weights, small enough for tests."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEMPLATE = """\
{% for message in messages %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}\
{% endfor %}{% endfor %}"""


def captioning_model(folder: Path, words: Sequence[str]) -> str:
    """A LLaVA that knows these words and no others, as transformers saves it; it ends after any of the first half."""
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
    size = {"height": 8, "width": 8}
    pictures = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size)
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    width: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = LlamaConfig(vocab_size=len(vocabulary), **width)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **width)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=vocabulary["<image>"],
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    )
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, *range(4, 4 + len(words) // 2)]
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
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
