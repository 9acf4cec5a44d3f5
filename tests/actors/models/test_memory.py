"""The size of a model's weights is found wherever they are, and says what a worker takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.core.stage import Stage
from actors.curation.families.clip import ClipConfig
from actors.curation.families.embedding import EmbeddingConfig
from actors.curation.families.safety import SafetyConfig
from actors.curation.features.latents import LatentsConfig
from actors.genres.texts import SentencesConfig
from actors.models.backbones import BackboneConfig
from actors.models.clip import EmbeddingsConfig
from actors.models.memory import PROCESS_GB, weight_bytes
from actors.models.vlm.settings import VlmConfig
from actors.movie_characters.diffusion import DiffusionConfig
from actors.movie_characters.diffusion_memory import holding


def write(folder: Path, **sizes: int) -> Path:
    """Files without contents, of so many bytes; __ stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        with open(folder / name.replace("__", "."), "wb") as file:
            file.truncate(size)
    return folder


def test_of_several_files_one_is_the_model_or_its_shards(tmp_path: Path) -> None:
    model = write(tmp_path / "a", model__safetensors=700, open_clip_model__safetensors=900, pytorch_model__bin=5000)
    assert weight_bytes(str(model)) == weight_bytes(f"local-dir:{model}") == 900
    shards = write(tmp_path / "b", **{f"model-0000{i}-of-00003__safetensors": 500 for i in (1, 2, 3)}, other__json=9000)
    assert weight_bytes(str(shards)) == 1500
    write(
        shards / "unet", **{"diffusion_pytorch_model.fp16__safetensors": 40, "diffusion_pytorch_model__safetensors": 80}
    )
    assert weight_bytes(str(shards), "unet") == 80 and weight_bytes(str(shards), "vae") == 0
    assert weight_bytes(str(write(tmp_path, face__onnx=123) / "face.onnx")) == 123
    assert weight_bytes(str(tmp_path / "nowhere")) == 0


def test_a_name_of_the_hub_is_looked_up_among_downloads_and_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked: dict[str, dict[str, int]] = {"me/model": {"vae/model.safetensors": 7, "model.safetensors": 5}}
    monkeypatch.setattr("actors.models.memory.hub_files", lambda name: asked.pop(name, {}))
    # What a check has downloaded is no weights.
    write(tmp_path / "models--me--model/snapshots/1", config__json=100)
    assert weight_bytes("me/model", "vae") == 7 and not asked
    write(tmp_path / "models--me--model/snapshots/1/vae", model__safetensors=11)
    assert weight_bytes("me/model", "vae") == weight_bytes("hf-hub:me/model", "vae") == 11


GB = 1 << 30


@pytest.mark.parametrize(
    ("make", "files", "on_cpu"),
    [
        # The file lies beside the model of open_clip.
        (lambda folder, **how: EmbeddingsConfig(model=folder, **how), {"open_clip_model__safetensors": GB}, 2.0),
        (lambda folder, **how: ClipConfig(model=folder, **how), {"open_clip_model__safetensors": GB}, 2.0),
        (lambda folder, **how: EmbeddingConfig(model=folder, **how), {"open_clip_model__safetensors": GB}, 2.0),
        (lambda folder, **how: SafetyConfig(model=folder, **how), {"model__safetensors": GB}, 1.9),
        (lambda folder, **how: LatentsConfig(model=folder, **how), {"diffusion_model__safetensors": GB}, 1.7),
        (lambda folder, **how: SentencesConfig(model=folder, **how), {"model__safetensors": GB}, 1.3),
        (lambda folder, **how: BackboneConfig(model=folder, **how), {"model__safetensors": GB}, 1.5),
        (lambda folder, **how: VlmConfig(by="transformers", model=folder, **how), {"model__safetensors": GB}, 1.5),
    ],
)
def test_a_worker_takes_a_process_weights_and_on_a_cpu_a_call(
    tmp_path: Path, make: Any, files: dict[str, int], on_cpu: float
) -> None:
    folder = write(tmp_path, **files, config__json=2, open_clip_config__json=2)
    assert make(str(folder)).worker_gb == pytest.approx(PROCESS_GB + on_cpu)
    on_gpu: Stage = make(str(folder), num_gpus=1)
    assert PROCESS_GB + 1 <= on_gpu.worker_gb <= PROCESS_GB + 2, "weights pass through the machine's memory"


def test_a_worker_that_asks_a_service_loads_no_model() -> None:
    asking = VlmConfig(workers=20, requests_at_once=8)
    assert 0 < asking.worker_gb < PROCESS_GB
    assert asking.pool.workers == 8 and replace(asking, workers=3).pool.workers == 3
    own = VlmConfig(by="transformers", model="a/model", workers=20, requests_at_once=8)
    assert own.pool.workers == 20, "what it has at once is batch_size"


def test_workers_of_diffusion_take_more_with_pictures_and_evaluations(tmp_path: Path) -> None:
    for part, size in {"unet": 3.44e9, "vae": 0.33e9, "text_encoder": 0.49e9}.items():
        write(tmp_path / part, model__safetensors=int(size))

    def takes(*about: Any, pixels: int = 512 * 512, **how: Any) -> float:
        return holding(DiffusionConfig(**how), str(tmp_path), pixels, *about).worker_gb

    one = takes(evaluations_per_call=1)
    # As measured: a forward pass of the real UNet takes a third of a GiB for each row.
    assert takes(evaluations_per_call=9) - one == pytest.approx(8 * 0.32, abs=0.02)
    assert takes(evaluations_per_call=4, pixels=256 * 512) - one == pytest.approx(0.32, abs=0.02)
    assert takes("draw", True) > takes("train", True) == takes("train") + 0.46
    assert takes(num_gpus=1) == takes("train")
