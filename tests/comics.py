"""Comics of drawn characters: panels, where their faces and bodies are, and who is who."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.drawn import FACE, SIZE, Cast, Sketches, background, identities

COLUMNS: tuple[str, ...] = ("series_id", "page_id", "type", "index", "char_index", "x_0", "y_0", "x1", "y_1")
HEIGHT = 96


def write_comic(
    folder: Path, series: int = 3, panels: int = 8, people: int = 4, cast: Cast | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Write panels/<series>/<page>_<panel>.png, merged_face_body.csv and sequences.json of four panels each.

    Every panel has two of the people of its series; the face of every fifth is not seen, nor the body of every seventh.
    Returns the rows of the CSV.
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
            paper = background(random, 2 * HEIGHT)[:HEIGHT]
            for place, who in enumerate(random.choice(people, 2, replace=False).tolist()):
                figure = cast.draw(ours[who], int(random.integers(cast.poses)))
                left, top = int(random.integers(HEIGHT - SIZE)) + place * HEIGHT, int(random.integers(HEIGHT - SIZE))
                drawn = figure[..., 3] > 127
                paper[top : top + SIZE, left : left + SIZE][drawn] = figure[drawn][:, :3]
                y, x = np.nonzero(drawn)
                boxes = {
                    "face": np.array(FACE) + np.array([left, top, left, top]),
                    "body": np.array([x.min() + left, y.min() + top, x.max() + 1 + left, y.max() + 1 + top]),
                }
                count = 2 * panel + place
                if missing := "face" if count % 5 == 4 else "body" if count % 7 == 6 else "":
                    del boxes[missing]
                # A face and its body have different numbers.
                numbers = {"face": 1 - place, "body": place}
                for kind, box in boxes.items():
                    about = [name, page, kind, numbers[kind], place, *box.tolist()]
                    rows.append(dict(zip(COLUMNS, about, strict=True)))
                instance = {kind: f"{name}_{page}_{kind}_{numbers[kind]}" for kind in boxes}
                seen.setdefault(panel // 4, {}).setdefault(who, []).append(instance)
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
