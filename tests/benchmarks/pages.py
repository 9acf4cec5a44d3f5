"""Comics from pages alone: `python -m tests.benchmarks.pages [panels | detect]`.

panels   300 pages of the LPC sheets of FILMRAY_DATA, drawn by seed: panels with frames, without, with figures on bare
         paper, with art up to the page's edge, and within others; half of the pages are read from right to left.
         Found: overlap (intersection over union) of 0.9 or more. Intervals by a bootstrap over pages
detect   a small detector, trained here on 150 pages of 40 identities, on 60 pages of identities it has not seen, by the
         verb's own path, as TorchScript and as ONNX. Found: overlap of 0.5 or more
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from actors.comic_characters.crops import decode
from actors.comic_characters.detection import DetectConfig
from actors.comic_characters.detectors import Detector, inspect
from actors.comic_characters.panels import Panel, find_panels
from actors.media.images import picture_bytes
from actors.models.detection import letterbox
from tests.support.drawn import Sheets, identities
from tests.support.pages import HEIGHT, WIDTH, draw_page, mirrored
from tests.support.tiny_detector import CLASSES, save, train

PAGES, TRAINED_ON, STEPS, SIZE = 300, 150, 250, 320
EVERYTHING = "all"


def overlap(one: Panel, other: Panel) -> float:
    """Intersection over union."""
    common = one.common(other)
    return common / (one.area + other.area - common)


def shown(name: str, counts: list[tuple[float, float]]) -> None:
    """A line: share of the counts (found, of) of pages, with an interval of 95 %."""
    pairs = np.array(counts)
    random = np.random.default_rng(0)
    draws = pairs[random.integers(len(pairs), size=(1000, len(pairs)))].sum(1)
    draws = draws[draws[:, 1] > 0]
    low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    share = pairs[:, 0].sum() / pairs[:, 1].sum()
    print(f"| {name} | {100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {pairs[:, 1].sum():.0f} |")


def panels() -> None:
    """Print the table of panels."""
    cast, counts = Sheets(), defaultdict(list)
    everybody = identities(cast, 40, 0)
    seconds = 0.0
    for seed in range(PAGES):
        page = draw_page(cast, everybody, np.random.default_rng(5000 + seed))
        backwards = seed % 2 == 1
        page = mirrored(page) if backwards else page
        pixels = np.asarray(decode(picture_bytes(Image.fromarray(page.pixels), quality=88)))
        started = time.process_time()
        found = find_panels(pixels, "right_to_left" if backwards else "left_to_right")
        seconds += time.process_time() - started
        best = [max(range(len(found)), key=lambda i, one=one: overlap(one, found[i])) for one in page.panels]
        hits = [overlap(one, found[i]) >= 0.9 for one, i in zip(page.panels, best, strict=True)]
        for kind in {EVERYTHING, *page.kinds}:
            ours = [hit for hit, of in zip(hits, page.kinds, strict=True) if kind in (EVERYTHING, of)]
            counts[kind].append((sum(ours), len(ours)))
        seen = [i for i, hit in zip(best, hits, strict=True) if hit]
        counts["found ones that are right"].append((len(set(seen)), len(found)))
        counts["pages in order"].append((seen == sorted(seen), 1))
    print("| panels | found, % [95 %] | of |\n|---|---|---|")
    for name, pairs in sorted(counts.items()):
        shown(name, pairs)
    print(f"\n{1000 * seconds / PAGES:.0f} CPU-ms a page of {WIDTH} x {HEIGHT} pixels")


def detect() -> None:
    """Print the table of a detector that is trained here."""
    torch.set_num_threads(1)
    cast = Sheets()
    known = identities(cast, 40, 0)
    others = identities(cast, 24, 1, other_than=known)
    started = time.process_time()
    network = train(cast, STEPS, SIZE, pages=TRAINED_ON)
    print(f"trained in {time.process_time() - started:.0f} CPU-s\n\n| boxes | found, % [95 %] | of |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt", ".onnx"):
            path = Path(folder) / f"tiny{suffix}"
            save(network, path, SIZE)
            config = DetectConfig(weights=str(path), classes=CLASSES, size=SIZE)
            weights = inspect(config)
            look, counts = Detector(config, weights), defaultdict(list)
            for seed in range(60):
                page = draw_page(cast, others, np.random.default_rng(9000 + seed))
                sizes = {"height": np.array([HEIGHT]), "width": np.array([WIDTH]), "error": np.array([""])}
                answer = look({"square": letterbox(page.pixels, weights.shape)[None], **sizes})
                marked = json.loads(answer["found"][0])
                for place, kind in enumerate(CLASSES):
                    boxes = [Panel(*corners) for label, _, *corners in marked if label == kind]
                    truth = [Panel(*np.asarray(one[2 + place]).tolist()) for one in page.people]
                    hits = [any(overlap(one, box) >= 0.5 for box in boxes) for one in truth]
                    right = [any(overlap(one, box) >= 0.5 for one in truth) for box in boxes]
                    counts[f"{suffix}: {kind}"].append((sum(hits), len(hits)))
                    counts[f"{suffix}: {kind}, boxes that are right"].append((sum(right), len(right)))
            for name, pairs in sorted(counts.items()):
                shown(name, pairs)


PARTS = {"panels": panels, "detect": detect}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
