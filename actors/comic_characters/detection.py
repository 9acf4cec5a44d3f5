"""Settings of detectors of faces, bodies and panels on pages."""

from dataclasses import dataclass
from typing import Literal

from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.models.memory import weight_bytes, worker_gb


@dataclass(frozen=True)
class DetectConfig(Stage):
    """Actor pool that detects faces and bodies on pages, by a detector that you give."""

    weights: str = ""
    """The detector: .onnx (needs the extra `onnx`), TorchScript, or a .pt of ultralytics, a package under AGPL-3.0 that
    you install yourself. A path or s3://. There is none by default."""
    classes: tuple[str, ...] = ()
    """Names of its classes in order, of which face, body (or character, person) and panel are used. Empty: those that
    the file holds, as exports of ultralytics do."""
    outputs: Literal["auto", "yolo", "objectness", "end_to_end", "detr"] = "auto"
    """Layout of its outputs; auto: by their shapes. An error says where they are ambiguous."""
    size: int = 0
    """Side in pixels of the square that pages are fitted into. 0: that of the file, or 640 where it takes any."""
    normalise: bool = False
    """Normalise pixels by ImageNet's mean and deviation, as DETR's own exports need it. false: from 0 to 1."""
    threshold: float = 0.25
    """Least confidence of a box, 0 to 1. Raise it where boxes are wrong, lower it where some are missing."""
    overlap: float = 0.45
    """Largest overlap (intersection over union), 0 to 1, of two boxes of a class. Not used by end_to_end and detr."""
    panels: Literal["find", "detector", "none"] = "find"
    """Panels of a page: find (by gutters and frames), detector (its class panel), none (each picture is one panel)."""
    batch_size: int = 8
    """Pages per call of the detector, and per part of detections/."""

    @property
    def worker_gb(self) -> float:
        """Memory of one worker, in GiB."""
        return worker_gb(weight_bytes(self.weights), call_gb=0.4, num_gpus=self.num_gpus) if self.weights else 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise UserError(f"detect.workers starts at 1, not {self.workers}")
        if self.size < 0 or not 0 <= self.threshold <= 1 or not 0 <= self.overlap <= 1:
            raise UserError(
                f"detect: size starts at 0, threshold and overlap lie in 0..1, not {self.size}, {self.threshold} and "
                f"{self.overlap}"
            )
