"""CLIPScores of a model that knows colours, whose every score is known, and heads whose every rating is."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.curation.families.clip import ClipConfig, ClipScorer, load_head
from actors.curation.measuring.family import fingerprint, scorer_class
from tests.support.colours import BLACK, BLUE, GREEN, RED, pictures
from tests.support.fake_cuda import FakeCuda

HALF = 100 * 0.5**0.5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On a busy machine more of them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config(clip_folder: str, tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    """The model, and a head that gives 5 + r + 2 g + 3 b."""
    head = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file({"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([5.0])}, head)
    return ClipConfig(model=clip_folder, aesthetic=str(head), dtype="float32")


@pytest.fixture(scope="module")
def scorer(config: ClipConfig) -> ClipScorer:
    return ClipScorer(config)


def batch(*scenes: tuple[np.ndarray, str, str]) -> Batch:
    frames = np.empty(len(scenes), object)
    frames[:] = [scene[0] for scene in scenes]
    return {
        "frames": frames,
        "caption": np.array([one[1] for one in scenes]),
        "recaption": np.array([one[2] for one in scenes]),
    }


def scores(found: Any) -> np.ndarray:
    return np.stack([found["clip_caption"], found["clip_recaption"], found["aesthetic"]], 1)


def test_scores_are_the_means_over_key_frames(scorer: ClipScorer) -> None:
    found = scorer(
        batch(
            (pictures([RED]), "red", "blue"),
            (pictures([RED, GREEN, GREEN], 48, 80), "a red one", "red green"),
            # A cosine below 0 counts as 0.
            (pictures([BLUE, RED], 33, 32), "dark", ""),
            (pictures([GREEN], 200, 90), "", ""),
        )
    )
    expected = [
        [100, 0, 6],
        [100 / 3, HALF, 5 + 5 / 3],
        [0, np.nan, 7],
        [np.nan, np.nan, 7],
    ]
    np.testing.assert_allclose(scores(found), expected, atol=0.02)
    assert all(found[name].dtype == np.float32 for name in ClipScorer.columns)


def test_without_texts_and_without_a_head_there_is_no_score(config: ClipConfig, scorer: ClipScorer) -> None:
    rated = scores(scorer(batch((pictures([RED]), "", ""))))
    np.testing.assert_allclose(rated, [[np.nan, np.nan, 6]], atol=0.01)
    bare = ClipScorer(replace(config, aesthetic=None))
    assert np.isnan(scores(bare(batch((pictures([RED]), "", ""))))).all()
    np.testing.assert_allclose(scores(bare(batch((pictures([RED]), "red", ""))))[0], [100, np.nan, np.nan], atol=0.01)


def test_gray_and_black_pictures_have_a_score(scorer: ClipScorer) -> None:
    gray = np.full((1, 40, 60, 3), 128, np.uint8)
    found = scores(scorer(batch((gray, "red green blue", "red"), (pictures([BLACK]), "red", "dark"))))
    np.testing.assert_allclose(found[0, :2], [100, 100 / 3**0.5], atol=0.05)
    # The vector of black is 0 in this model, which has no direction.
    assert found[1].tolist() == [0, 0, 5]


def test_each_text_of_a_call_is_embedded_once_and_all_in_one_batch(scorer: ClipScorer, monkeypatch: Any) -> None:
    seen: list[list[str]] = []
    tokenizer = scorer._clip.tokenizer

    def tokens(texts: list[str]) -> Any:
        seen.append(texts)
        return tokenizer(texts)

    monkeypatch.setattr(scorer, "_clip", replace(scorer._clip, tokenizer=tokens))
    scorer(batch(*[(pictures([RED]), text, other) for text, other in (("red", "blue"), ("blue", "red"), ("red", ""))]))
    assert [sorted(texts) for texts in seen] == [["", "blue", "red"]]


def test_scenes_of_a_call_do_not_change_each_other(scorer: ClipScorer) -> None:
    random = np.random.default_rng(0)
    texts = ["red", "green blue", "dark red", "", "blue"]
    scenes = [
        (random.integers(0, 256, (1 + i % 3, 40 + 7 * i, 60 - 5 * i, 3), np.uint8), texts[i], texts[-i])
        for i in range(5)
    ]
    together = scores(scorer(batch(*scenes)))
    alone = np.concatenate([scores(scorer(batch(scene))) for scene in scenes])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-3)
    turned = scores(scorer(batch(*scenes[::-1])))
    np.testing.assert_allclose(turned[::-1], alone, rtol=1e-4, atol=1e-3)


def test_layers_without_activations_are_one_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1)
    ).eval()
    # As improved-aesthetic-predictor names them, and out of order from ten on.
    moved = {f"layers.{int(name[0]) * 3}{name[1:]}": value for name, value in layers.state_dict().items()}
    save_file(moved, tmp_path / "head.safetensors")
    weight, bias = load_head(str(tmp_path / "head.safetensors"))
    vector = torch.randn(5, 3)
    expected = layers(vector)[:, 0].detach().numpy()
    np.testing.assert_allclose(vector.numpy() @ weight + bias, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_work_is_told(config: ClipConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip\.model=ViT-B-33 .* near it: ViT-B-32"):
        ClipScorer.check(ClipConfig(model="ViT-B-33"))
    with pytest.raises(UserError, match=r"clip\.aesthetic=.*none\.safetensors: there is no such file"):
        ClipScorer.check(replace(config, aesthetic=str(tmp_path / "none.safetensors")))
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        ClipScorer.check(replace(config, aesthetic="sa_0_4_vit_l_14_linear.pth"))
    wide = tmp_path / "wide.safetensors"
    save_file({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, wide)
    with pytest.raises(UserError, match=r"takes vectors of 768 numbers, and measure\.clip\.model=.* gives 3"):
        ClipScorer(replace(config, aesthetic=str(wide)))
    save_file({"weight": torch.zeros(2, 3)}, wide)
    with pytest.raises(UserError, match="no head of linear layers"):
        load_head(str(wide))
    wide.write_bytes(b"{}")
    with pytest.raises(UserError, match="no head of linear layers"):
        load_head(str(wide))
    ClipScorer.check(config)


def test_it_is_a_family_whose_values_depend_on_model_and_head(config: ClipConfig, tmp_path: Path) -> None:
    assert scorer_class("clip") is ClipScorer
    assert fingerprint("clip", config) == fingerprint(
        "clip", replace(config, batch_size=1, dtype="bfloat16", num_gpus=1)
    )
    other = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, other)
    before = fingerprint("clip", replace(config, aesthetic=str(other)))
    save_file({"weight": torch.ones(1, 3), "bias": torch.zeros(1)}, other)
    assert len({before, fingerprint("clip", replace(config, aesthetic=str(other))), fingerprint("clip", config)}) == 3
    folder = shutil.copytree(config.model, tmp_path / "clip")
    model = replace(config, model=str(folder))
    before = fingerprint("clip", model)
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    assert fingerprint("clip", model) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_it_finds_the_same_with_one_copy_back(cuda: FakeCuda, config: ClipConfig, dtype: Any) -> None:
    random = np.random.default_rng(0)
    scenes = [
        (random.integers(0, 256, (1 + i % 3, 40 + 7 * i, 60, 3), np.uint8), "red", "blue" if i % 2 else "")
        for i in range(5)
    ]
    there = ClipScorer(replace(config, num_gpus=0.5, dtype=dtype))
    assert next(iter(there._clip.model.parameters())).dtype == getattr(torch, dtype)
    cuda.reset()
    found = scores(there(batch(*scenes)))
    # Pictures, texts, and which text is whose.
    assert cuda.to_device <= 3 and cuda.to_host == cuda.waits == 1, "\n".join(cuda.log)
    expected = scores(ClipScorer(replace(config, dtype="float32"))(batch(*scenes)))
    np.testing.assert_allclose(found, expected, *((1e-3, 1e-2) if dtype == "float32" else (0.02, 1)))
