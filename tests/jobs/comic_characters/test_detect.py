"""From pages alone to crops: panels, then faces and bodies by a detector that was trained on drawn pages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from jobs.comic_characters.__main__ import app
from tests.support.drawn import Sketches, identities
from tests.support.pages import Page, draw_page
from tests.support.tiny_detector import save, train

SIZE = 128


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def write_pages(folder: Path, count: int, seed: int = 0) -> list[Page]:
    """Pages of a book, pages/one/<number>.png."""
    cast = Sketches()
    everybody = identities(cast, 24, seed)
    pages = [draw_page(cast, everybody, np.random.default_rng(100 + seed + number)) for number in range(count)]
    (folder / "pages/one").mkdir(parents=True)
    for number, page in enumerate(pages):
        Image.fromarray(page.pixels).save(folder / f"pages/one/p_{number}.png")
    return pages


class Fixed(nn.Module):
    """Always a face within a body at the middle of the page, as YOLOv8 has it."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        face = torch.tensor([64.0, 50, 10, 10, 0.9, 0.0])
        body = torch.tensor([64.0, 64, 20, 40, 0.0, 0.8])
        rows = torch.stack([face, body, *[torch.zeros(6)] * 6], 1)
        return rows + 0 * pixels.mean((1, 2, 3)).view(-1, 1, 1)


def test_pages_become_crops_without_labels_and_only_what_is_missing_is_done(ray_cluster: None, tmp_path: Path) -> None:
    pages = write_pages(tmp_path, 3)
    (tmp_path / "pages/one/broken.png").write_bytes(b"no picture")
    save(Fixed(), tmp_path / "net.pt", SIZE)
    places = [f"input={tmp_path / 'pages'}", f"output={tmp_path / 'out'}"]
    given = [*places, f"detect.weights={tmp_path / 'net.pt'}", "detect.classes=[face, body]", f"detect.size={SIZE}"]
    given += ["detect.batch_size=2"]
    assert "this setting is required" in run("detect", *places, code=2).stderr
    told = run("detect", *given, "--dry-run").output
    assert "4 pages of 1 series" in told and "detect: 1 actors" in told and not (tmp_path / "out").exists()
    told = run("detect", *given).output
    assert "rejected: broken_page 1" in told and "3 faces, 3 bodies" in told
    boxes = pd.read_csv(tmp_path / "out/boxes.csv")
    assert sorted(boxes.type) == ["body"] * 3 + ["face"] * 3
    # On the last page the middle of the face is in an inset, that of the body is not.
    assert (boxes.char_index[:4] == 0).all() and boxes.char_index[4:].isna().all()
    assert boxes.picture.tolist() == [f"one/p_{number}.png" for number in (0, 0, 1, 1, 2, 2)]
    panels = pd.read_csv(tmp_path / "out/panels.csv")
    assert abs(len(panels) - sum(len(page.panels) for page in pages)) <= 2
    marked = json.loads((tmp_path / "out/boxes.json").read_text())
    assert len(marked["images"]) == 3 and len(marked["annotations"]) == len(panels) + 6
    told = run("crop", *places).output
    assert "6 rows = 6 done" in told
    assert len(list((tmp_path / "out").glob("comics_crops*/**/*.jpg"))) == 6
    # What is sound is not looked at again; a page that was mended is.
    kept = {part: part.stat().st_mtime_ns for part in (tmp_path / "out/detections").iterdir()}
    shutil.copy(tmp_path / "pages/one/p_0.png", tmp_path / "pages/one/broken.png")
    assert "to do: 1 pages" in run("detect", *given, "--dry-run").output
    assert "4 rows = 4 done" in run("detect", *given).output
    assert all(part.stat().st_mtime_ns == then for part, then in kept.items())
    assert "Use another output, or these settings" in run("detect", *given, "detect.threshold=0.5", code=2).stderr


def test_panels_need_no_detector(ray_cluster: None, tmp_path: Path) -> None:
    pages = write_pages(tmp_path, 2, seed=5)
    places = [f"input={tmp_path / 'pages'}", f"output={tmp_path / 'out'}"]
    run("panels", *places)
    panels = pd.read_csv(tmp_path / "out/panels.csv")
    for number, page in enumerate(pages):
        found = panels[panels.picture == f"one/p_{number}.png"]
        assert found.page_id.tolist() == [f"p-{number}_{panel}" for panel in range(len(found))]
        assert abs(len(found) - len(page.panels)) <= 1
    assert not (tmp_path / "out/boxes.csv").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_detector_that_is_trained_on_drawn_pages_finds_who_is_on_others(ray_cluster: None, tmp_path: Path) -> None:
    pages = write_pages(tmp_path, 6)
    save(train(Sketches(), 120, size=256, pages=60), tmp_path / "net.onnx", 256)
    places = [f"input={tmp_path / 'pages'}", f"output={tmp_path / 'out'}"]
    run("detect", *places, f"detect.weights={tmp_path / 'net.onnx'}", "detect.classes=[face, body]", "detect.size=256")
    boxes = pd.read_csv(tmp_path / "out/boxes.csv")
    hits = []
    for number, page in enumerate(pages):
        ours = boxes[(boxes.picture == f"one/p_{number}.png") & (boxes.type == "body")]
        found = ours[["x_0", "y_0", "x1", "y_1"]].to_numpy()
        hits += [bool(len(found)) and overlaps(found, one[3]).max() > 0.5 for one in page.people]
    assert np.mean(hits) > 0.5
    run("crop", *places)


def overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    return common / (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - common)
