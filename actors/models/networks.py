"""Networks by path, ONNX or TorchScript, that take arrays and give arrays."""

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from actors.core import storage
from actors.core.errors import UserError
from actors.models.onnx import check_onnx, load_onnx


class Network(NamedTuple):
    """A network on its device; called with arrays, it returns a list of arrays."""

    run: Callable[..., list[np.ndarray]]
    inputs: int = 1
    """How many arrays it takes."""
    shape: tuple[int | None, ...] = ()
    """Of its first input; None where any size goes, () where nothing is known of it, as of TorchScript."""
    outputs: tuple[str, ...] = ()
    """Names of its outputs, () of TorchScript."""
    metadata: Mapping[str, Any] = MappingProxyType({})
    """What whoever exported the file wrote about it, such as names of classes."""

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return self.run(*arrays)


def check_network(path: str, setting: str) -> None:
    """Raise UserError where there is no such file, or it is neither ONNX nor TorchScript; loads no weights."""
    if path.lower().endswith(".onnx"):
        check_onnx(path, setting)
    elif not storage.exists(path):
        raise UserError(f"{setting}={path}: there is no such file")
    elif torchscript_about(path) is None:
        raise UserError(f"{setting}={path} is neither ONNX (.onnx) nor TorchScript. Export it to one of them.")


def load_network(path: str, setting: str, threads: int = 1, gpu: bool = False) -> Network:
    """Load an ONNX or TorchScript file, a path or s3://.

    Args:
        setting: the name of the setting that holds the path, for messages.
        threads: CPU threads that one call uses.
        gpu: compute on a GPU, never on CPUs instead: raises UserError where that cannot be.
    """
    check_network(path, setting)
    if path.lower().endswith(".onnx"):
        model = load_onnx(path, setting, threads, gpu)
        return Network(model, len(model.inputs), tuple(model.shapes[0]), tuple(model.outputs), model.metadata)
    run = _torch_network(path, setting, "cuda" if gpu else "cpu", threads)
    return Network(run, metadata=torchscript_about(path) or {})


def torchscript_about(path: str) -> dict[str, Any] | None:
    """What a TorchScript file says of itself, {} where that is nothing; None where it is no TorchScript."""
    with storage.local(path) as file:
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if not any("/code/" in name for name in names):
                return None
            extra = next((name for name in names if name.endswith("extra/config.txt")), None)
            return json.loads(archive.read(extra)) if extra else {}


def _torch_network(path: str, setting: str, device: str, threads: int) -> Callable[..., list[np.ndarray]]:
    import torch

    jit: Any = torch.jit
    if device == "cpu":
        torch.set_num_threads(threads)
    elif not torch.cuda.is_available():
        raise UserError(f"{setting}: num_gpus is above 0, but torch finds no GPU here. Set num_gpus=0.")
    with storage.local(path) as file, warnings.catch_warnings():
        # Of its deprecation by torch whoever has such a file need not hear.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            network = jit.load(str(file), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{setting}={path} cannot be loaded as TorchScript: {reason}") from error

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = network(*(torch.from_numpy(array).to(device) for array in arrays))
        if isinstance(outputs, dict):
            outputs = list(outputs.values())
        tensors = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return [tensor.cpu().numpy() for tensor in tensors if isinstance(tensor, torch.Tensor)]

    return call
