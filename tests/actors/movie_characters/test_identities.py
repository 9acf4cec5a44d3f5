"""Names and files of characters: what is found, what is refused, and that no pickle runs."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from actors.movie_characters.identities import (
    OPTIMIZED,
    TARGET,
    TEXT,
    Learnt,
    find_learnt,
    read_embedding,
    write_embedding,
)
from actors.movie_characters.names import group_by_class


def embedding(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 77, 8)).astype(np.float32)


def test_classes_are_whole_names() -> None:
    assert group_by_class(["Ann_1", "Anna_2", "Mary_Ann_3", "Ann_2"]) == {
        "Ann": ["Ann_1", "Ann_2"],
        "Anna": ["Anna_2"],
        "Mary_Ann": ["Mary_Ann_3"],
    }


def test_what_was_learnt_is_found_with_its_weights(tmp_path: Path) -> None:
    for number, name in enumerate(("Ann_1", "Bob_1")):
        write_embedding(embedding(number), str(tmp_path), name, OPTIMIZED)
        write_embedding(embedding(9), str(tmp_path), name, TARGET)
        (tmp_path / name / TEXT).write_text("a photo of x")
    (tmp_path / "Bob_1" / "unet").mkdir()
    (tmp_path / "Bob_1" / "unet" / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "Eve_1").touch()
    ann, bob = find_learnt(str(tmp_path), "imagic_pretrained_path")
    assert (ann.name, ann.text, ann.lora, ann.unet) == ("Ann_1", "a photo of x", "", "")
    assert np.array_equal(ann.optimized, embedding(0)[0])
    assert bob.unet == str(tmp_path / "Bob_1" / "unet") and bob.weights != ann.weights
    write_embedding(embedding(0)[:, :, :4], str(tmp_path), "Eve_1", OPTIMIZED)
    with pytest.raises(ValueError, match="embeddings of several shapes"):
        find_learnt(str(tmp_path), "imagic_pretrained_path")
    with pytest.raises(ValueError, match="holds no identities"):
        find_learnt(str(tmp_path / "Bob_1"), "imagic_pretrained_path")


def test_embeddings_of_the_reference_are_read_and_no_pickle_runs(tmp_path: Path) -> None:
    folder = tmp_path / "Ann_3"
    folder.mkdir()
    torch.save(torch.from_numpy(embedding(1)).half().requires_grad_(), folder / f"{OPTIMIZED}.pt")
    (found,) = find_learnt(str(tmp_path), "imagic_pretrained_path")
    assert found.optimized == pytest.approx(embedding(1)[0], abs=2e-3) and found.target is None

    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for data in (pickle.dumps(Harmful()), saved(Harmful()), b"torn"):
        with pytest.raises(ValueError, match="holds no tensor that may be read"):
            read_embedding(data, "x.pt")
    with pytest.raises(ValueError, match="holds a dict, not one tensor"):
        read_embedding(saved({"a": torch.zeros(1)}), "x.pt")
    with pytest.raises(ValueError, match="holds no tensor that may be read"):
        read_embedding(b"torn", "x.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_are_read_without_torch_as_torch_reads_them(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(embedding(3)).to(dtype)
    found = read_embedding(save({"a": tensor}), "x.safetensors")
    assert found.dtype == np.float32 and np.array_equal(found, tensor.float().numpy())
    with pytest.raises(ValueError, match="holds no tensor that may be read"):
        read_embedding(save({}), "x.safetensors")
    with pytest.raises(ValueError, match="holds no tensor that may be read"):
        read_embedding(save({"a": torch.zeros(1, dtype=torch.int64)}), "x.safetensors")


def saved(value: object) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def test_alpha_blends_and_a_missing_target_is_embedded_from_its_text() -> None:
    optimized, target = np.full((77, 8), 1, np.float32), np.full((77, 8), 3, np.float32)
    one = Learnt("Ann_1", target, optimized, "", "", "", "")
    assert (one.blend(0.25, _never) == 1.5).all() and (one.blend(0, _never) == 1).all()
    texts: list[str] = []

    def embed(text: str) -> np.ndarray:
        texts.append(text)
        return target

    assert (Learnt("Ann_1", None, optimized, "a photo", "", "", "").blend(0.5, embed) == 2).all()
    assert texts == ["a photo"]
    with pytest.raises(ValueError, match=r"Ann_1 has neither target_embeddings nor target_text.txt, and alpha=0.5"):
        Learnt("Ann_1", None, optimized, "", "", "", "").blend(0.5, _never)


def _never(prompt: str) -> np.ndarray:
    raise AssertionError(prompt)
