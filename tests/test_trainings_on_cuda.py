"""Every training, on a CUDA device that is none: it learns what it learns on a CPU, mixes no devices or dtypes, and
waits for the device no more often than is said here."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from actors.core.checkpoints import Tensors
from actors.directors.head import head_loss, head_values
from actors.directors.head import make_head as make_director_head
from actors.directors.head_settings import HeadConfig as DirectorHeadConfig
from actors.genres.head_settings import HeadConfig as GenreHeadConfig
from actors.movie_characters.diffusion import OneByOne
from actors.movie_characters.diffusion_classifier import DiffusionIdentifier, Identity, QuestionConfig
from actors.movie_characters.drawer import Drawer, GenerateConfig
from actors.movie_characters.identities import find_learnt
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig
from actors.movie_characters.personalise_steps import Trained
from actors.movie_characters.personaliser import Personaliser
from pipelines.comic_characters.learning import fine_tune, pretrain
from pipelines.comic_characters.settings import FineTuneConfig, PretrainConfig, PretrainTraining
from pipelines.core import epochs
from pipelines.core.training_config import TrainingConfig
from pipelines.genres import losses
from pipelines.genres import train as genres
from pipelines.movie_characters.generate import plan_generate
from pipelines.movie_characters.personalise import plan_personalise
from pipelines.tiny_vae import train as tiny_vae
from pipelines.tiny_vae.settings import AutoencoderConfig
from tests.support import tiny_models
from tests.support.fake_cuda import FakeCuda

Costs = tuple[int, int, int]
"""Copies to the device, copies to the host, waits of the host (each copy from memory that is not pinned is one)."""
# Of a step with all that is in it, and of a validation of two batches.
DIRECTORS_COSTS: tuple[Costs, Costs] = (2, 0, 2), (2, 0, 6)
GENRES_COSTS: dict[str, tuple[Costs, Costs]] = {
    "mean": ((3, 0, 3), (0, 3, 4)),
    "lstm": ((5, 2, 7), (4, 7, 12)),
    "attention": ((3, 0, 3), (0, 3, 4)),
    "transformer": ((3, 0, 3), (0, 3, 4)),
}
# Each view draws the order of its changes on the device and waits for it, and copies weights of colours to the device.
PRETRAIN_COSTS: tuple[Costs, Costs] = (13, 4, 17), (24, 8, 59)
FINE_TUNE_COSTS: dict[str, tuple[Costs, Costs]] = {
    "contrastive": ((2, 4, 19), (3, 16, 43)),
    "triplet": ((1, 0, 23), (1, 8, 53)),
    "n_pairs": ((7, 2, 25), (13, 12, 59)),
}
# Of a step that trains the embedding, the LoRA or the UNet with all that is in it.
PERSONALISE_COSTS: dict[str, Costs] = dict.fromkeys(("no", "bf16", "fp16"), (4, 1, 2))


class Shard:
    """A dataset in one block."""

    def __init__(self, rows: Tensors) -> None:
        self._rows = rows

    def iter_torch_batches(self, **_: Any) -> Iterator[Tensors]:
        yield dict(self._rows)


@contextmanager
def worker(device: str, shards: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """One worker of Ray Train, without Ray; what it reports."""
    told: list[dict[str, Any]] = []
    train = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1),
        get_checkpoint=lambda: None,
        get_dataset_shard=lambda name: Shard(shards[name]),
        report=lambda metrics, checkpoint=None: told.append(metrics),
        Checkpoint=SimpleNamespace(from_directory=lambda folder: load_file(Path(folder, "state.safetensors"))),
    )
    with monkeypatch.context() as patched:
        for module in (epochs, tiny_vae):
            patched.setattr(module, "ray_train", train)
            patched.setattr(module, "prepare_model", lambda model: model)
            patched.setattr(module, "get_device", lambda: torch.device("cuda:0" if device == "cuda" else "cpu"))
        yield told


class Counted:
    """A loss or an evaluation that keeps what was counted before and after each call."""

    def __init__(self, cuda: FakeCuda, function: Callable[..., Any]) -> None:
        self._cuda, self._function = cuda, function
        self.before: list[np.ndarray] = []
        self.after: list[np.ndarray] = []

    def __call__(self, *args: Any) -> Any:
        self.before.append(self._now())
        found = self._function(*args)
        self.after.append(self._now())
        return found

    def _now(self) -> np.ndarray:
        return np.array([self._cuda.to_device, self._cuda.to_host, self._cuda.waits])


def compare(
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make: Callable[[], nn.Module],
    loss: Callable[[Any, Tensors], Tensor],
    evaluate: Callable[[Any, Iterable[Tensors]], dict[str, float]],
    rows: Tensors,
    config: TrainingConfig,
    costs: tuple[Costs, Costs],
    bf16_differs: float,
) -> None:
    """Train two epochs of two steps on both devices in float32, and on the device in bf16, too."""
    config = replace(config, epochs=2, batch_size=math.ceil(len(next(iter(rows.values()))) / 2), checkpoint_s=1e9)
    histories = []
    for device, bf16 in (("cpu", False), ("cuda", False), ("cuda", True)):

        def seeded() -> nn.Module:
            torch.manual_seed(0)
            return make()

        steps, validations = Counted(cuda, loss), Counted(cuda, evaluate)
        with worker(device, {"train": rows, "valid": rows}, monkeypatch) as told:
            cuda.reset()
            about = replace(config, bf16=bf16)
            output = str(tmp_path / f"{device}{bf16}")
            begin, problem = epochs.run_epochs(seeded, steps, validations, about, output)
        assert (begin, problem, len(told)) == (0, "", 1)
        histories.append(told[0]["history"])
        found = steps.before[1] - steps.before[0], validations.after[0] - validations.before[0]
        assert device == "cpu" or all((one <= cost).all() for one, cost in zip(found, costs, strict=True)), "\n".join(
            [str(found), *cuda.log]
        )
    here, there, half = histories
    for one, other, low in zip(here, there, half, strict=True):
        for name in one.keys() - {"seconds"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
            assert low[name] == pytest.approx(one[name], rel=bf16_differs, abs=bf16_differs), name


def test_directors(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    rows = {"vector": vectors, "label": torch.arange(8) % 3}
    make = partial(make_director_head, DirectorHeadConfig(hidden=8, dropout=0.0), [0.0] * 6, [1.0] * 6, 3)
    weights = [1.0, 0.5, 1.5]
    loss, values = partial(head_loss, weights=weights), partial(head_values, weights=weights)
    compare(cuda, monkeypatch, tmp_path, make, loss, values, rows, TrainingConfig(), DIRECTORS_COSTS, 0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "kind"),
    [("mean", "asymmetric"), *((head, "cross_entropy") for head in ("mean", "lstm", "attention", "transformer"))],
)
def test_genres(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, head: Any, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {
        "frames": torch.randn(8, 5, 16, generator=generator).half(),
        "mask": torch.arange(5)[None] >= torch.arange(8)[:, None] % 3,
        "labels": (torch.arange(8)[:, None] % torch.tensor([2, 3, 4]) == 0).long(),
    }
    counts = losses.class_balanced_weights(rows["labels"].sum(0), 8)
    config = GenreHeadConfig(head, hidden_size=8, attention=2)
    loss = partial(genres._loss, kind, counts)
    make = partial(genres._first, config, 16, 3, torch.zeros(16))
    compare(
        *(cuda, monkeypatch, tmp_path, make, loss, genres._validate, rows, TrainingConfig(), GENRES_COSTS[head], 0.5),
    )


@pytest.mark.slow
def test_pretraining_of_comics(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"face": (6, 32, 32, 3), "body": (6, 32, 32, 3)}
    rows: Tensors = {kind: torch.randint(0, 256, size, generator=generator).byte() for kind, size in shapes.items()}
    config = PretrainConfig(dimensions=8)
    make = partial(pretrain.make_model, "resnet10", 8)
    loss, values = partial(pretrain.loss, config), partial(pretrain.evaluate, config)
    compare(cuda, monkeypatch, tmp_path, make, loss, values, rows, PretrainTraining(), PRETRAIN_COSTS, 4.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "miner", "fusion"),
    [("contrastive", "none", "sum"), ("triplet", "triplet_margin", "self_attention"), ("n_pairs", "none", "weighted")],
)
def test_fine_tuning_of_comics(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any, miner: Any, fusion: Any
) -> None:
    from actors.comic_characters.network import Head
    from actors.comic_characters.network_settings import HeadConfig

    generator = torch.Generator().manual_seed(0)
    # Four sequences of two characters with two instances each, and an empty place.
    people = torch.arange(8).view(4, 2).repeat_interleave(2, 1)
    rows: Tensors = {
        "faces": torch.randn(4, 5, 8, generator=generator),
        "bodies": torch.randn(4, 5, 8, generator=generator),
        "there": torch.ones(4, 5, 2, dtype=torch.uint8),
        "uncertain": torch.zeros(4, 5, dtype=torch.uint8),
        "character": nn.functional.pad(people, (0, 1), value=-1),
        "sequence": nn.functional.pad(torch.arange(4)[:, None].expand(4, 4), (0, 1), value=-1),
        "series": nn.functional.pad(torch.zeros(4, 4, dtype=torch.long), (0, 1), value=-1),
    }
    config = FineTuneConfig(head=HeadConfig(fusion=fusion, dimensions=4), loss=kind, miner=miner, mask=0.3)
    make = partial(Head, config.head, 8)
    loss, values = partial(fine_tune.loss, config, 8), partial(fine_tune.evaluate, config)
    compare(cuda, monkeypatch, tmp_path, make, loss, values, rows, TrainingConfig(), FINE_TUNE_COSTS[kind], 0.5)


def test_the_tiny_vae(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)]
    monkeypatch.setattr(tiny_vae, "training_pictures", lambda: pictures)
    blocks: dict[str, Any] = {"encoder_blocks": (0, 1, 1, 1), "decoder_blocks": (1, 1, 1, 0)}
    config = AutoencoderConfig(channels=8, steps=2, batch_size=2, crop=16, checkpoint_every=2, **blocks)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        with worker(device, {}, monkeypatch) as told:
            monkeypatch.setattr(tiny_vae, "report", epochs.report)
            cuda.reset()
            tiny_vae._loop(config)
        assert told[0]["device"] == device
        found.append(told[0]["loss"])
    # There it computes in bf16.
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"),
    [
        *(("imagic", one) for one in ("no", "bf16", "fp16")),
        *(("lora", one) for one in ("no", "bf16", "fp16")),
        *(("textual_inversion", one) for one in ("no", "bf16", "fp16")),
    ],
)
def test_personalising(
    cuda: FakeCuda, sd_folder: str, tmp_path: Path, method: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 24, 3), np.uint8)).save(tmp_path / "Ann_1.png")
    told = []
    for device in ("cpu", "cuda"):
        config = PersonaliseConfig(
            input=str(tmp_path / "Ann_1.png"),
            output=str(tmp_path / device),
            pretrained_model_name_or_path=sd_folder,
            method=method,
            resolution=16,
            train_batch_size=2,
            emb_train_steps=2,
            max_train_steps=2,
            log_interval=1,
            mixed_precision="no" if device == "cpu" else precision,
            diffusion=replace(
                PersonaliseConfig.__dataclass_fields__["diffusion"].default_factory(), num_gpus=device == "cuda"
            ),
        )
        todo = plan_personalise(config).todo
        actor = Personaliser(config, todo)
        cuda.reset()
        starts = Counted(cuda, Trained.clear)
        monkeypatch.setattr(Trained, "clear", lambda one, starts=starts: starts(one))
        assert actor({"number": np.arange(len(todo))})["message"].tolist() == [""]
        files = sorted((tmp_path / device / "Ann_1").rglob("optimized*.safetensors"))
        told.append(load_file(files[0]))
        monkeypatch.undo()
    for found in (starts.before[1] - starts.before[0], starts.before[-1] - starts.before[-2]):
        assert (found <= PERSONALISE_COSTS[precision]).all(), "\n".join([str(found), *cuda.log])
    for name, tensor in told[0].items():
        torch.testing.assert_close(
            told[1][name].float(), tensor.float(), rtol=1e-3, atol=1e-4 if precision == "no" else 0.02
        )


FAMILIES = [tiny_models.stable_diffusion_xl, tiny_models.stable_diffusion_3, tiny_models.flux]


@pytest.mark.slow
@pytest.mark.parametrize("make", FAMILIES, ids=lambda one: one.__name__)
def test_other_families_are_personalised_identified_and_drawn(
    cuda: FakeCuda, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    base = make(tmp_path / "base")
    for name in ("Ann_1", "Bob_1"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (18, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    told, losses, drawn = [], [], []
    for device, gpus in (("cpu", 0), ("cuda", 1)):
        ids = str(tmp_path / device)
        given = tuple(str(tmp_path / f"{name}.png") for name in ("Ann_1", "Bob_1"))
        steps: Any = {"emb_train_steps": 2, "max_train_steps": 2, "train_batch_size": 2, "log_interval": 1}
        stage = OneByOne(num_gpus=gpus, dtype="float32")
        config = PersonaliseConfig(given, ids, base, resolution=16, **steps, diffusion=stage)
        todo = plan_personalise(config).todo
        assert Personaliser(config, todo)({"number": np.arange(2)})["message"].tolist() == ["", ""]
        told.append(json.loads((tmp_path / device / "Ann_1" / DONE).read_text())["losses"])
        # Of the same identities on both.
        ids = str(tmp_path / "cpu")
        who = [Identity(one.name, one.optimized, one.lora, base=one.base) for one in find_learnt(ids, "")]
        question = QuestionConfig(method="full", height=16, width=16, num_inference_steps=3)
        missing = np.empty(1, object)
        missing[:] = [np.arange(2)]
        batch = {"image": np.array(given[:1], object), "missing": missing}
        losses.append(DiffusionIdentifier(base, stage, question, who)(batch)["losses"][0])
        drawing: Any = {"height": 16, "width": 16, "num_inference_steps": 2, "imagic_pipe": True, "input": "Ann_1"}
        drawings = GenerateConfig(
            ids, str(tmp_path / f"{device}-drawn"), sd_model_name=base, diffusion=stage, **drawing
        )
        plan = plan_generate(drawings)
        assert Drawer(drawings, plan.identities, plan.todo)({"number": np.arange(1)})["message"].tolist() == [""]
        drawn.append(np.asarray(Image.open(next((tmp_path / f"{device}-drawn").glob("*.png"))), float))
    # Trained in bfloat16 on the device.
    for phase in ("embedding", "unet"):
        assert np.array(told[1][phase]) == pytest.approx(np.array(told[0][phase]), rel=0.05)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert np.abs(drawn[1] - drawn[0]).max() <= 2
