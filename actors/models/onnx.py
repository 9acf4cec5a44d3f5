"""Networks in ONNX files, computed by onnxruntime on CPUs or on a GPU. Needs the extra `onnx`."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.core import storage
from actors.core.errors import UserError

EXTRA = 'ONNX files need the extra `onnx`. Install it: pip install -c constraints.txt -e ".[onnx]"'
CUDA = "CUDAExecutionProvider"
_DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "uint8": np.uint8, "int64": np.int64}


class OnnxModel:
    """A network: called with an array per input, it returns a list with an array per output."""

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.inputs: list[str] = [one.name for one in inputs]
        self.outputs: list[str] = [one.name for one in session.get_outputs()]
        self.shapes: list[list[int | None]] = [
            [side if isinstance(side, int) else None for side in one.shape] for one in inputs
        ]
        """The shape of each input; None where any size goes."""
        self._dtypes = [_DTYPES.get(one.type.removeprefix("tensor(").removesuffix(")")) for one in inputs]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """The outputs for arrays, one per input, each converted to the input's dtype."""
        fed = {
            name: np.ascontiguousarray(array, dtype)
            for name, array, dtype in zip(self.inputs, arrays, self._dtypes, strict=True)
        }
        return self._session.run(None, fed)


def check_onnx(path: str, setting: str) -> None:
    """Raise UserError where the extra or the file is missing; loads nothing."""
    if not importlib.util.find_spec("onnxruntime"):
        raise UserError(EXTRA)
    if not storage.exists(path):
        raise UserError(f"{setting}={path}: there is no such file")


def load_onnx(path: str, setting: str, threads: int = 1, gpu: bool = False) -> OnnxModel:
    """Load an ONNX file, a path or s3://.

    Args:
        setting: the name of the setting that holds the path, for messages.
        threads: CPU threads that one call uses.
        gpu: compute on a GPU, never on CPUs instead: raises UserError where onnxruntime has no CUDA.
    """
    check_onnx(path, setting)
    import onnxruntime

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = max(1, threads), 1
    # Errors only: it warns of each initializer that a graph does not use.
    options.log_severity_level = 3
    if gpu and CUDA not in runtime.get_available_providers():
        raise UserError(_no_cuda(setting))
    providers: Sequence[str] = [CUDA, "CPUExecutionProvider"] if gpu else ["CPUExecutionProvider"]
    with storage.local(path) as file:
        try:
            session = runtime.InferenceSession(str(file), options, providers=providers)
        # Its exceptions have no class in common below this one.
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            reason = str(error).partition("\n")[0]
            raise UserError(f"{setting}={path} cannot be loaded as ONNX: {reason}") from error
    if gpu and CUDA not in session.get_providers():
        raise UserError(_no_cuda(setting))
    return OnnxModel(session)


def _no_cuda(setting: str) -> str:
    return (
        f"{setting}: num_gpus is above 0, but onnxruntime cannot use CUDA here. Replace onnxruntime by onnxruntime-gpu "
        "and install the CUDA libraries it names, or set num_gpus=0."
    )
