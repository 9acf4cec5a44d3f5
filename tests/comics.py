"""A comic that draws itself: panels with simple characters, where their faces and bodies are, and who is who."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLUMNS = ("series_id", "page_id", "type", "index", "char_index", "x_0", "y_0", "x1", "y_1")
HEIGHT = 96


@dataclass(frozen=True)
class Character:
    """How one is drawn: colours (R, G, B) and shapes."""

    skin: tuple[int, ...]
    hair: tuple[int, ...]
    shirt: tuple[int, ...]
    legs: tuple[int, ...]
    hat: bool
    round_head: bool


def character(random: np.random.Generator) -> Character:
    colours = [tuple(random.integers(0, 256, 3).tolist()) for _ in range(4)]
    return Character(*colours, hat=bool(random.integers(2)), round_head=bool(random.integers(2)))


def draw(picture: ImageDraw.ImageDraw, one: Character, left: float, size: float) -> tuple[list[float], list[float]]:
    """Draw one that stands on the ground; returns the boxes of face and body."""
    top, head, width = HEIGHT - 4 - size, size * 0.35, size * 0.5
    face = [left + (width - head) / 2, top, left + (width + head) / 2, top + head]
    body = [left, top, left + width, HEIGHT - 4]
    picture.rectangle([left, top + head, left + width, top + size * 0.7], one.shirt)
    picture.rectangle([left + width * 0.15, top + size * 0.7, left + width * 0.85, HEIGHT - 4], one.legs)
    (picture.ellipse if one.round_head else picture.rectangle)(face, one.skin)
    picture.rectangle([face[0], face[1], face[2], face[1] + head * (0.35 if one.hat else 0.2)], one.hair)
    eye = head * 0.08
    for side in (0.3, 0.7):
        x, y = face[0] + head * side, face[1] + head * 0.55
        picture.ellipse([x - eye, y - eye, x + eye, y + eye], (0, 0, 0))
    return face, body


def write_comic(folder: Path, series: int = 3, panels: int = 8, cast: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Write panels/<series>/<page>_<panel>.png, merged_face_body.csv and sequences.json of four panels each.

    Every panel has two of the cast of its series; of every fifth one the face is not seen, of every seventh the body.
    Returns the rows of the CSV.
    """
    random, rows, sequences = np.random.default_rng(seed), [], []
    for number in range(series):
        people = [character(random) for _ in range(cast)]
        seen: dict[int, dict[int, list[dict[str, str]]]] = {}
        for panel in range(panels):
            name, page = f"s{number}", f"{panel // 4}_{panel % 4}"
            paper = Image.new("RGB", (160, HEIGHT), tuple(random.integers(120, 256, 3).tolist()))
            pen = ImageDraw.Draw(paper)
            for place, who in enumerate(random.choice(cast, 2, replace=False)):
                left, size = 10 + 75 * place + random.uniform(0, 15), random.uniform(55, 85)
                boxes = dict(zip(("face", "body"), draw(pen, people[who], left, size), strict=True))
                count = len(rows)
                instance = {}
                for kind, box in boxes.items():
                    if (kind == "face" and count % 5 == 4) or (kind == "body" and count % 7 == 6):
                        continue
                    # A face and its body have different numbers.
                    index = place if kind == "body" else 1 - place
                    rows.append(dict(zip(COLUMNS, [name, page, kind, index, place, *box], strict=True)))
                    instance[kind] = f"{name}_{page}_{kind}_{index}"
                seen.setdefault(panel // 4, {}).setdefault(int(who), []).append(instance)
            (folder / "panels" / name).mkdir(parents=True, exist_ok=True)
            paper.save(folder / "panels" / name / f"{page}.png")
        for page, people_seen in seen.items():
            annotations = [
                {"charId": f"s{number}_{who}", "charInstances": found} for who, found in sorted(people_seen.items())
            ]
            sequence = "+".join(f"s{number}_{page}_{panel}" for panel in range(4))
            sequences.append({"seq_id": sequence, "annotations": annotations})
    with (folder / "merged_face_body.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "sequences.json").write_text(json.dumps(sequences))
    return rows
