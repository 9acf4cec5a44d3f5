"""Workers of `tests.benchmarks.workers` that hold a model: its weights, drawn at random in the real shape, and a call.

A pair of functions each: one saves weights in a folder, the other loads them as a worker does and returns the settings
of the stage and one call of it.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from actors.core.stage import Batch, Stage
from actors.movie_characters.diffusion_memory import holding

Call = Callable[[], Any]


class Loaded(NamedTuple):
    """How a worker is tried out."""

    save: Callable[[Path], None]
    load: Callable[[Path], tuple[Stage, Call]]


def pictures(rows: int, *shape: int) -> np.ndarray:
    """Frames of rows: object (rows,), uint8 arrays of a shape."""
    found = np.empty(rows, object)
    found[:] = [np.random.default_rng(row).integers(0, 255, shape, np.uint8) for row in range(rows)]
    return found


def files(folder: Path, rows: int, people: bool = False) -> Batch:
    """Pictures of 720p as files, as batches name them; people: of six who look into the camera."""
    from PIL import Image
    from skimage.data import astronaut

    folder.mkdir(exist_ok=True)
    uris = [str(folder / f"{row}.jpg") for row in range(rows)]
    for uri, (picture,) in zip(uris, pictures(rows, 1, 720, 1280, 3), strict=True):
        if people:
            picture[:600, :1200] = np.tile(astronaut()[:300, 50:450], (2, 3, 1))
        Image.fromarray(picture).save(uri)
    nothing = np.array([""] * rows, object)
    return {"uri": np.array(uris, object), "error": nothing, "message": nothing}


def save_clip(name: str, folder: Path) -> None:
    """A CLIP model as open_clip saves it."""
    import open_clip
    from safetensors.torch import save_file

    save_file(open_clip.create_model(name).state_dict(), folder / "open_clip_model.safetensors")
    about = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))


def load_clip(folder: Path) -> tuple[Stage, Call]:
    """Frames as `evaluate` embeds them."""
    from actors.models.clip import EmbeddingsConfig, FrameEmbedder

    config = EmbeddingsConfig(model=str(folder), pretrained=None)
    worker = FrameEmbedder(config)
    return config, lambda: worker({"frames": pictures(config.batch_size, 16, 240, 240, 3)})


def load_clip_family(folder: Path) -> tuple[Stage, Call]:
    """Key frames and captions, as the family `clip` compares them."""
    from actors.curation.families.clip import ClipConfig, ClipScorer

    config = ClipConfig(model=str(folder), pretrained=None)
    worker, rows = ClipScorer(config), config.batch_size
    texts = {name: np.array(["a man walks along a pier"] * rows, object) for name in ("caption", "recaption")}
    return config, lambda: worker({"frames": pictures(rows, 3, 360, 640, 3), **texts})


def load_embedding(folder: Path) -> tuple[Stage, Call]:
    """Key frames, as the family `embedding` embeds them."""
    from actors.curation.families.embedding import Embedding, EmbeddingConfig

    config = EmbeddingConfig(model=str(folder))
    worker = Embedding(config)
    return config, lambda: worker({"frames": pictures(config.batch_size, 3, 360, 640, 3)})


def save_vit(folder: Path) -> None:
    """A classifier of transformers, ViT-B/16."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(ViTConfig()).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def load_safety(folder: Path) -> tuple[Stage, Call]:
    """Key frames, as the family `safety` classifies them."""
    from actors.curation.families.safety import SafetyConfig, SafetyScorer

    config = SafetyConfig(model=str(folder))
    worker = SafetyScorer(config)
    return config, lambda: worker({"frames": pictures(config.batch_size, 3, 360, 640, 3)})


def vae() -> Any:
    """The VAE of Stable Diffusion 1 and of SDXL, which have one shape."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    return AutoencoderKL(**blocks)


def save_vae(folder: Path) -> None:
    """That VAE."""
    vae().save_pretrained(folder)


def load_latents(folder: Path, model: str = "") -> tuple[Stage, Call]:
    """Scenes of 8 s, as their latents are compared."""
    from actors.curation.features.frame_scorer import FrameScorer
    from actors.curation.features.latents import LatentsConfig

    config = LatentsConfig(model=model or str(folder))
    worker, rows = FrameScorer(config, None, 1.0, False, False), config.batch_size
    nothing = np.full(rows, np.nan, np.float32)
    batch = {"mse": nothing, "cos_sim": nothing, "latents_s": nothing}
    # The encoder takes frame by frame.
    return config, lambda: worker({"frames": pictures(rows, 32 if model else 3, 240, 240, 3), **batch})


def save_raft(folder: Path) -> None:
    """RAFT in torchvision's large shape."""
    from safetensors.torch import save_file
    from torchvision.models.optical_flow import raft_large

    save_file(raft_large(weights=None).state_dict(), folder / "raft.safetensors")


def load_raft(folder: Path) -> tuple[Stage, Call]:
    """Scenes whose flow is measured."""
    from actors.curation.features.frame_scorer import FrameScorer
    from actors.curation.features.motion import MotionConfig

    config = MotionConfig(flow="raft", weights=str(folder / "raft.safetensors"))
    worker, rows = FrameScorer(None, config, 1.0, False, False), 2
    nothing = np.full(rows, np.nan, np.float32)
    batch = {"max_velocity": nothing, "mean_velocity": nothing, "latents_s": nothing}
    return config, lambda: worker({"frames": pictures(rows, 8, 240, 240, 3), **batch})


def save_unet(width: int, folder: Path) -> None:
    """A Stable Diffusion 1, whose UNet has so many channels at first: 320 are those of the real one."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.support.tiny_models import save_pipeline, schedule

    sizes = (width, 2 * width, 4 * width, 4 * width)
    unet: Any = UNet2DConditionModel(
        sample_size=64, block_out_channels=sizes, cross_attention_dim=768, attention_head_dim=8
    )
    text: Any = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
    )
    save_pipeline(folder, vae(), CLIPTextModel(text), unet, schedule())


def load_identify(evaluations: int, folder: Path) -> tuple[Stage, Call]:
    """A picture, by so many evaluations of the UNet in one call."""
    from actors.movie_characters.diffusion import DiffusionConfig
    from actors.movie_characters.diffusion_classifier import DiffusionIdentifier, Identity, QuestionConfig

    config, pixels = DiffusionConfig(evaluations_per_call=evaluations), 512 * 512
    question = QuestionConfig(method="full", num_inference_steps=evaluations)
    condition = np.zeros((77, 768), np.float32)
    worker = DiffusionIdentifier(str(folder), config, question, [Identity("a", condition)])
    missing = np.empty(1, object)
    missing[0] = np.array([0])
    batch = {"image": files(folder / "pictures", 1)["uri"], "missing": missing}
    return holding(config, str(folder), pixels), lambda: worker(batch)


def load_generate(folder: Path) -> tuple[Stage, Call]:
    """A picture of 512 x 512 drawn in one step, with guidance."""
    from actors.movie_characters.drawer import Drawer, Drawing, GenerateConfig
    from actors.movie_characters.identities import Learnt

    out = str(folder / "drawn")
    config = GenerateConfig(str(folder), out, sd_model_name=str(folder), num_inference_steps=1)
    zeros = np.zeros((77, 768), np.float32)
    learnt = Learnt("a_1", zeros, zeros, "", "", "", "")
    worker = Drawer(config, [learnt], [Drawing("a_1", 0, 0.0, 7.5)])
    held = holding(config.diffusion, str(folder), config.height * config.width, "draw", texts=True)
    return held, lambda: worker({"number": np.array([0])})


def save_llava(folder: Path) -> None:
    """A LLaVA with the vision tower of CLIP's ViT-L/14 and a small Llama, in bfloat16."""
    from tests.support.tiny_models import captioning_model

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    captioning_model(folder, [f"w{word}" for word in range(32_000)], text, vision, 336, 14, "bfloat16")


def load_vlm(folder: Path) -> tuple[Stage, Call]:
    """Captions of a batch of scenes, of 8 tokens."""
    from actors.curation.captioning.settings import CaptionsConfig
    from actors.models.vlm.asking import Question
    from actors.models.vlm.local import LocalVlm

    config = CaptionsConfig(by="transformers", model=str(folder))
    worker = LocalVlm(str(folder), gpu=False)
    text = " ".join(f"w{word}" for word in range(60))
    asked = [
        Question(frames, text, lambda told: (told, ""), 8, "") for frames in pictures(config.batch_size, 1, 512, 910, 3)
    ]
    return config, lambda: worker.replies(asked, 0)


def load_service(by: str, folder: Path) -> tuple[Stage, Call]:
    """Captions of a service, which runs beside it: as many requests at once as by default."""
    from actors.curation.captioning.settings import CaptionsConfig
    from actors.models.vlm import services
    from actors.models.vlm.asking import Question
    from tests.support.servers import Gemini

    server = Gemini()
    get_context("fork").Process(target=server.serve_forever, daemon=True).start()
    config = CaptionsConfig(by=by, model=Gemini.MODEL, endpoint=server.endpoint)  # pyright: ignore[reportArgumentType]
    service = services.load_service(config, server.key)
    question = Question(pictures(1, 3, 512, 910, 3)[0], "A caption", lambda told: (told, ""), 64, "")

    def ask() -> None:
        with ThreadPoolExecutor(config.at_once) as threads:
            replies = list(threads.map(lambda _: service.reply(question, 0), range(10 * config.at_once)))
        assert all(reply.text for reply in replies), replies[0]

    return config, ask


def save_resnet(folder: Path) -> None:
    """torchvision's ResNet-50."""
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    save_file(resnet50(weights=None).state_dict(), folder / "resnet50.safetensors")


def load_backbone(folder: Path) -> tuple[Stage, Call]:
    """Pictures, as `directors embed` and `genres embed` embed them."""
    from actors.models.backbones import Backbone, BackboneConfig

    config = BackboneConfig(weights=str(folder / "resnet50.safetensors"))
    worker, rows = Backbone(config), config.batch_size
    images = np.random.default_rng(0).integers(0, 255, (rows, 224, 224, 3), np.uint8)
    return config, lambda: worker({"image": images, "error": np.array([""] * rows)})


def load_features(folder: Path) -> tuple[Stage, Call]:
    """Crops of faces and bodies of comics."""
    from actors.comic_characters.network import FeatureExtractor
    from actors.comic_characters.network_settings import KINDS, BackboneConfig, FeaturesConfig

    weights = str(folder / "resnet50.safetensors")
    config, backbone = FeaturesConfig(weights=weights), BackboneConfig()
    worker, sizes = FeatureExtractor(config, backbone, weights, str(folder)), backbone.sizes()
    crops = {kind: np.zeros((config.batch_size, sizes[kind], sizes[kind], 3), np.uint8) for kind in KINDS}
    return config, lambda: [worker.features(crops[kind], kind) for kind in KINDS]


def save_torchscript(folder: Path) -> None:
    """A network in a file, of ResNet-50's size."""
    import torch
    from torchvision.models import resnet50

    network = torch.jit.trace(resnet50(weights=None).eval(), torch.zeros(1, 3, 256, 128))
    torch.jit.save(network, str(folder / "network.pt"))


def load_bodies(folder: Path) -> tuple[Stage, Call]:
    """Frames of 720p, each with four people."""
    from actors.movie_characters.recognition.bodies import BodiesConfig, FrameBodies

    config = BodiesConfig(model=str(folder / "network.pt"), alike=0.5)
    worker, batch = FrameBodies(config), files(folder / "pictures", config.batch_size)
    boxes = json.dumps([[100 + 200 * i, 100, 160 + 200 * i, 180] for i in range(4)])
    return config, lambda: worker({**batch, "faces": np.array([boxes] * config.batch_size, object)})


def load_faces(folder: Path) -> tuple[Stage, Call]:
    """Frames of 720p, with the detector and the embedder that come with the extra."""
    from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig

    config = FacesConfig()
    worker, batch = FaceEmbedder(config), files(folder / "pictures", config.batch_size, people=True)
    return config, lambda: worker(batch)


def load_sentences(folder: Path) -> tuple[Stage, Call]:
    """Passages, by all-MiniLM-L6-v2."""
    from actors.genres.texts import SentenceEmbedder, SentencesConfig

    config = SentencesConfig()
    worker, rows = SentenceEmbedder(config), config.batch_size
    texts = np.array(["the ship leaves the harbour at night " * 40] * rows, object)
    return config, lambda: worker({"text": texts, "error": np.array([""] * rows)})


def save_films(size: tuple[int, int], folder: Path) -> None:
    """A film of one shot, 8 bits."""
    from tests.benchmarks.bounds import film

    film(folder / "film.mp4", size, "yuv420p")


def load_export(folder: Path) -> tuple[Stage, Call]:
    """A clip of two seconds."""
    from actors.curation.exporting.clips import ClipsConfig, write_clips

    wanted = [{"scene_id": "0", "start_s": 0.5, "end_s": 2.5}]
    return Stage(), lambda: list(write_clips(str(folder / "film.mp4"), wanted, str(folder), ClipsConfig(), None))


def nothing(folder: Path) -> None:
    """What it loads is installed."""


LOADED = {
    "latents tiny": Loaded(nothing, partial(load_latents, model="tiny")),
    "latents sdxl": Loaded(save_vae, load_latents),
    "motion raft": Loaded(save_raft, load_raft),
    "evaluate ViT-B-32": Loaded(partial(save_clip, "ViT-B-32"), load_clip),
    "evaluate ViT-L-14": Loaded(partial(save_clip, "ViT-L-14"), load_clip),
    "clip ViT-B-32": Loaded(partial(save_clip, "ViT-B-32"), load_clip_family),
    "embedding ViT-B-32": Loaded(partial(save_clip, "ViT-B-32"), load_embedding),
    "safety ViT-B/16": Loaded(save_vit, load_safety),
    "captions LLaVA": Loaded(save_llava, load_vlm),
    "captions google-genai": Loaded(nothing, partial(load_service, "google-genai")),
    "captions google-generativeai": Loaded(nothing, partial(load_service, "google-generativeai")),
    "backbone resnet50": Loaded(save_resnet, load_backbone),
    "features resnet50": Loaded(save_resnet, load_features),
    "bodies resnet50": Loaded(save_torchscript, load_bodies),
    "faces dlib": Loaded(nothing, load_faces),
    "sentences MiniLM": Loaded(nothing, load_sentences),
    "identify 160 4": Loaded(partial(save_unet, 160), partial(load_identify, 4)),
    "identify 160 8": Loaded(partial(save_unet, 160), partial(load_identify, 8)),
    "identify 320 1": Loaded(partial(save_unet, 320), partial(load_identify, 1)),
    "generate 160": Loaded(partial(save_unet, 160), load_generate),
    "export 1080p": Loaded(partial(save_films, (1920, 1080)), load_export),
    "export 4K": Loaded(partial(save_films, (3840, 2160)), load_export),
}
"""By name of the stage and of what it loads."""
