"""CLIP scoring in batches against one at a time: `python -m tests.benchmarks.clip [MODEL]`.

The same model (by default ViT-B-32 with random weights, which cost the same) in bfloat16, one thread of one process,
both ways in every round; CPU-seconds. Scenes of 16 sampled frames, 8 of them scored, each with a caption and a
recaption. One at a time stands for what a loop over open_clip's own pieces does: its transform on a PIL image, both
towers on one image and one text, and that for every frame and both texts, as torchmetrics' CLIPScore does for a pair.
"""

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from actors.curation.evaluating.clip_scores import clip_score
from actors.models.clip import Clip, EmbeddingsConfig, embed_images, embed_texts, load_clip
from pipelines.curation.evaluating import evaluate
from tests.benchmarks.curation import alternate, line, ratio

SCENES, FRAMES = 4, 16
EVERY = evaluate.EVERY["sampled"]
TEXTS = (
    "a man in a dark coat walks along the pier while gulls circle over the boats, number {}",
    "an old man with a grey beard and a long dark coat walks slowly along a wet wooden pier at dusk, gulls circle over "
    "three small fishing boats, and a lamp throws warm light on the water, number {}",
)


def scenes() -> list[tuple[np.ndarray, list[str]]]:
    """Frames uint8 (FRAMES, 240, 240, 3) of each scene, and its texts."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (SCENES, FRAMES, 30, 30, 3), np.uint8)
    frames = small.repeat(8, axis=2).repeat(8, axis=3)
    return [(frames[i], [text.format(i) for text in TEXTS]) for i in range(SCENES)]


def in_batches(clip: Clip, config: EmbeddingsConfig) -> np.ndarray:
    """Scores (SCENES, texts), as `evaluate` computes them."""
    found = scenes()
    images = embed_images(clip, np.concatenate([frames[::EVERY] for frames, _ in found]), config.per_call)
    texts = embed_texts(clip, [text for _, some in found for text in some], config.per_call)
    each = np.split(images, SCENES)
    return np.array(
        [[clip_score(each[i], vector) for vector in part] for i, part in enumerate(np.split(texts, SCENES))]
    )


def one_at_a_time(clip: Clip, text_with_each_image: bool) -> np.ndarray:
    """The same, one image after the other; a text with every image, or once a scene."""
    scores = []
    for frames, texts in scenes():
        frames = frames[::EVERY]
        if text_with_each_image:
            pairs = [[_image(clip, frame) @ _text(clip, text) for frame in frames] for text in texts]
        else:
            vectors = [_text(clip, text) for text in texts]
            pairs = np.array([[image @ vector for vector in vectors] for image in (_image(clip, f) for f in frames)]).T
        scores.append(100 * np.maximum(pairs, 0).mean(axis=1))
    return np.array(scores)


def _image(clip: Clip, frame: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        pixels = clip.transform(Image.fromarray(frame))[None].to(clip.dtype)
        return clip.model.encode_image(pixels, normalize=True)[0].float().numpy()


def _text(clip: Clip, text: str) -> np.ndarray:
    with torch.inference_mode():
        return clip.model.encode_text(clip.tokenizer([text]), normalize=True)[0].float().numpy()


def _agreement(clip: Clip, config: EmbeddingsConfig) -> float:
    """Smallest cosine between an image's or text's vector in a batch and alone: scores of random weights may be 0."""
    frames, texts = scenes()[0]
    together = embed_images(clip, frames, config.per_call), embed_texts(clip, texts, config.images_per_call)
    alone = np.array([_image(clip, frame) for frame in frames]), np.array([_text(clip, text) for text in texts])
    # In bfloat16 open_clip's vectors have a length of 1 within .002 only.
    return min(
        float(((a * b).sum(axis=1) / np.linalg.norm(b, axis=1)).min()) for a, b in zip(together, alone, strict=True)
    )


def _towers(clip: Clip, config: EmbeddingsConfig) -> dict[str, Callable[[], Any]]:
    pixels = torch.randn(config.per_call, 3, *[clip.transform.transforms[1].size[0]] * 2).to(clip.dtype)

    def encode(per_call: int) -> None:
        with torch.inference_mode():
            for part in pixels.split(per_call):
                clip.model.encode_image(part)

    return {"alone": lambda: encode(1), "batch": lambda: encode(config.per_call)}


def main() -> None:
    """Print the table."""
    import open_clip

    name = sys.argv[1] if len(sys.argv) > 1 else "ViT-B-32"
    print(f"{platform.machine()}, one thread, Python {platform.python_version()},")
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "open_clip_torch")) + "\n")
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = Path(folder) / "weights.safetensors"
        save_file(open_clip.create_model(name).state_dict(), weights)
        config = EmbeddingsConfig(model=name, pretrained=str(weights))
        clip = load_clip(config)
    works: dict[str, Callable[[], Any]] = {
        "pairs": lambda: one_at_a_time(clip, text_with_each_image=True),
        "images": lambda: one_at_a_time(clip, text_with_each_image=False),
        "batches": lambda: in_batches(clip, config),
    }
    alike = _agreement(clip, config)
    taken, towers = alternate(works), alternate(_towers(clip, config))
    frames = SCENES * FRAMES // EVERY
    print("| figure | measured | target |\n|---|---|---|")
    for what, told in (("pairs", "one pair at a time"), ("images", "one image at a time"), ("batches", "in batches")):
        line(f"{name}, {told}: CPU-s a scored frame", f"{np.median(taken[what]) / frames:.3f}")
    line("one pair at a time / in batches", ratio(taken["pairs"], taken["batches"]), "at least 3")
    line("one image at a time, texts once a scene / in batches", ratio(taken["images"], taken["batches"]))
    line("image tower alone, one at a time / in batches", ratio(towers["alone"], towers["batch"]))
    line("cosine of the vectors of both ways, at least", f"{alike:.4f}", "above .999")


if __name__ == "__main__":
    main()
