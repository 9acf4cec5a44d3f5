"""What a classifier says of key frames is what its library says of them one by one, whoever made it."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.curation.families.safety import SafetyConfig, SafetyScorer, column_names
from actors.curation.measuring.family import fingerprint, scorer_class
from tests.support.fake_cuda import FakeCuda

pytest.importorskip("transformers")

LABELS = ["Safe", "Not safe (18+)", "drawn"]
COLUMNS = ["safety_safe", "safety_not_safe_18", "safety_drawn"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On a busy machine more of them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of transformers, as save_pretrained leaves it."""
    return saved_vit(tmp_path_factory.mktemp("vit"))


def saved_vit(folder: Path, **settings: Any) -> str:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        initializer_range=0.5,
        **settings,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of timm, as it leaves it for the Hub."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 3}
    model = timm.create_model("resnet18", pretrained_cfg_overlay={"input_size": (3, 32, 32)}, **sizes)
    config = {"label_names": LABELS}
    save_for_hf(model, str(folder), model_config=config, model_args=sizes, safe_serialization=True)
    return str(folder)


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    """Three scenes of photographs, each of another size and number of pictures, a black and a gray one."""
    picture = data.astronaut()
    shown = np.stack([picture[y : y + 200, y : y + 320] for y in (0, 90, 180)])
    return [
        shown,
        data.coffee()[None],
        np.stack([data.chelsea()] * 2),
        np.zeros((1, 90, 160, 3), np.uint8),
        np.full((2, 64, 48, 3), 128, np.uint8),
    ]


def batch(scenes: list[np.ndarray]) -> Batch:
    frames = np.empty(len(scenes), object)
    frames[:] = scenes
    return {"frames": frames}


def table(found: Any) -> np.ndarray:
    return np.stack([*found.values()], 1)


def test_a_model_of_transformers_says_what_it_says_of_pictures_one_by_one(vit: str, scenes: list[np.ndarray]) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    scorer = SafetyScorer(SafetyConfig(model=vit))
    assert list(scorer.columns) == COLUMNS
    found = scorer(batch(scenes))
    model: Any = AutoModelForImageClassification.from_pretrained(vit)
    processor: Any = AutoImageProcessor.from_pretrained(vit)
    with torch.inference_mode():
        expected = [
            torch.cat(
                [model(**processor(Image.fromarray(one), return_tensors="pt")).logits.softmax(1) for one in scene]
            ).amax(0)
            for scene in scenes
        ]
    assert np.ptp(table(found), axis=0).max() > 0.05
    np.testing.assert_allclose(table(found), torch.stack(expected), atol=1e-3)
    assert all(values.dtype == np.float32 for values in found.values())


def test_a_model_of_timm_says_what_it_says_of_pictures_one_by_one(resnet: str, scenes: list[np.ndarray]) -> None:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    scorer = SafetyScorer(SafetyConfig(model=resnet))
    assert list(scorer.columns) == COLUMNS
    found = scorer(batch(scenes))
    model: Any = timm.create_model(f"local-dir:{resnet}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    with torch.inference_mode():
        expected = [
            torch.cat([model(transform(Image.fromarray(one))[None]).softmax(1) for one in scene]).amax(0)
            for scene in scenes
        ]
    assert np.ptp(table(found), axis=0).max() > 0.01
    np.testing.assert_allclose(table(found), torch.stack(expected), atol=5e-3)


def test_probabilities_add_up_to_1_unless_labels_do_not_exclude_each_other(
    vit: str, scenes: list[np.ndarray], tmp_path: Path
) -> None:
    one_picture = batch([scenes[1]])
    assert table(SafetyScorer(SafetyConfig(model=vit))(one_picture)).sum() == pytest.approx(1, abs=1e-5)
    several = saved_vit(tmp_path / "several", problem_type="multi_label_classification")
    each = table(SafetyScorer(SafetyConfig(model=several))(one_picture))
    # The same weights: the odds of a label are its softmax's, up to one factor for all labels.
    odds, shares = each / (1 - each), table(SafetyScorer(SafetyConfig(model=vit))(one_picture))
    np.testing.assert_allclose(odds / odds.sum(), shares, atol=1e-4)
    assert abs(each.sum() - 1) > 0.01


def test_scenes_of_a_call_do_not_change_each_other(vit: str, resnet: str, scenes: list[np.ndarray]) -> None:
    for model in (vit, resnet):
        scorer = SafetyScorer(SafetyConfig(model=model))
        alone = np.concatenate([table(scorer(batch([scene]))) for scene in scenes])
        np.testing.assert_allclose(table(scorer(batch(scenes))), alone, atol=1e-5)
        np.testing.assert_allclose(table(scorer(batch(scenes[::-1])))[::-1], alone, atol=1e-5)


def test_labels_become_columns() -> None:
    assert column_names(LABELS) == COLUMNS
    assert column_names(["LABEL_0", "LABEL_1"]) == ["safety_label_0", "safety_label_1"]
    assert column_names(["0", "1"]) == ["safety_0", "safety_1"]
    assert column_names(["NSFW", "nsfw", "色", "ok"]) == ["safety_nsfw_0", "safety_nsfw_1", "safety_2", "safety_ok"]


def test_what_cannot_work_is_told(vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"safety\.model=null: no classifier ships .* folder that transformers or timm"):
        SafetyScorer.check(SafetyConfig())
    with pytest.raises(UserError, match=r"no config\.json there"):
        SafetyScorer.check(SafetyConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match="cannot be downloaded"):
        SafetyScorer.check(SafetyConfig(model="no name/classifier"))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    with pytest.raises(UserError, match="no image classifier"):
        SafetyScorer.check(SafetyConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_bytes((Path(vit) / "config.json").read_bytes())
    SafetyScorer.check(SafetyConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match="cannot be loaded"):
        SafetyScorer(SafetyConfig(model=str(tmp_path)))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(UserError, match="extra `transformers`"):
        SafetyScorer.check(SafetyConfig(model=vit))


def test_it_is_a_family_whose_values_depend_on_the_model(vit: str, resnet: str, tmp_path: Path) -> None:
    assert scorer_class("safety") is SafetyScorer
    same = {fingerprint("safety", SafetyConfig(model=vit, batch_size=size)) for size in (1, 64)}
    assert len(same | {fingerprint("safety", SafetyConfig(model=resnet))}) == 2
    trained = SafetyConfig(model=str(shutil.copytree(vit, tmp_path / "vit")))
    before = fingerprint("safety", trained)
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "vit" / "model.safetensors")
    assert fingerprint("safety", trained) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_on_a_gpu_it_finds_the_same_with_one_copy_each_way(
    cuda: FakeCuda, vit: str, resnet: str, scenes: list[np.ndarray], library: str, dtype: Any
) -> None:
    model = vit if library == "transformers" else resnet
    there = SafetyScorer(SafetyConfig(model=model, num_gpus=0.5, dtype=dtype))
    assert next(iter(there._model.parameters())).dtype == getattr(torch, dtype)
    cuda.reset()
    found = table(there(batch(scenes)))
    assert (cuda.to_device, cuda.to_host, cuda.waits) == (1, 1, 1), "\n".join(cuda.log)
    expected = table(SafetyScorer(SafetyConfig(model=model, dtype="float32"))(batch(scenes)))
    np.testing.assert_allclose(found, expected, atol=0.02 if dtype == "float32" else 0.05)
