"""Models of real architectures with random weights, small enough for tests."""

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
