"""Memory of a worker that holds a model, by the size of its weights, for what Ray reserves of a node."""

from pathlib import Path

from actors.core import storage
from actors.models.hub import downloaded_files, hub_files

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".onnx", ".torchscript")
_SHARD = "-of-"

PROCESS_GB = 0.9
"""A process with torch and what loads models, in GiB."""


def worker_gb(*weights: int, call_gb: float, num_gpus: float, copied: bool = False) -> float:
    """Memory of a worker in GiB: of its process, of weights, and of a call. `tests.benchmarks.workers` measures it, on
    CPUs.

    Args:
        weights: bytes of the files that it loads; 0 where they are not known.
        call_gb: what a call takes on a CPU. A GPU has memory of its own for it, and weights pass through the machine's.
        num_gpus: of the stage.
        copied: the file is held beside the model while it is loaded, as by open_clip.
    """
    loaded = sum(weights) / 2**30
    call = 0.0 if num_gpus else call_gb
    return round(PROCESS_GB + loaded + (max(loaded, call) if copied else call), 2)


def weight_bytes(model: str, part: str = "") -> int:
    """Size of a model's weights: of a file, a path or s3://; of a folder; or of a name on the Hugging Face Hub, which
    is asked where the model was not downloaded. 0 where it is not known.

    part: the folder in it that holds them.
    """
    name = model.removeprefix("local-dir:").removeprefix("hf-hub:")
    if storage.exists(name):
        return storage.size(name)
    if Path(name).is_dir():
        return _largest({path.name: path.stat().st_size for path in Path(name, part).glob("*") if path.is_file()})
    return _inside(downloaded_files(name), part) or _inside(hub_files(name), part)


def _inside(files: dict[str, int], part: str) -> int:
    return _largest({Path(name).name: size for name, size in files.items() if Path(name).parent == Path(part)})


def _largest(sizes: dict[str, int]) -> int:
    """Of the files of one folder, which may hold a model several times: the largest, or the shards of one."""
    for suffixes in ((".safetensors",), _PICKLED):
        some = {name: size for name, size in sizes.items() if name.endswith(suffixes)}
        if some:
            return max(max(some.values()), sum(size for name, size in some.items() if _SHARD in name))
    return 0
