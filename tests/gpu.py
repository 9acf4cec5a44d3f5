"""Prove on a machine with an NVIDIA GPU that what runs there is right, and near the limit of the GPU.

    python -m tests.gpu OUT                  all parts, in at most ten minutes
    python -m tests.gpu OUT raft clip        some of them
    python -m tests.gpu OUT --rehearse       on a CPU, with small models: that the script itself runs

It needs no network and no weights: models have the real shapes and random weights. Values are compared with those of
the same model in float32 on the CPU. A share is the rate of one of our actors, from numpy arrays to numpy arrays,
divided by that of its bare model in a loop over tensors that are on the GPU already, in the same precision. The table
goes to OUT/gpu.md as it grows, and the exit code is 1 where a value is wrong or a share lies below its target.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, zip_longest
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from actors.core.child import Child
from actors.core.stage import Batch
from actors.directors.head import FrameHead, head_loss, head_values
from actors.media.film import Film, VideoConfig, opened
from tests.support import films, tiny_models

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Bench:
    """Where it runs, and the table."""

    out: Path
    device: str
    small: bool
    seconds: float
    """How long a rate is measured."""
    lines: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    failed: int = 0
    part: str = ""

    def line(self, what: str, found: str, wanted: str = "", ok: bool | None = None) -> None:
        """Add a line; ok: whether it is as wanted, None where nothing is."""
        said = "" if ok is None else "yes" if ok else "NO"
        self.failed += ok is False
        self.lines.append((self.part, what, found, wanted, said))
        print(" | ".join(self.lines[-1]), flush=True)
        head = "| part | what | found | wanted | as wanted |\n|---|---|---|---|---|\n"
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in self.lines)
        (self.out / "gpu.md").write_text(head + rows + "\n")

    def close(self, what: str, found: Any, expected: Any, share: float, atol: float = 0.0) -> None:
        """Compare arrays: the largest difference, as a share of the largest expected value."""
        found, expected = (np.asarray(values, np.float64) for values in (found, expected))
        largest = np.abs(expected).max()
        off = np.abs(found - expected).max()
        fine = bool(np.isfinite(found).all() and off <= share * largest + atol)
        allowed = f"<= {share:.1%}" + (f" or {atol:g}" if atol else "")
        self.line(what, f"off by {off / largest:.2%}" if largest else f"off by {off:.2g}", allowed, fine)

    def share(self, what: str, ours: float, bare: float, target: float, unit: str) -> None:
        """Compare a rate with the bare model's."""
        found = f"{ours:,.0f} of {bare:,.0f} {unit} ({ours / bare:.2f})"
        self.line(what, found, f">= {target:.2f}", None if self.small else ours / bare >= target)

    def rate(self, call: Callable[[], Any], units: float) -> float:
        """Units a second of a call that does so many, after a first one that does not count."""
        call()
        self.wait()
        done, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < self.seconds or done < 2:
            call()
            done += 1
            if done % 4 == 0:
                # So that what is queued does not outgrow what is done.
                self.wait()
        self.wait()
        spent = time.perf_counter() - started
        return done * units / spent

    def wait(self) -> None:
        """Until the GPU has done all that was asked of it."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def together(self, actor: Callable[[Batch], Any], batch: Batch, units: float, threads: int = 2) -> float:
        """Units a second of an actor that Ray gives so many batches at once."""
        calls = 2 if self.small else 4
        with ThreadPoolExecutor(threads) as pool:
            return self.rate(lambda: list(pool.map(actor, [batch] * calls)), units * calls)


def cpus() -> int:
    """Of this machine."""
    return os.cpu_count() or 1


def moving(count: int, size: int, seed: int = 0) -> np.ndarray:
    """A scene whose picture moves by 3 and 2 pixels a frame: uint8 (count, size, size, 3) RGB."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, 256, ((size + 3 * count) // 8 + 2,) * 2 + (3,))
    picture = np.kron(cells, np.ones((8, 8, 1))).astype(np.uint8)
    return np.stack([picture[2 * i : 2 * i + size, 3 * i : 3 * i + size] for i in range(count)])


def scenes(count: int, frames: int, size: int) -> Batch:
    """Scenes as the cut hands them on."""
    rows = np.empty(count, object)
    rows[:] = [moving(frames, size, seed) for seed in range(count)]
    nothing = {name: np.full(count, np.nan, np.float32) for name in ("mse", "cos_sim", "max_velocity", "mean_velocity")}
    return {"frames": rows, **nothing, "latents_s": np.zeros(count, np.float32)}


# ---------------------------------------------------------------------------------------------------------- the machine


def machine(bench: Bench) -> None:
    """What there is."""
    bench.line("torch", torch.__version__)
    if bench.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        bench.line("card", f"{about.name}, {about.total_memory >> 30} GiB, driver {driver.stdout.strip()}")
    bench.line("CPUs", str(cpus()))


# --------------------------------------------------------------------------------------------------------------- frames


def vae(bench: Bench) -> str:
    """A VAE of SDXL's shape, as diffusers saves it; returns its folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = bench.out / "models" / "vae"
    if not folder.exists():
        torch.manual_seed(0)
        widths = (8, 8) if bench.small else (128, 256, 512, 512)
        blocks: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
            "block_out_channels": widths,
            "layers_per_block": 2,
            "norm_num_groups": 4 if bench.small else 32,
        }
        AutoencoderKL(**blocks).save_pretrained(folder)
    return str(folder)


def raft_weights(bench: Bench) -> str:
    """RAFT's, random."""
    from safetensors.torch import save_file
    from torchvision.models.optical_flow import raft_large

    path = bench.out / "models" / "raft.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(raft_large().state_dict(), path)
    return str(path)


def frames(bench: Bench) -> None:
    """The features of scenes: a VAE, RAFT, and both in turn."""
    from actors.curation.features.frame_scorer import PAIRS_PER_CALL, FrameScorer
    from actors.curation.features.latents import LatentsConfig, load_vae
    from actors.curation.features.motion import MotionConfig

    gpu = bench.device == "cuda"
    size, length, count = (128, 4, 2) if bench.small else (240, 16, 16)
    latents = LatentsConfig(model=vae(bench), num_gpus=float(gpu))
    motion = MotionConfig(flow="raft", weights=raft_weights(bench), num_gpus=float(gpu))
    batch, pairs, total = scenes(count, length, size), count * (length - 1), count * length

    some = {name: column[:2] for name, column in scenes(2, 3, size).items()}
    exact = FrameScorer(LatentsConfig(model=latents.model, dtype="float32"), motion, cpus(), False, False)(some)
    both = FrameScorer(latents, motion, 1, gpu, False)
    found = both(some)
    bench.close("mse", found["mse"], exact["mse"], 0.05)
    bench.close("cos_sim", found["cos_sim"], exact["cos_sim"], 0.01)
    for name in ("max_velocity", "mean_velocity"):
        bench.close(name, found[name], exact[name], 0.05)

    pixels = torch.from_numpy(np.concatenate(list(batch["frames"]))).to(bench.device).permute(0, 3, 1, 2)
    dtype = torch.bfloat16 if gpu else torch.float32
    inputs = (pixels.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    parts = inputs.split(latents.frames_per_call if gpu else 1)
    encode = load_vae(latents.model, dtype, bench.device).encode
    with torch.inference_mode():
        bare = bench.rate(lambda: [encode(part) for part in parts], total)
    ours = bench.together(FrameScorer(latents, None, 1, gpu, False), batch, total)
    bench.share("VAE", ours, bare, 0.85, "frames/s")

    network = _raft(motion.weights, bench.device)
    unit = pixels.float() / 127.5 - 1
    before, after = unit[:-1][:pairs], unit[1:][:pairs]
    with torch.inference_mode(), torch.autocast(bench.device, torch.bfloat16, enabled=gpu):
        step = PAIRS_PER_CALL[bench.device]
        flow = bench.rate(
            lambda: [network(*some) for some in zip(before.split(step), after.split(step), strict=True)], pairs
        )
    ours = bench.together(FrameScorer(None, motion, 1, gpu, False), batch, pairs)
    bench.share("RAFT, of torchvision's own forward", ours, flow, 0.70, "pairs/s")
    alone = 1 / (1 / (bare / total) + 1 / (ours / pairs))
    bench.share("VAE and RAFT in one actor, of both in turn", bench.together(both, batch, 1), alone, 0.85, "batches/s")


def _raft(weights: str, device: str) -> Any:
    from safetensors.torch import load_file
    from torchvision.models.optical_flow import raft_large

    model = raft_large()
    model.load_state_dict(load_file(weights))
    return model.to(device).eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------- images


def clip(bench: Bench) -> None:
    """CLIP's embeddings of images and of frames."""
    import open_clip
    from safetensors.torch import save_file

    from actors.models.clip import EmbeddingsConfig, FrameEmbedder, ImageEmbedder, load_clip, preprocess

    gpu = bench.device == "cuda"
    for name, target in (("ViT-B-32", None), ("ViT-L-14", 0.85)):
        folder = bench.out / "models" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            own: dict[str, Any] = {**(open_clip.get_model_config(name) or {})}
            if bench.small:
                own["vision_cfg"] = {**own["vision_cfg"], "layers": 1}
                own["text_cfg"] = {**own["text_cfg"], "layers": 1}
            about = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": own, "preprocess_cfg": about}))
            torch.manual_seed(0)
            save_file(
                open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_model.safetensors"
            )
        config = EmbeddingsConfig(model=str(folder), num_gpus=float(gpu))
        exact = EmbeddingsConfig(model=str(folder), dtype="float32")
        count = 16 if bench.small else 1024
        images = np.concatenate([moving(16, 224, seed) for seed in range(8)])
        images = np.tile(images, (max(1, count // len(images)), 1, 1, 1))[:count]
        batch = {"image": images, "error": np.array([""] * count, object)}
        actor = ImageEmbedder(config)
        few = {name: column[:4] for name, column in batch.items()}
        alike = (actor(few)["vector"].astype(float) * ImageEmbedder(exact)(few)["vector"].astype(float)).sum(1)
        bench.close(f"{name}: cosine with float32", alike, np.ones(4), 0.01)
        loaded = load_clip(config)
        with torch.inference_mode():
            inputs = preprocess(loaded, images[: config.per_call])
            bare = bench.rate(partial(loaded.model.encode_image, inputs), len(inputs))
        ours = bench.together(actor, batch, count)
        if target:
            bench.share(f"{name}, images", ours, bare, target, "images/s")
        else:
            # Its images reach a GPU more slowly than they are embedded.
            bench.line(f"{name}, images", f"{ours:,.0f} of {bare:,.0f} images/s ({ours / bare:.2f})")
        parts = np.empty(count // 16, object)
        parts[:] = np.split(images, count // 16)
        ours = bench.together(FrameEmbedder(config), {"frames": parts}, count)
        bench.line(f"{name}, frames of scenes", f"{ours:,.0f} of {bare:,.0f} images/s ({ours / bare:.2f})")


def backbone(bench: Bench) -> None:
    """Directors' backbone, and comics'."""
    import timm
    from safetensors.torch import save
    from timm.models import save_for_hf

    from actors.comic_characters.network import FeatureExtractor, make_backbone
    from actors.comic_characters.network_settings import BackboneConfig as ComicsBackbone
    from actors.comic_characters.network_settings import FeaturesConfig
    from actors.models.backbones import Backbone, BackboneConfig

    gpu = bench.device == "cuda"
    name = "resnet18" if bench.small else "resnet50"
    folder = bench.out / "models" / name
    torch.manual_seed(0)
    model: Any = timm.create_model(name)
    save_for_hf(model, str(folder), safe_serialization=True)
    count = 8 if bench.small else 512
    images = np.concatenate([moving(8, 224, seed) for seed in range(4)])
    batch = {"image": np.tile(images, (max(1, count // 32), 1, 1, 1))[:count], "error": np.array([""] * count, object)}
    actor = Backbone(BackboneConfig(model=str(folder), num_gpus=float(gpu)))
    few = {name: column[:4] for name, column in batch.items()}
    exact = Backbone(BackboneConfig(model=str(folder), dtype="float32"))
    bench.close(f"{name}: vectors", actor(few)["vector"], exact(few)["vector"], 0.05)
    dtype = torch.bfloat16 if gpu else torch.float32
    bare: Any = model.to(bench.device).to(dtype).to(memory_format=torch.channels_last).eval()
    bare.reset_classifier(0)
    inputs = torch.rand(count, 3, 224, 224, device=bench.device, dtype=dtype)
    inputs = inputs.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        limit = bench.rate(lambda: bare(inputs), count)
    bench.share(name, bench.together(actor, batch, count, threads=1), limit, 0.5, "images/s")

    settings = ComicsBackbone()
    weights = bench.out / "models" / "comics.safetensors"
    weights.write_bytes(
        save({key: value.contiguous() for key, value in make_backbone(settings.name).state_dict().items()})
    )
    crops = np.concatenate([moving(4, settings.sizes()["face"], seed) for seed in range(2)])
    answers = []
    for config in (FeaturesConfig(num_gpus=float(gpu), dtype="bfloat16" if gpu else "float32"), FeaturesConfig()):
        answers.append(FeatureExtractor(config, settings, str(weights), "").features(crops, "face"))
    bench.close(f"comics' {settings.name}: features", answers[0], answers[1], 0.05)


# ------------------------------------------------------------------------------------------------------------ trainings


def heads(bench: Bench) -> None:
    """One epoch of what is trained: the losses of each step in bfloat16 beside float32 on the CPU."""
    from actors.comic_characters.network_settings import BackboneConfig, HeadConfig
    from actors.genres.head_settings import HeadConfig as GenresHead
    from actors.genres.heads import make_head
    from pipelines.comic_characters.learning import fine_tune, pretrain
    from pipelines.comic_characters.settings import FineTuneConfig, PretrainConfig
    from pipelines.genres.train import _loss

    random = np.random.default_rng(0)
    vectors = torch.from_numpy(random.standard_normal((32, 20, 64)).astype(np.float32))
    labels = torch.from_numpy(random.random((32, 21)) < 0.2)
    films_: Any = {"frames": vectors, "mask": torch.ones(32, 20, dtype=torch.bool), "labels": labels.float()}
    kinds: Any = GenresHead.__dataclass_fields__["head"].type
    for kind in kinds.__args__:
        layers = GenresHead(head=kind)
        _trained(bench, f"genres, {kind}", partial(make_head, layers, 64, 21), partial(_loss, "", None), films_)
    shots = {"vector": vectors[:, 0], "label": torch.from_numpy(random.integers(0, 5, 32))}
    _trained(bench, "directors", partial(FrameHead, 64, 5, dropout=0.0), partial(head_loss, weights=[1.0] * 5), shots)
    sizes, rows = BackboneConfig().sizes(), 4 if bench.small else 32
    pairs = {
        kind: torch.from_numpy(random.integers(0, 256, (rows, sizes[kind], sizes[kind], 3), np.uint8))
        for kind in ("face", "body")
    }
    name = "resnet18" if bench.small else "resnet50"
    make = partial(pretrain.make_model, name, 128)
    _trained(bench, "comics, contrastive", make, partial(pretrain.loss, PretrainConfig()), pairs, 0.15, 1)
    config = FineTuneConfig(mask=0.0)
    places = {
        "faces": torch.from_numpy(random.standard_normal((8, 6, 512)).astype(np.float32)),
        "bodies": torch.from_numpy(random.standard_normal((8, 6, 512)).astype(np.float32)),
        "there": torch.ones(8, 6, 2, dtype=torch.uint8),
        "uncertain": torch.zeros(8, 6, dtype=torch.uint8),
        "character": torch.arange(8)[:, None] * 3 + torch.arange(6) % 3,
        "sequence": torch.arange(8)[:, None].expand(8, 6).contiguous(),
        "series": torch.arange(8)[:, None].expand(8, 6).contiguous(),
    }
    assert HeadConfig().fusion
    _trained(
        bench,
        "comics, fine-tuning",
        partial(fine_tune.make_model, config, "resnet18"),
        partial(fine_tune.loss, config),
        places,
    )


def _trained(
    bench: Bench,
    what: str,
    make: Callable[[], Any],
    loss: Callable[..., Any],
    batch: dict[str, Any],
    share: float = 0.05,
    steps: int = 3,
) -> None:
    """Compare the losses of a few steps on one batch."""
    from pipelines.core.epochs import Share, train_epoch, train_in_bfloat16

    losses = []
    for device in ("cpu", bench.device):
        torch.manual_seed(0)
        model = make().to(device)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-3)
        there = {name: values.to(device) for name, values in batch.items()}
        if device == "cuda":
            train_in_bfloat16(model, device)
        found = []
        rows = len(next(iter(there.values())))
        for step in range(steps):
            torch.manual_seed(step)
            total, count = train_epoch(model, optimizer, [Share(there, rows, True)], loss)
            found.append(float(total) / count)
        losses.append(found)
    bench.close(f"{what}: losses of {steps} steps", losses[1], losses[0], share)


# ------------------------------------------------------------------------------------------------------------ diffusion


def stable_diffusion(bench: Bench) -> str:
    """A Stable Diffusion of version 1.5's shape, as diffusers saves it; returns its folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = bench.out / "models" / "sd"
    if folder.exists():
        return str(folder)
    if bench.small:
        return tiny_models.stable_diffusion(folder)
    letters = tiny_models.letters()
    ends: dict[str, Any] = {"bos_token_id": letters.bos_token_id, "eos_token_id": letters.eos_token_id}
    widths: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text: Any = CLIPTextConfig(vocab_size=len(letters), num_hidden_layers=12, **widths, **ends)
    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    torch.manual_seed(0)
    # Drawn where that is fast.
    with torch.device(bench.device):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        parts = AutoencoderKL(**levels), CLIPTextModel(text), unet
    return tiny_models.save_pipeline(folder, *parts, tiny_models.schedule())


def photos(bench: Bench, count: int, size: int) -> list[str]:
    """Pictures of that size as files, named as images of identities are."""
    folder = bench.out / "photos"
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"someone_{number}.png") for number in range(count)]
    for seed, path in enumerate(paths):
        Image.fromarray(moving(1, size, seed)[0]).save(path)
    return paths


def diffusion(bench: Bench) -> None:
    """Losses of the UNet: all questions, the late ones of a race, and their values."""
    from actors.movie_characters.diffusion import DiffusionConfig, load_diffusion
    from actors.movie_characters.diffusion_classifier import (
        DiffusionIdentifier,
        Identity,
        QuestionConfig,
        StagesConfig,
    )
    from actors.movie_characters.noise_losses import predict

    model, gpu = stable_diffusion(bench), bench.device == "cuda"
    side, count, width = (16, 4, 16) if bench.small else (512, 64, 768)
    paths = photos(bench, count, side)
    random = np.random.default_rng(0)
    identities = [Identity(f"someone_{n}", random.standard_normal((77, width), np.float32)) for n in range(20)]
    config = DiffusionConfig(num_gpus=float(gpu), evaluations_per_call=64)

    def asked(images: int, each: int) -> Batch:
        missing = np.empty(images, object)
        missing[:] = [np.arange(each)] * images
        return {"image": np.array(paths[:images], object), "missing": missing}

    small = QuestionConfig(method="full", num_inference_steps=3, height=side // 2, width=side // 2)
    exact = DiffusionIdentifier(model, DiffusionConfig(num_cpus=cpus(), dtype="float32"), small, identities)
    found = DiffusionIdentifier(model, config, small, identities)(asked(1, 2))
    values = [np.stack(one["losses"].tolist())[:, :2] for one in (found, exact(asked(1, 2)))]
    bench.close("losses of the noise", values[0], values[1], 0.02)
    del exact

    loaded = load_diffusion(model, config)
    shape = (64, loaded.unet.config.in_channels, *(side // 8 if not bench.small else side // 2,) * 2)
    noisy = torch.randn(shape, device=bench.device)
    times = torch.arange(64, device=bench.device)
    condition = torch.randn(64, 77, width, device=bench.device)
    with torch.inference_mode():
        bare = bench.rate(partial(predict, loaded, noisy, times, condition), 64)
    del loaded
    for what, target, question, images, each, pairs in (
        ("all questions", 0.85, QuestionConfig(method="full", num_inference_steps=8), count // 4, 16, 8),
        ("late questions", 0.70, QuestionConfig(stages=StagesConfig((4, 16), (2, 1), p=0)), count, 2, 16),
    ):
        actor = DiffusionIdentifier(model, config, replace(question, height=side, width=side), identities)
        actor(asked(2, 2))
        bench.wait()
        started = time.perf_counter()
        actor(asked(images, each))
        bench.share(what, images * each * pairs / (time.perf_counter() - started), bare, target, "evaluations/s")


def generate(bench: Bench) -> None:
    """A picture drawn in half precision beside the same in float32 on the CPU."""
    from actors.movie_characters.diffusion import OneByOne
    from actors.movie_characters.drawer import Drawer, Drawing, GenerateConfig
    from actors.movie_characters.identities import Learnt

    side, width = (16, 16) if bench.small else (256, 768)
    random = np.random.default_rng(0)
    text, own = (random.standard_normal((77, width), np.float32) for _ in range(2))
    someone = Learnt("someone_0", text, own, "", "", "", "")
    drawing = Drawing("someone_0", 0, 0.5, 7.5)
    found = []
    for place, gpus in (("cpu", 0.0), ("gpu", float(bench.device == "cuda"))):
        output = bench.out / f"drawn_{place}"
        config = GenerateConfig(
            *(str(bench.out), str(output)),
            **{"sd_model_name": stable_diffusion(bench), "height": side, "width": side, "num_inference_steps": 4},
            diffusion=OneByOne(num_gpus=gpus, num_cpus=cpus()),
        )
        told = Drawer(config, [someone], [drawing])({"number": np.array([0])})
        assert told["error"].tolist() == [""], told["message"]
        found.append(np.asarray(Image.open(output / drawing.file), np.float64))
    off = float(np.abs(found[0] - found[1]).mean())
    bench.line("a picture", f"{off:.2f} levels off in the mean", "<= 4", off <= 4)


def captions(bench: Bench) -> None:
    """The likeliest texts of a small model, several at once, beside those on the CPU."""
    from actors.models.vlm.local import LocalVlm
    from tests.actors.curation.captioning.asked import question

    folder = bench.out / "models" / "captioner"
    if not folder.exists():
        tiny_models.captioning_model(folder, [f"w{number}" for number in range(60)])
    models = [LocalVlm(str(folder), gpu) for gpu in (False, bench.device == "cuda")]
    asked = [question(f"w{seed} w40 {'w41 ' * seed}", count=1 + seed) for seed in range(3)]
    for exact, found in zip(*(model.replies(asked, 0) for model in models), strict=True):
        bench.line("text", f"{found.text!r}, {found.tokens_out} tokens", f"{exact.text!r}", found == exact)


def personalise(bench: Bench) -> None:
    """Three methods in three precisions, one killed and resumed, and the steps a second of a LoRA."""
    gpu = bench.device == "cuda"
    tiny = bench.out / "models" / "tiny_sd"
    if not tiny.exists():
        tiny_models.stable_diffusion(tiny)
    photos(bench, 4, 64)
    for method in ("lora", "imagic", "textual_inversion"):
        exact = personalised(bench.out, method, "no", False, 20)
        for precision in ("no", "bf16", "fp16"):
            found = personalised(bench.out, method, precision, gpu, 20)
            _alike(bench, f"{method}, {precision}", found, exact, 0.95)
    whole = personalised(bench.out, "lora", "bf16" if gpu else "no", gpu, 100)
    child = Child()
    stream = child.stream(killed, bench.out, gpu, stall_s=120, timeout_s=120)
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(lambda: next(stream, None))
        until = time.monotonic() + 90
        while not list((bench.out / "killed").rglob("*.safetensors")) and time.monotonic() < until:
            time.sleep(0.05)
        child.interrupt()
        bench.line("killed while it trained", str(told.exception()), "", told.exception() is not None)
    again = personalised(bench.out, "lora", "bf16" if gpu else "no", gpu, 100, "killed")
    _alike(bench, "killed and resumed", again, whole, 0.99)
    if not bench.small:
        _lora_steps(bench)


def personalised(
    out: Path, method: Any, precision: Any, gpu: bool, steps: int, folder: str = "", save_s: float = 300.0
) -> np.ndarray:
    """What training has changed of the embedding of an identity of the tiny model: float32 (77 d,)."""
    from safetensors.numpy import load_file

    from actors.movie_characters.diffusion import OneByOne
    from actors.movie_characters.names import Picture
    from actors.movie_characters.personalise_settings import PersonaliseConfig, Task
    from actors.movie_characters.personaliser import Personaliser

    output = out / (folder or f"{method}_{precision}_{gpu}_{steps}")
    config = PersonaliseConfig(
        *(str(out / "photos"), str(output), str(out / "models" / "tiny_sd")),
        **{"method": method, "resolution": 16, "emb_train_steps": steps, "max_train_steps": steps},
        **{"mixed_precision": precision, "checkpoint_s": save_s, "emb_learning_rate": 1e-2},
        diffusion=OneByOne(num_gpus=float(gpu)),
    )
    names = [f"someone_{number}.png" for number in range(4)]
    pictures = tuple(Picture(name, str(out / "photos" / name), 0) for name in names)
    task = Task("someone_0", pictures, "")
    told = Personaliser(config, [task])({"number": np.array([0])})
    assert told["error"].tolist() == [""], told["message"]
    files = (output / "someone_0" / f"{name}_embeddings.safetensors" for name in ("optimized", "target"))
    learnt, before = (load_file(path).popitem()[1] for path in files)
    return (learnt - before).ravel()


def _alike(bench: Bench, what: str, found: np.ndarray, expected: np.ndarray, least: float) -> None:
    cosine = float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
    bench.line(f"{what}: cosine of what was learnt", f"{cosine:.4f}", f">= {least}", cosine >= least)


def killed(out: Path, gpu: bool) -> Iterator[int]:
    """Train until a kill, with a checkpoint after every step."""
    yield len(personalised(out, "lora", "bf16" if gpu else "no", gpu, 100, "killed", 0.0))


def _lora_steps(bench: Bench) -> None:
    """Steps a second of our LoRA training beside those of a plain loop in bfloat16."""
    from peft import LoraConfig

    from actors.movie_characters.diffusion import DiffusionConfig, OneByOne, load_diffusion
    from actors.movie_characters.families import SD
    from actors.movie_characters.names import Picture
    from actors.movie_characters.personalise_settings import PersonaliseConfig, Task
    from actors.movie_characters.personaliser import Personaliser

    model, batch = stable_diffusion(bench), 4
    paths = photos(bench, 4, 512)
    pictures = tuple(Picture(Path(path).name, path, 0) for path in paths)
    steps: Any = {"emb_train_steps": 0, "max_train_steps": 60, "train_batch_size": batch}
    places = str(bench.out / "photos"), str(bench.out / "lora"), model
    config = PersonaliseConfig(*places, **steps, diffusion=OneByOne(num_gpus=1.0))
    task = Task("someone_0", pictures, "")
    trainer = Personaliser(config, [task])
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        trainer.learn(task)
        bench.wait()
        seconds.append(time.perf_counter() - started)
    # The first one is the start of the kernels; both read pictures and write files, too.
    ours = 60 / seconds[1]
    del trainer

    unet = load_diffusion(model, DiffusionConfig(num_gpus=1.0, dtype="bfloat16")).unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(SD.layers)))
    learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, 1e-4, fused=True)
    noisy = torch.randn(batch, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
    condition = torch.randn(batch, 77, 768, device="cuda", dtype=torch.bfloat16)
    times = torch.randint(1000, (batch,), device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        found = unet(noisy, times, condition, return_dict=False)[0]
        torch.nn.functional.mse_loss(found.float(), noisy.float()).backward()
        optimizer.step()

    bench.share("a LoRA, batches of 4 at 512 pixels", ours, bench.rate(step, 1), 0.80, "steps/s")


# ------------------------------------------------------------------------------------------------------------- decoding


def drawn(
    bench: Bench, count: int, seconds: int, codec: str = "libx264", size: tuple[int, int] = (640, 360)
) -> list[Path]:
    """Films with a cut every five seconds; drawn once, by all CPUs."""
    folder = bench.out / "films" / f"{codec}_{size[1]}_{seconds}"
    paths = [folder / f"{number}.mp4" for number in range(count)]
    shots = [films.RATE * 5 + number for number in range(seconds // 5)]
    with ProcessPoolExecutor(min(count, cpus()), get_context("spawn")) as pool:
        missing = [path for path in paths if not path.exists()]
        draws = [
            pool.submit(
                films.film, path, shots[place % len(shots) :] + shots[: place % len(shots)], size=size, codec=codec
            )
            for place, path in enumerate(missing)
        ]
        for draw in draws:
            draw.result()
    return paths


def film_of(path: Path | str, decoder: Any, gpu: bool) -> Film:
    """A film as a worker opens it."""
    by_gpu = gpu and decoder == "torchcodec"
    return opened(str(path), VideoConfig(decoder=decoder, num_gpus=0.1 if by_gpu else 0.0))


def decoded(path: str, decoder: str, gpu: bool) -> Iterator[tuple[int, str]]:
    """How many pictures a film has, once each was scaled as finding shots needs it, and what has decoded them."""
    film, count = film_of(path, decoder, gpu), 0
    for count, picture in enumerate(film.pictures, 1):
        picture.scaled(128, 72, smooth=False)
        if count % 6 == 0:
            picture.scaled(426, 240)
    yield count, film.decoder


def nvdec(bench: Bench) -> None:
    """NVDEC's frames, times and pixels beside PyAV's, and its frames a second by decoding processes at once."""
    gpu = bench.device == "cuda"
    for codec in ("libx264", "libx265"):
        (path,) = drawn(bench, 1, 10, codec)
        ours, theirs = film_of(path, "torchcodec", gpu), film_of(path, "pyav", gpu)
        times, off, count = [], [], 0
        for a, b in zip_longest(ours.pictures, theirs.pictures):
            count += 1
            if a is None or b is None:
                continue
            times.append(abs(a.time - b.time))
            if count % 10 == 0:
                off.append(np.abs(a.scaled(320, 180).astype(float) - b.scaled(320, 180)).mean())
        wanted = "nvdec" if gpu else "torchcodec-cpu"
        bench.line(f"{codec}: decoded by", f"{ours.decoder} {ours.fallback}", wanted, ours.decoder == wanted)
        bench.line(
            f"{codec}: frames", f"{ours.decoded} and {theirs.decoded}", "the same", ours.decoded == theirs.decoded
        )
        bench.line(f"{codec}: times", f"{max(times):.4f} s off at most", "<= 0.001", max(times) <= 0.001)
        bench.line(f"{codec}: pixels", f"{max(off):.2f} levels off in the mean", "<= 2", max(off) <= 2)
    small = drawn(bench, 2 if bench.small else 8, 5 if bench.small else 10)
    large = [path.with_name(f"{path.stem}_1080.mp4") for path in small]
    with ProcessPoolExecutor(min(len(small), cpus()), get_context("spawn")) as pool:
        list(pool.map(enlarged, small, large))
    counts = (1,) if bench.small else (1, 4, 8)
    for decoder in ("torchcodec", "pyav"):
        children = [Child() for _ in range(max(counts))]
        with busy() as seen:
            by = _by_children(children, large, decoder, gpu)[3]
        if by == "nvdec":
            memory = [mib for _, mib in seen]
            bench.line("1080p, nvdec", f"{(max(memory) - min(memory)) / len(children):,.0f} MiB of the GPU a child")
        for height, paths in ((360, small), (1080, large)):
            for count in counts:
                number, spent, cpu, by = _by_children(children[:count], paths, decoder, gpu)
                found = f"{number / spent:,.0f} frames/s, {number / cpu:,.0f} a CPU-s"
                bench.line(f"{height}p, {count} children, {by}", found)
        for child in children:
            child.kill()


def enlarged(source: Path, path: Path) -> None:
    """The first five seconds of a film at 1080p."""
    if not path.exists():
        pictures = islice(film_of(source, "pyav", False).pictures, films.RATE * 5)
        films.written(path, (picture.scaled(1920, 1080) for picture in pictures))


def _by_children(children: list[Child], paths: list[Path], decoder: str, gpu: bool) -> tuple[int, float, float, str]:
    """Frames of all films, seconds, CPU-seconds, and what has decoded them."""

    def some(child: Child, own: list[Path]) -> tuple[int, float, str]:
        count, cpu, by = 0, 0.0, ""
        for path in own:
            stream = child.stream(decoded, str(path), decoder, gpu, stall_s=60, timeout_s=120)
            while True:
                try:
                    frames_, by = next(stream)
                    count += frames_
                except StopIteration as end:
                    cpu += end.value
                    break
        return count, cpu, by

    shares = [paths[start :: len(children)] for start in range(len(children))]
    with ThreadPoolExecutor(len(children)) as threads:
        # The first film of each is its start: imports, and a context on the GPU.
        list(threads.map(some, children, [own[:1] for own in shares]))
        started = time.perf_counter()
        found = list(threads.map(some, children, [own[:2] * 2 for own in shares]))
        spent = time.perf_counter() - started
    return sum(one[0] for one in found), spent, sum(one[1] for one in found), found[0][2]


# ---------------------------------------------------------------------------------------------------------------- Ray


def training(bench: Bench) -> None:
    """`fit` on a GPU that Ray gives it, beside `fit` on a CPU."""
    import ray

    from pipelines.core.training import fit
    from pipelines.core.training_config import TrainingConfig

    gpu = bench.device == "cuda"
    ray.init(address="local", num_cpus=4, num_gpus=int(gpu), include_dashboard=False, log_to_driver=False)
    try:
        random = np.random.default_rng(0)
        vectors = random.standard_normal((256, 16)).astype(np.float32)
        labels = (vectors[:, :3].sum(1) > 0).astype(np.int64)
        rows = ray.data.from_items([{"vector": v, "label": n} for v, n in zip(vectors, labels, strict=True)])
        found = []
        for gpus in (0.0, float(gpu)):
            config = TrainingConfig(epochs=20, batch_size=64, learning_rate=0.01, num_gpus=gpus)
            make = partial(FrameHead, 16, 2, dropout=0.0)
            trained = fit(
                make,
                partial(head_loss, weights=[1.0, 1.0]),
                partial(head_values, weights=[1.0, 1.0]),
                {"train": rows, "valid": rows},
                config,
                output=str(bench.out / f"fit_{gpus:g}"),
                settings={},
            )
            found.append(trained.history[-1]["valid_loss"])
        bench.close("fit(use_gpu=True): loss of the last epoch", found[1], found[0], 0.05)
    finally:
        ray.shutdown()


def run(bench: Bench) -> None:
    """A whole `curation run` with its model pool on the GPU, films decoded by PyAV and by NVDEC."""
    gpu = bench.device == "cuda"
    originals = drawn(bench, 2 if bench.small else 8, 5 if bench.small else 10)
    folder = bench.out / "corpus"
    folder.mkdir(exist_ok=True)
    for number in range(2 if bench.small else 144):
        link = folder / f"{number:03}.mp4"
        if not link.exists():
            os.link(originals[number % len(originals)], link)
    models = [f"latents.model={vae(bench)}", "motion.flow=raft", f"motion.weights={raft_weights(bench)}"]
    on_gpu = ["latents.num_gpus=0.2", "motion.num_gpus=0.2", "latents.batch_size=8"]
    decoding = ["video.decoder=torchcodec", "video.num_gpus=0.1", "cpu_films=auto"]
    ways = {"PyAV": [*models, *on_gpu], "NVDEC": [*models, *on_gpu, *decoding]} if gpu else {"PyAV": models[:1]}
    for way, settings in ways.items():
        output = bench.out / f"run_{way}"
        command = [sys.executable, "-m", "jobs.curation", "run", f"input={folder}", f"output={output}", *settings]
        with busy() as seen:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-6000:], sep="\n")
        bench.line(f"{way}: exit code", str(done.returncode), "0", done.returncode == 0)
        scores = pd.concat([pd.read_parquet(path) for path in (output / "scores").rglob("*.parquet")])
        measured = scores[scores.scene_id != ""]
        bad = int((measured.error != "").sum() + measured.mse.isna().sum())
        bench.line(f"{way}: scenes", f"{len(measured)}, {bad} not measured", "0", len(measured) > 0 and not bad)
        bench.line(f"{way}: decoded by", str(scores.decoder[scores.scene_id == ""].value_counts().to_dict()))
        shares = [share for share, _ in seen]
        if any(shares):
            first, last = min(np.flatnonzero(shares)), max(np.flatnonzero(shares))
            share = float(np.mean(shares[first : last + 1])) / 100
            wanted = (">= 0.70", share >= 0.7) if way == "PyAV" else ("", None)
            bench.line(f"{way}: GPU busy", f"{share:.2f} of {(last + 1 - first) / 5:.0f} s", *wanted)
            bench.line(f"{way}: GPU memory", f"{max(memory for _, memory in seen) / 1024:.1f} GiB")


@contextmanager
def busy() -> Iterator[list[tuple[int, int]]]:
    """Percent of the time in which the GPU computed, and the MiB that were in use, five times a second."""
    seen: list[tuple[int, int]] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        watch = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield seen
        return

    def read() -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            seen.append((int(line.split(",")[0]), int(line.split(",")[1])))

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        watch.kill()
        watch.wait()


# ----------------------------------------------------------------------------------------------------------------- main


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "frames": frames,
    "clip": clip,
    "backbone": backbone,
    "heads": heads,
    "diffusion": diffusion,
    "generate": generate,
    "captions": captions,
    "personalise": personalise,
    "nvdec": nvdec,
    "training": training,
    "run": run,
}


def main() -> None:
    """Run the parts, one after the other; what fails in one does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with small models")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not (torch.cuda.is_available() or given.rehearse):
        sys.exit("there is no GPU that torch can use; --rehearse runs the script with small models on the CPU")
    (given.out / "models").mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, "cpu" if given.rehearse else "cuda", given.rehearse, 0.1 if given.rehearse else 2.0)
    for name in given.parts or PARTS:
        bench.part, started = name, time.perf_counter()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            PARTS[name](bench)
        except Exception as error:
            traceback.print_exc()
            bench.line("failed", f"{type(error).__name__}: {str(error).splitlines()[:1]}", "to run", False)
        peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if bench.device == "cuda" else ""
        bench.line("took", f"{time.perf_counter() - started:.0f} s{peak}")
    sys.exit(1 if bench.failed else 0)


if __name__ == "__main__":
    main()
