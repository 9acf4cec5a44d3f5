"""Settings of comic characters: one tree for all verbs, so that one file of settings runs them all."""

from dataclasses import dataclass, field

from actors.stage import Stage


@dataclass(frozen=True)
class CropConfig(Stage):
    """How faces and bodies are cut out of pictures."""

    workers: int = 0
    batch_size: int = 64
    """Pictures of one call; what a kill loses of each worker."""
    face_scale: float = 1.2
    """Side of a face's square by the longer side of its box."""
    quality: int = 95
    """Of the JPEG files, 1 to 95."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.face_scale > 0 or not 1 <= self.quality <= 95:
            raise ValueError(f"face_scale is above 0 and quality lies in 1..95: {self}")


@dataclass(frozen=True)
class ComicsConfig:
    """Settings of every verb."""

    output: str
    """Where everything goes: a path or s3://bucket/prefix."""
    pictures: str = ""
    """Folder of panels, <series>/<page>_<panel>.jpg, or of pages, <series>/<page>.jpg; also .jpeg, .png and .webp."""
    boxes: str = ""
    """CSV of boxes, in pixels of these pictures: series_id, page_id (<page>_<panel>), type (face or body), index,
    char_index (the same for a face and its body; empty or -1 where unknown), x_0, y_0, x1, y_1."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: do not fit pools to what is there now."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Faces and bodies cut out of pictures."""
