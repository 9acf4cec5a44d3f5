"""torchcodec on a GPU, without one: what its decoder says and raises there is taken from its sources."""

import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.child import Child
from actors.core.errors import BrokenRunError
from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.rates import speeds
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.features.motion import MotionConfig
from actors.media import torch_decoding
from actors.media.film import VideoConfig, opened
from actors.media.shot_detection.shots import ShotsConfig
from actors.media.torch_decoding import FILM_BYTES, check_nvdec, nvdec_checked
from tests.actors.media.test_film import torchcodec_fault
from tests.support import films

GPU = VideoConfig(decoder="torchcodec", num_gpus=0.5)
CPU = VideoConfig(decoder="torchcodec")


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if torchcodec_fault():
        pytest.skip(f"torchcodec cannot be loaded: {torchcodec_fault()}")
    monkeypatch.setattr(torch_decoding, "_TOLD", set())
    check_nvdec.cache_clear()
    yield
    check_nvdec.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let torchcodec's decoder decode on the CPU, and say that it is a GPU, or raise what it raises on one."""
    import torch

    decoders: Any = importlib.import_module("torchcodec.decoders")

    def pretend(said: str = "", error: str = "", at: int = 0) -> None:
        """said: the flag of its CpuFallbackStatus that is set. error: raised at that frame; at -1 when it is made."""

        class OnGpu(decoders.VideoDecoder):
            on_cpu = False

            def __init__(self, source: Any, **options: Any) -> None:
                assert options.pop("device") == "cuda" or self.on_cpu
                if error and at < 0:
                    raise RuntimeError(error)
                super().__init__(source, device="cpu", **options)

            @property
            def cpu_fallback(self) -> Any:
                status = decoders.CpuFallbackStatus(status_known=True)
                status._backend = "CUDA"
                if said:
                    status._is_fallback = True
                    setattr(status, said, True)
                return status

            def get_frames_in_range(self, start: int, stop: int, step: int = 1) -> Any:
                if error and at >= 0 and stop > at:
                    raise RuntimeError(error)
                return super().get_frames_in_range(start, stop, step)

        monkeypatch.setattr(decoders, "VideoDecoder", OnGpu)
        monkeypatch.setattr(torch_decoding, "_has_nvcuvid", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 << 30))

    return pretend


def rows_of(path: Path, video: VideoConfig) -> list[Row]:
    settings = FramesConfig(size=60), ShotsConfig("adaptive"), MotionConfig(flow="scaled")
    return [row for row in cut(str(path), "v", None, frozenset(), video, *settings) if row]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.film(tmp_path_factory.mktemp("films") / "plain.mp4")


def letterboxed(path: Path) -> Path:
    return films.film(path, size=(320, 240), bars=(30, 30, 0, 0))


@pytest.mark.parametrize("make", [films.film, letterboxed, films.rotated])
def test_frames_that_are_scaled_together_are_those_scaled_one_by_one(
    tmp_path: Path, gpu: Callable[..., None], make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
):
    path = make(tmp_path / "film.mp4")
    wanted = rows_of(path, CPU)
    gpu()
    monkeypatch.setitem(torch_decoding.CHUNK_FRAMES, "cuda", 7)
    found = rows_of(path, GPU)
    assert (wanted[-1]["decoder"], found[-1]["decoder"]) == ("torchcodec-cpu", "nvdec")
    assert len(found) == len(wanted) > 1 and not any(row["error"] or row["message"] for row in found)
    for row, other in zip(found[:-1], wanted[:-1], strict=True):
        assert np.array_equal(row.pop("frames"), other.pop("frames"))
        assert row == pytest.approx(other, nan_ok=True)


def test_a_chunk_is_scaled_and_copied_once_for_a_size_that_is_asked_for_often(
    plain: Path, gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    gpu()
    sizes: list[int] = []
    scaled = torch_decoding._scaled
    monkeypatch.setattr(torch_decoding, "_scaled", lambda frames, *a: sizes.append(len(frames)) or scaled(frames, *a))
    film = opened(str(plain), GPU)
    pictures = list(film.pictures)
    stamps = [films.read_stamp(picture.scaled(film.width // 2, film.height // 2)) for picture in pictures]
    assert stamps == list(range(len(pictures)))
    whole = [64] * (len(pictures) // 64) + [len(pictures) % 64]
    assert len(whole) > 1 and sizes == [1, *whole]
    sizes.clear()
    assert pictures[0].scaled(30, 20).shape == (20, 30, 3) and sizes == [1]


def test_what_nvdec_does_not_decode_is_recorded_and_told_once(
    plain: Path, gpu: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    gpu("_video_not_supported")
    with caplog.at_level(logging.WARNING):
        last = [rows_of(plain, GPU)[-1] for _ in range(2)]
    assert [(row["decoder"], row["error"]) for row in last] == [("torchcodec-cpu", "")] * 2
    assert all("not by NVDEC: Video not supported" in row["message"] for row in last)
    assert len(caplog.records) == 1 and "plain.mp4" in caplog.text and "Video not supported" in caplog.text


def test_a_container_that_is_left_to_pyav_is_recorded_and_told(
    tmp_path: Path, gpu: Callable[..., None], caplog: pytest.LogCaptureFixture
):
    gpu()
    with caplog.at_level(logging.WARNING):
        film = rows_of(films.film(tmp_path / "film.avi"), GPU)[-1]
    assert film["decoder"] == "pyav" and film["error"] == "" and "no index" in film["message"]
    assert "film.avi" in caplog.text and "no index" in caplog.text


def test_a_driver_without_nvdec_ends_the_run(plain: Path, gpu: Callable[..., None]):
    gpu("_nvcuvid_unavailable")
    with pytest.raises(BrokenRunError, match="NVIDIA_DRIVER_CAPABILITIES"):
        rows_of(plain, GPU)


@pytest.mark.parametrize("at", [-1, 0, 70])
@pytest.mark.parametrize(
    "error",
    [
        "CUDA out of memory. Tried to allocate 1.00 GiB.",
        "CUDA error: an illegal memory access was encountered",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "No CUDA GPUs are available",
        "get_device_index, CUDACommon.h:42, Failed to get current CUDA device.",
        "cudaEventRecord failed: unknown error",
        "create_decoder, BetaCudaDeviceInterface.cpp:338, Failed to create NVDEC decoder: 2",
    ],
)
def test_what_the_machine_is_at_fault_for_ends_the_run(plain: Path, gpu: Callable[..., None], error: str, at: int):
    gpu(error=error, at=at)
    with pytest.raises(BrokenRunError) as raised:
        rows_of(plain, GPU)
    assert error in str(raised.value) and "num_gpus" in str(raised.value)


@pytest.mark.parametrize(
    ("error", "at", "decoder"),
    [
        ("Failed to create NVDEC decoder: 801", 0, "pyav"),
        ("Failed to create NVDEC decoder: 1", -1, "pyav"),
        ("Could not push packet to decoder: Invalid data found when processing input", 70, "nvdec+pyav"),
    ],
)
def test_what_a_film_is_at_fault_for_is_left_to_pyav(
    plain: Path, gpu: Callable[..., None], error: str, at: int, decoder: str, caplog: pytest.LogCaptureFixture
):
    wanted = rows_of(plain, VideoConfig())
    gpu(error=error, at=at)
    with caplog.at_level(logging.WARNING):
        found = rows_of(plain, GPU)
    assert [row["scene_id"] for row in found] == [row["scene_id"] for row in wanted]
    assert not any(row["error"] for row in found)
    assert found[-1]["decoder"] == decoder and error in found[-1]["message"] and error in caplog.text


def test_films_are_divided_by_what_is_measured(tmp_path: Path, plain: Path, gpu: Callable[..., None]):
    gpu()
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoders.VideoDecoder.on_cpu = True
    *_, found = speeds(str(plain), GPU)
    assert found is not None and set(found) == {"nvdec", "torchcodec-cpu"} and min(found.values()) > 0
    for other in (films.film(tmp_path / "film.avi"), films.text_file(tmp_path / "text.mp4")):
        *_, found = speeds(str(other), GPU)
        assert found == {}


@pytest.mark.slow
def test_without_a_gpu_neither_a_process_nor_its_child_begins_a_film(plain: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BrokenRunError, match=r"video\.num_gpus=0\.5, and torch cannot use a GPU"):
        rows_of(plain, GPU)
    child = Child()
    try:
        with pytest.raises(BrokenRunError, match="torch cannot use a GPU"):
            list(child.stream(nvdec_checked, 0.5, stall_s=120, timeout_s=120))
    finally:
        child.kill()


def test_a_share_of_a_gpu_has_room_for_a_film(monkeypatch: pytest.MonkeyPatch):
    import torch
    from torchcodec.decoders import get_nvdec_cache_capacity  # pyright: ignore[reportPrivateImportUsage]

    monkeypatch.setattr(torch_decoding, "_has_nvcuvid", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 10 * FILM_BYTES))
    with pytest.raises(BrokenRunError, match=r"video\.num_gpus=0\.05 is 0\.8 GiB .* set video\.num_gpus=0\.1$"):
        check_nvdec(0.05)
    check_nvdec(0.1)
    check_nvdec(2)
    assert get_nvdec_cache_capacity() == 1


def test_nvdec_without_its_library_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 << 30))
    if torch_decoding._has_nvcuvid():
        pytest.skip("there is NVIDIA's driver")
    with pytest.raises(BrokenRunError, match="NVIDIA_DRIVER_CAPABILITIES"):
        check_nvdec(0.5)
