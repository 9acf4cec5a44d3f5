"""ONNX files: computed as their graph says, with one clear line where that cannot be."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from actors.core.errors import UserError
from actors.models.onnx import load_onnx
from tests.support.onnx_files import write_onnx


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """x (N, 2) times a, and its sum over rows."""
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axis"], ["s"], keepdims=0),
    ]
    weights = {"a": np.array([2, 3], np.float32), "axis": np.array([0], np.int64)}
    return write_onnx(tmp_path / "m.onnx", nodes, {"x": ["N", 2]}, {"y": ["N", 2], "s": [2]}, weights)


def test_a_file_is_computed_for_any_batch_and_dtype(scaled: Path):
    model = load_onnx(str(scaled), "model")
    assert (model.inputs, model.outputs, model.shapes) == (["x"], ["y", "s"], [[None, 2]])
    doubled, summed = model(np.array([[1, 1], [2, 0]], np.uint8))
    assert doubled.tolist() == [[2, 3], [4, 0]] and summed.tolist() == [6, 3]
    # Views with other strides too.
    assert model(np.ones((2, 1)).T)[0].tolist() == [[2, 3]]


def test_an_input_of_another_dtype_gets_it(tmp_path: Path):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    path = write_onnx(tmp_path / "m.onnx", nodes, {"x": [1]}, {"y": [1]}, dtype=TensorProto.UINT8)
    assert load_onnx(str(path), "model")(np.array([255.0]))[0].tolist() == [255]


def test_what_cannot_be_loaded_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Path):
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"^detector=\S*no\.onnx cannot be loaded as ONNX: .+$"):
        load_onnx(str(tmp_path / "no.onnx"), "detector")
    with pytest.raises(UserError, match=r"detector=.*there is no such file"):
        load_onnx(str(tmp_path / "absent.onnx"), "detector")
    with pytest.raises(UserError, match=r"detector: num_gpus is above 0, but onnxruntime cannot use CUDA"):
        load_onnx(str(scaled), "detector", gpu=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra `onnx`"):
        load_onnx(str(scaled), "detector")
