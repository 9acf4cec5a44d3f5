"""Detectors by path: ONNX, TorchScript, and models of ultralytics where that package is installed."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from actors.comic_characters.detection import DetectConfig
from actors.comic_characters.marks import KINDS, PANEL_NAMES
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.models.detection import Detections, LayoutError, class_names, decoded, form_of, network_input, on_picture
from actors.models.networks import load_network, torchscript_about
from actors.models.onnx import load_onnx

GIVE = (
    "detect.weights: this setting is required, since no detector is part of the project. Give one of faces and bodies, "
    "as an ONNX or TorchScript file (of ultralytics: yolo export format=onnx), or a .pt of ultralytics. The verb "
    "`panels` needs none."
)
ULTRALYTICS = (
    "needs the package ultralytics, which is under AGPL-3.0 and no part of the project. Install it yourself, or export "
    "the model where it is installed: yolo export format=onnx"
)
SIDE = 640


@dataclass(frozen=True)
class Weights:
    """What is known of a detector without loading its network."""

    kind: Literal["onnx", "torchscript", "ultralytics"]
    names: tuple[str, ...]
    """Of its classes, in order."""
    shape: tuple[int, int]
    """Height and width of its input."""
    single: bool
    """Whether it takes one picture at a time."""


def inspect(config: DetectConfig) -> Weights:
    """Kind, classes and input of the settings' detector. Raises UserError where one of them cannot be known."""
    path = config.weights
    if not path:
        raise UserError(GIVE)
    if not storage.exists(path):
        raise UserError(f"detect.weights={path}: there is no such file")
    kind: Literal["onnx", "torchscript", "ultralytics"] = "ultralytics"
    about: Mapping[str, Any] = {}
    sides: Sequence[int | None] | None = None
    single = False
    if path.lower().endswith(".onnx"):
        model = load_onnx(path, "detect.weights")
        kind, about = "onnx", model.metadata
        batch, *_ = model.shapes[0]
        single, sides = batch == 1, model.shapes[0][2:]
    elif (found := torchscript_about(path)) is not None:
        kind, about = "torchscript", found
        single = bool(about) and not about.get("dynamic")
        sides = about.get("imgsz")
    elif not importlib.util.find_spec("ultralytics"):
        raise UserError(
            f"detect.weights={path} is neither ONNX nor TorchScript; as a model of ultralytics it {ULTRALYTICS}"
        )
    known = [int(side) for side in sides or () if side]
    fixed = (known[0], known[1]) if len(known) == 2 else None
    if fixed and config.size and fixed != (config.size, config.size):
        raise UserError(
            f"detect.size={config.size}: {path} takes {fixed[0]} x {fixed[1]} pixels. Leave detect.size out."
        )
    shape = fixed or (config.size or SIDE, config.size or SIDE)
    names = config.classes or class_names(about.get("names"))
    if kind == "ultralytics":
        names = names or tuple(_load_ultralytics(path).names.values())
    _check_names(names, config)
    return Weights(kind, names, shape, single)


def _check_names(names: tuple[str, ...], config: DetectConfig) -> None:
    path = config.weights
    if not names:
        raise UserError(f"detect.classes: {path} does not name its classes. Set them in order, such as [body, face].")
    if not any(name.lower() in KINDS for name in names):
        raise UserError(
            f"detect.weights={path} detects {', '.join(names)}: no faces or bodies. Set detect.classes to "
            f"{', '.join(KINDS)} where these are other names for them."
        )
    if config.panels == "detector" and not any(name.lower() in PANEL_NAMES for name in names):
        raise UserError(f"detect.panels=detector: {path} detects {', '.join(names)}. Set detect.panels=find.")


def _load_ultralytics(path: str) -> Any:
    # By its name, as it is no dependency.
    library = importlib.import_module("ultralytics")
    with storage.local(path) as file:
        return library.YOLO(str(file))


Run = Callable[[np.ndarray], list[Detections]]
"""Boxes of squares uint8 (N, H, W, 3), in their pixels."""


def load_detector(config: DetectConfig, weights: Weights) -> Run:
    """The detector on its device."""
    gpu, threads = config.num_gpus > 0, max(1, int(config.num_cpus))
    if weights.kind == "ultralytics":
        return _by_ultralytics(config, weights, "cuda" if gpu else "cpu")
    call = load_network(config.weights, "detect.weights", threads, gpu)
    count = len(weights.names)

    def run(squares: np.ndarray) -> list[Detections]:
        found: list[Detections] = []
        step = 1 if weights.single else len(squares)
        for first in range(0, len(squares), step):
            pixels = network_input(squares[first : first + step], config.normalise)
            # RT-DETR and D-FINE scale boxes to sizes that they are given, as width and height.
            sizes = np.tile([weights.shape[::-1]], (len(pixels), 1))
            outputs = call(pixels, *[sizes] * (call.inputs - 1))
            if any(len(output) != len(squares[first : first + step]) for output in outputs):
                raise UserError(
                    f"detect.weights={config.weights} was exported for one batch size only: its outputs for {step} "
                    f"pictures are {', '.join(str(output.shape) for output in outputs)}. Set detect.batch_size=1."
                )
            try:
                form = form_of(outputs, count) if config.outputs == "auto" else config.outputs
                found += decoded(outputs, form, count, weights.shape, config.threshold, config.overlap)
            except LayoutError as error:
                raise UserError(
                    f"detect.weights={config.weights}: {error}. Set detect.classes to the names of all its classes, in "
                    "order, or detect.outputs."
                ) from error
        return found

    return run


def _by_ultralytics(config: DetectConfig, weights: Weights, device: str) -> Run:
    model = _load_ultralytics(config.weights)
    options = {"conf": config.threshold, "iou": config.overlap, "imgsz": list(weights.shape), "device": device}

    def run(squares: np.ndarray) -> list[Detections]:
        # It takes pictures as OpenCV reads them, in BGR.
        answers = model.predict([square[..., ::-1] for square in squares], verbose=False, **options)
        columns = [(one.boxes.xyxy, one.boxes.conf, one.boxes.cls) for one in answers]
        arrays = [[np.asarray(column.cpu()) for column in of_one] for of_one in columns]
        return [Detections(boxes, scores, classes.astype(int)) for boxes, scores, classes in arrays]

    return run


class Detector:
    """Detect faces, bodies and panels on pages.

    Reads:  square  uint8 (N, H, W, 3) RGB, of `letterbox`; height, width  int (N,), of the pages
            error  str (N,); rows with an error are left out
    Adds:   found  str (N,): JSON, a list of [name of the class, score, left, top, right, bottom] in pixels of the page
    Drops:  square
    """

    def __init__(self, config: DetectConfig, weights: Weights) -> None:
        self._run, self._weights = load_detector(config, weights), weights

    def __call__(self, batch: Batch) -> Batch:
        sound = np.flatnonzero(batch["error"] == "")
        found = np.full(len(batch["error"]), "[]", object)
        names, shape = self._weights.names, self._weights.shape
        for row, one in zip(sound, self._run(batch["square"][sound]) if len(sound) else (), strict=True):
            boxes = on_picture(one.boxes, (int(batch["height"][row]), int(batch["width"][row])), shape)
            # Of what lies in the bars nothing is left.
            real = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
            parts = zip(one.classes[real].tolist(), one.scores[real].tolist(), boxes[real].tolist(), strict=True)
            found[row] = json.dumps([[names[number].lower(), score, *box] for number, score, box in parts])
        return {**{name: column for name, column in batch.items() if name != "square"}, "found": found}
