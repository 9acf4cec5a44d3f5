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
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import torch

from actors.core.child import Child
from actors.core.stage import Batch
from actors.directors.head import FrameHead, head_loss, head_values
from actors.media.film import open_film
from tests.support import films

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
        calls = 2 if self.small else 8
        with ThreadPoolExecutor(threads) as pool:
            return self.rate(lambda: list(pool.map(actor, [batch] * calls)), units * calls)


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
    bench.line("CPUs", str(os.cpu_count()))


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
    from actors.curation.frame_scorer import PAIRS_PER_CALL, FrameScorer
    from actors.curation.latents import LatentsConfig, load_vae
    from actors.curation.motion import MotionConfig

    gpu = bench.device == "cuda"
    size, length, count = (128, 4, 2) if bench.small else (240, 16, 16)
    latents = LatentsConfig(model=vae(bench), num_gpus=float(gpu))
    motion = MotionConfig(flow="raft", weights=raft_weights(bench), num_gpus=float(gpu))
    batch, pairs, total = scenes(count, length, size), count * (length - 1), count * length

    some = {name: column[:2] for name, column in scenes(2, 3, size).items()}
    exact = FrameScorer(LatentsConfig(model=latents.model, dtype="float32"), motion, 2, False, False)(some)
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
        count = 16 if bench.small else 2048
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
        answers.append(FeatureExtractor(config, settings, str(weights), "")._features(crops))
    bench.close(f"comics' {settings.name}: features", answers[0], answers[1], 0.05)


# ------------------------------------------------------------------------------------------------------------ trainings


def heads(bench: Bench) -> None:
    """One epoch of what is trained: the losses of each step in bfloat16 beside float32 on the CPU."""
    from actors.comic_characters.network_settings import BackboneConfig, HeadConfig
    from actors.genres.head_settings import HeadConfig as GenresHead
    from actors.genres.heads import make_head
    from pipelines.comic_characters import fine_tune, pretrain
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
    from pipelines.core.epochs import Share, train_epoch

    losses = []
    for device in ("cpu", bench.device):
        torch.manual_seed(0)
        model = make().to(device)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-3)
        there = {name: values.to(device) for name, values in batch.items()}
        half = partial(torch.autocast, device, torch.bfloat16, device == "cuda")
        found = []
        rows = len(next(iter(there.values())))
        for step in range(steps):
            torch.manual_seed(step)
            total, count = train_epoch(model, optimizer, [Share(there, rows, True)], loss, autocast=half)
            found.append(float(total) / count)
        losses.append(found)
    bench.close(f"{what}: losses of {steps} steps", losses[1], losses[0], share)


# ------------------------------------------------------------------------------------------------------------- decoding


def drawn(
    bench: Bench, count: int, seconds: int, codec: str = "libx264", size: tuple[int, int] = (640, 360)
) -> list[Path]:
    """Films with a cut every five seconds; drawn once, by all CPUs."""
    folder = bench.out / "films" / f"{codec}_{size[1]}_{seconds}"
    paths = [folder / f"{number}.mp4" for number in range(count)]
    shots = [films.RATE * 5 + number for number in range(seconds // 5)]
    with ProcessPoolExecutor(min(count, os.cpu_count() or 1), get_context("spawn")) as pool:
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


def decoded(path: str, decoder: str, device: str) -> Iterator[tuple[int, str]]:
    """How many pictures a film has, once each was scaled as finding shots needs it, and what has decoded them."""
    film = open_film(path, decoder, device)
    count = 0
    for count, picture in enumerate(film.pictures, 1):
        picture.scaled(128, 72, smooth=False)
        if count % 6 == 0:
            picture.scaled(426, 240)
    yield count, film.decoder


def nvdec(bench: Bench) -> None:
    """NVDEC's frames, times and pixels beside PyAV's, and its frames a second by decoding processes at once."""
    codecs = ("libx264", "libx265")
    for codec in codecs:
        path = str(drawn(bench, 1, 10, codec)[0])
        ours, theirs = open_film(path, "torchcodec", bench.device), open_film(path, "pyav")
        times, off, count = [], [], 0
        for a, b in zip_longest(ours.pictures, theirs.pictures):
            count += 1
            if a is None or b is None:
                continue
            times.append(abs(a.time - b.time))
            if count % 10 == 0:
                off.append(np.abs(a.scaled(320, 180).astype(float) - b.scaled(320, 180)).mean())
        wanted = "nvdec" if bench.device == "cuda" else "torchcodec-cpu"
        bench.line(f"{codec}: decoded by", ours.decoder, wanted, ours.decoder == wanted)
        bench.line(
            f"{codec}: frames", f"{ours.decoded} and {theirs.decoded}", "the same", ours.decoded == theirs.decoded
        )
        bench.line(f"{codec}: times", f"{max(times):.4f} s off at most", "<= 0.001", max(times) <= 0.001)
        bench.line(f"{codec}: pixels", f"{max(off):.2f} levels off in the mean", "<= 2", max(off) <= 2)
    for size in ((640, 360), (1920, 1080)):
        paths = drawn(bench, 2 if bench.small else 8, 5 if bench.small else 10, size=size)
        for decoder in ("torchcodec", "pyav"):
            for children in (1, 4, 8)[: 1 if bench.small else 3]:
                count, spent, cpu, by = _by_children(paths, children, decoder, bench.device)
                bench.line(
                    f"{size[1]}p, {children} children",
                    f"{count / spent:,.0f} frames/s, {count / cpu:,.0f} a CPU-s, by {by}",
                )


def _by_children(paths: list[Path], children: int, decoder: str, device: str) -> tuple[int, float, float, str]:
    """Frames of all films, seconds, CPU-seconds, and what has decoded them."""
    pool = [Child() for _ in range(children)]

    def some(child: Child, own: list[Path]) -> tuple[int, float, str]:
        count, cpu, by = 0, 0.0, ""
        for path in own:
            stream = child.stream(decoded, str(path), decoder, device, stall_s=60, timeout_s=120)
            while True:
                try:
                    frames_, by = next(stream)
                    count += frames_
                except StopIteration as end:
                    cpu += end.value
                    break
        return count, cpu, by

    shares = [paths[start::children] for start in range(children)]
    with ThreadPoolExecutor(children) as threads:
        # The first film of each is its start: imports, and a context on the GPU.
        list(threads.map(some, pool, [own[:1] for own in shares]))
        started = time.perf_counter()
        found = list(threads.map(some, pool, [own * 2 for own in shares]))
        spent = time.perf_counter() - started
    for child in pool:
        child.kill()
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
    originals = drawn(bench, 2 if bench.small else 8, 5 if bench.small else 30)
    folder = bench.out / "corpus"
    folder.mkdir(exist_ok=True)
    for number in range(2 if bench.small else 48):
        link = folder / f"{number:03}.mp4"
        if not link.exists():
            os.link(originals[number % len(originals)], link)
    models = [f"latents.model={vae(bench)}", "motion.flow=raft", f"motion.weights={raft_weights(bench)}"]
    on_gpu = ["latents.num_gpus=0.2", "motion.num_gpus=0.2", "latents.batch_size=8"]
    decoding = ["video.decoder=torchcodec", "video.num_gpus=0.1"]
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
