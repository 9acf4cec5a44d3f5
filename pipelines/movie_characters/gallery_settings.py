"""Settings of identification by a gallery: by CLIP or by faces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models.clip import EmbeddingsConfig
from actors.movie_characters.recognition.faces import FacesConfig
from pipelines.movie_characters.pictures import Identification


def gpus_of(device: str) -> float:
    """GPUs per worker for the reference system's name of a device: cpu, or cuda, also with a number."""
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"device={device}: choose cpu or cuda")
    return 0.0 if device == "cpu" else 1.0


@dataclass(frozen=True)
class GallerySettings:
    """How images are compared with a gallery, by CLIP or by faces."""

    ALIASES: ClassVar[dict[str, Any]] = {"input_dir": "gallery"}

    gallery: str
    """The gallery: images of the characters named CLASS_NUMBER, or in a folder of each, as CLASS/1.jpg; a folder or
    s3://."""
    vectors: str = ""
    """Root of vectors/, where the vectors of images are kept. Set it to share vectors between outputs; default: the
    output."""
    nearest: int | None = None
    """How many of the nearest gallery images are listed per image; null: all up to 2,000, else 100."""
    read: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=64))
    """Tasks that read and decode image files."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        if self.nearest is not None and self.nearest < 1:
            raise UserError(f"nearest starts at 1, not {self.nearest}")


@dataclass(frozen=True)
class GalleryEmbeddings(EmbeddingsConfig):
    """Workers, precision and batches of CLIP, for images that are embedded in large batches."""

    batch_size: int = 64


@dataclass(frozen=True)
class ClipSettings(GallerySettings):
    """How images are compared by CLIP."""

    ALIASES: ClassVar[dict[str, Any]] = {
        **GallerySettings.ALIASES,
        "device": ("embeddings.num_gpus", gpus_of),
        "num_gpus": "embeddings.num_gpus",
    }

    model_name: str = "ViT-B-32"
    """The CLIP model: a name that open_clip knows, hf-hub:ORGANISATION/NAME, or a folder with open_clip_config.json and
    weights."""
    pretrained: str = "openai"
    """Weights of a model that open_clip knows by name: a tag of open_clip, or a file."""
    method: Literal["gallery", "prompts", "probe"] = "gallery"
    """What images are compared with: each gallery image (gallery), a text per class (prompts), or a logistic regression
    trained on the gallery (probe)."""
    prompt: str = "a photo of {}"
    """Text of a class, for method=prompts; {} is the class, with spaces for underscores."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Texts of single classes, by class, for method=prompts; other classes have `prompt`."""
    probe_c: float = 10.0
    """Inverse strength of the L2 regularization, for method=probe; above 0. Lower it when the gallery is small."""
    embeddings: GalleryEmbeddings = field(default_factory=GalleryEmbeddings)
    """Workers, precision and batches of CLIP; its model and pretrained are replaced by model_name and pretrained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt or not self.probe_c > 0:
            raise UserError(
                f"prompt must have {{}} for the class, and probe_c be above 0: {self.prompt!r}, {self.probe_c}"
            )

    @property
    def stage(self) -> EmbeddingsConfig:
        """The model and its workers."""
        return replace(self.embeddings, model=self.model_name, pretrained=self.pretrained)


@dataclass(frozen=True)
class FaceSettings(GallerySettings):
    """How images are compared by faces."""

    faces: FacesConfig = field(default_factory=FacesConfig)
    """Face detection and its workers."""

    @property
    def stage(self) -> FacesConfig:
        """The model and its workers."""
        return self.faces.everywhere


STRANGER = 0.92
"""Cosine of dlib's vectors below which two faces are of two people."""
CALIBRATE = (
    "has no default threshold. Set threshold to a cosine that pictures of known people support: `identify-faces` of "
    "these, then `score report validation=` their results."
)
"""What to do with an embedder that the project does not know."""
PLACES: dict[str, Any] = {"image_list": "input", "output_dir": "output"}
"""Other names of the settings of Identification."""


@dataclass(frozen=True)
class ClipConfig(ClipSettings, Identification):
    """Settings of `identify-clip`."""

    ALIASES: ClassVar[dict[str, Any]] = {**ClipSettings.ALIASES, **PLACES}


@dataclass(frozen=True)
class FaceConfig(FaceSettings, Identification):
    """Settings of `identify-faces`."""

    ALIASES: ClassVar[dict[str, Any]] = {**FaceSettings.ALIASES, **PLACES}

    threshold: float | None = None
    """Cosine below which a face is unknown in face_answers, -1..1; null: 0.92 for dlib; with faces.embedder in a file
    -1, with a warning. Raise it if strangers are named, set -1 to always name the nearest. Results of whole images
    (CLASS_results.csv) are not cut."""


def root_of(config: ClipConfig | FaceConfig) -> str:
    """Root of vectors/, absolute, since workers have another working folder."""
    return storage.absolute(config.vectors or config.output)


def model_of(config: ClipConfig | FaceConfig) -> str:
    """The embedding model, in one word."""
    if isinstance(config, ClipConfig):
        return config.stage.name()
    return config.stage.model
