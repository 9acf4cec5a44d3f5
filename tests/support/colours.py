"""A CLIP model that knows colours and nothing else, so that every score is known, and films in those colours.

Its weights are set by hand: an image's vector is its mean colour (r, g, b), a text's the sum of its words', where
"red", "green" and "blue" are (1, 0, 0), (0, 1, 0) and (0, 0, 1), "dark" is (-1, -1, -1), and every other word is 0. So
an image of one colour and its name have a cosine of 1, another colour's name 0, and "red blue" .71.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "dark": (-1, -1, -1)}
WIDTH = 8
MODEL: dict[str, Any] = {
    "embed_dim": 3,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "layers": 1,
        "width": WIDTH,
        "head_width": 4,
        "pool_type": "avg",
        "no_ln_pre": True,
        "final_ln_after_pool": True,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1},
}


def clip(folder: Path, **preprocess: Any) -> str:
    """Save the model as open_clip does; preprocess: what it does otherwise than pixels / 255. Returns the folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    model: Any = open_clip.create_model(f"local-dir:{folder}")
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if "ln_" in name and name.endswith("weight"):
            value.fill_(1)
    # Each of r, g, b is a pair x, -x: a layer norm, whose mean is then 0, changes lengths and no directions.
    pairs = torch.zeros(3, WIDTH)
    for i in range(3):
        pairs[i, 2 * i], pairs[i, 2 * i + 1] = 1, -1
    weights["visual.conv1.weight"][:] = pairs.T[:, :, None, None] / 64
    weights["visual.proj"][:] = weights["text_projection"][:] = pairs.T
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    for word, colour in WORDS.items():
        weights["token_embedding.weight"][tokenizer.encoder[f"{word}</w>"]] = (
            torch.tensor(colour, dtype=torch.float32) @ pairs
        )
    # Attention without queries and keys is the same for all words: the last one gets their mean.
    weights["transformer.resblocks.0.attn.in_proj_weight"][2 * WIDTH :] = torch.eye(WIDTH)
    weights["transformer.resblocks.0.attn.out_proj.weight"][:] = torch.eye(WIDTH)
    save_file(weights, folder / "open_clip_model.safetensors")
    return str(folder)


def film(path: Path, colours: Sequence[tuple[int, int, int]]) -> Path:
    """A film of exact colours, each for 250 ms; `path` ends in .mkv."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for number, colour in enumerate(colours):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pictures(colours: Sequence[tuple[int, int, int]], height: int = 32, width: int = 32) -> np.ndarray:
    """Images of one colour each: uint8 (N, height, width, 3)."""
    return np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])
