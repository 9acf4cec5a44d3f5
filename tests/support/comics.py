"""Comics of drawn characters: panels, where their faces and bodies are, and who is who."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.support.drawn import FACE, SIZE, Cast, Sketches, background, identities

COLUMNS: tuple[str, ...] = ("series_id", "page_id", "type", "index", "char_index", "x_0", "y_0", "x1", "y_1")
HEIGHT = 96


def write_comic(
    folder: Path,
    series: int = 3,
    panels: int = 8,
    people: int = 4,
    cast: Cast | None = None,
    seed: int = 0,
    varied: bool = False,
) -> list[dict[str, Any]]:
    """Write panels/<series>/<page>_<panel>.png, merged_face_body.csv and sequences.json of four panels each.

    Every panel has two of the people of its series; the face of every fifth is not seen, nor the body of every seventh.
    A varied one has two to four, of several sizes, before something pale and in a light of its own, faces and bodies
    missing at random, and of some no more than what is above the hips. Returns the rows of the CSV.
    """
    cast, random = cast or Sketches(), np.random.default_rng(seed)
    everybody = identities(cast, series * people, seed)
    rows: list[dict[str, Any]] = []
    sequences = []
    for number in range(series):
        name, ours = f"s{number}", everybody[number * people : (number + 1) * people]
        seen: dict[int, dict[int, list[dict[str, str]]]] = {}
        for panel in range(panels):
            page = f"{panel // 4}_{panel % 4}"
            crowd = int(random.integers(2, min(people, 4) + 1)) if varied else 2
            paper = background(random, crowd * HEIGHT)[:HEIGHT]
            if varied:
                paper = (0.3 * paper + 0.7 * 225).astype(np.uint8)
            for place, who in enumerate(random.choice(people, crowd, replace=False).tolist()):
                figure = cast.draw(ours[who], int(random.integers(cast.poses)))
                scale = float(random.uniform(0.75, 1.4)) if varied else 1.0
                boxes = _draw(paper, figure, scale, place * HEIGHT, random)
                if varied and random.random() < 0.25:
                    boxes["body"][3] -= 0.4 * (boxes["body"][3] - boxes["body"][1])
                if missing := _missing(2 * panel + place, random if varied else None):
                    del boxes[missing]
                # A face and its body have different numbers.
                numbers = {"face": crowd - 1 - place, "body": place}
                for kind, box in boxes.items():
                    about = [name, page, kind, numbers[kind], place, *box.astype(int).tolist()]
                    rows.append(dict(zip(COLUMNS, about, strict=True)))
                instance = {kind: f"{name}_{page}_{kind}_{numbers[kind]}" for kind in boxes}
                seen.setdefault(panel // 4, {}).setdefault(who, []).append(instance)
            if varied:
                light = random.uniform(0.65, 1.25, 3)
                paper = np.clip(paper * light, 0, 255).astype(np.uint8)
            (folder / "panels" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(paper).save(folder / "panels" / name / f"{page}.png")
        for first, found in seen.items():
            # Who is the same holds within a sequence only.
            annotations = [
                {"charId": f"{name}_{first}_{who}", "charInstances": instances} for who, instances in found.items()
            ]
            sequence = "+".join(f"{name}_{first}_{panel}" for panel in range(4))
            sequences.append({"seq_id": sequence, "annotations": annotations})
    with (folder / "merged_face_body.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "sequences.json").write_text(json.dumps(sequences))
    return rows


def _draw(
    paper: np.ndarray, figure: np.ndarray, scale: float, left: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw a figure at random into its part of a panel; where its face and body are, float (4,)."""
    size = round(SIZE * scale)
    figure = cv2.resize(figure, (size, size), interpolation=cv2.INTER_NEAREST)
    x_0, y_0 = int(random.integers(HEIGHT - size + 1)) + left, int(random.integers(HEIGHT - size + 1))
    drawn = figure[..., 3] > 127
    paper[y_0 : y_0 + size, x_0 : x_0 + size][drawn] = figure[drawn][:, :3]
    y, x = np.nonzero(drawn)
    corner = np.array([x_0, y_0, x_0, y_0], float)
    return {
        "face": np.array(FACE) * scale + corner,
        "body": np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) + corner,
    }


def _missing(count: int, random: np.random.Generator | None) -> str:
    """Which box an instance has not: the face of every fifth and the body of every seventh, or of some at random."""
    if random is None:
        return "face" if count % 5 == 4 else "body" if count % 7 == 6 else ""
    return str(random.choice(["", "face", "body"], p=[0.65, 0.2, 0.15]))


def split_sequences(folder: Path, shares: dict[str, int]) -> None:
    """Deal the series of sequences.json out, so many of each split, into <split>_sequences.json, in their order."""
    sequences = json.loads((folder / "sequences.json").read_text())
    first = 0
    for split, count in shares.items():
        names = {f"s{number}" for number in range(first, first + count)}
        part = [one for one in sequences if one["seq_id"].split("_")[0] in names]
        (folder / f"{split}_sequences.json").write_text(json.dumps(part))
        first += count
