"""From a film to who is on screen when: shots, frames of each, an answer for every frame, votes over the shot.

frames   task     a film's shots in one decode; frames/FILM/FILM_NUMBER.jpg, shots/FILM.json
identify          any model: each frame an image, its class the film
vote     driver   each frame votes for its best class, or for nobody where it is not sure; the shot's answer has most
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import ray

from actors.core import storage
from actors.core.child import CHILD, DECODE_ATTEMPTS, ChildFault
from actors.core.errors import UserError
from actors.core.stage import Batch, Row
from actors.core.store import Store
from actors.media.film import VIDEO_SUFFIXES, VideoConfig
from actors.media.shots import ShotsConfig
from actors.movie_characters.film_frames import frames_of_shots
from actors.movie_characters.names import stem
from pipelines.core.ray_data import fitted, ray_task, set_context
from pipelines.movie_characters.compare import Model
from pipelines.movie_characters.metrics import answers, confidence, with_unknown
from pipelines.movie_characters.results import UNKNOWN, Results, by_class, write_csv

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimelineConfig:
    """Settings of `timeline`."""

    input: str
    """A film, or a folder or s3:// of films."""
    output: str
    """Where frames, results, tables, pictures and the page go."""
    model: Model = field(default_factory=lambda: Model("clip"))
    """Who answers, as in model.by=clip model.settings.input_dir=gallery."""
    threshold: float | None = None
    """Below this confidence a frame votes for nobody, as `score report` has learnt it."""
    lead: bool | None = None
    """Confidence is how far the best class stands out, else its score; null: the lead for losses of diffusion."""
    every_s: float = 1.0
    """Time between the frames of a shot that are looked at."""
    max_side: int = 768
    """Frames are stored at most this large."""
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    """How films are cut into shots."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How films are decoded."""
    autoscaling: bool = False
    """The cluster grows by what is asked for, so that pools need not fit it now."""

    def __post_init__(self) -> None:
        if not self.every_s > 0 or self.max_side < 64:
            raise UserError(f"every_s is above 0 and max_side starts at 64: {self.every_s}, {self.max_side}")
        if self.model.by == "fusion":
            raise UserError("model.by: a fusion has no model of its own; fuse the results of two timelines")


def find_films(where: str) -> dict[str, str]:
    """URIs of films by a name that may begin those of images; raises UserError where there are none, or two of one."""
    root = storage.absolute(where)
    suffixes = tuple(VIDEO_SUFFIXES)
    uris = [root] if root.lower().endswith(suffixes) else [entry.uri for entry in storage.listing(root, suffixes)]
    found: dict[str, str] = {}
    for uri in uris:
        name = re.sub(r'[\s/\\:*?"<>|]', "_", PurePosixPath(uri).stem)
        if name in found:
            raise UserError(f"two films are named {name}: {found[name]} and {uri}")
        found[name] = uri
    if not found or (uris == [root] and not storage.exists(root)):
        raise UserError(f"input={where} holds no films ({', '.join(suffixes)})")
    return found


def done_films(store: Store) -> set[str]:
    """Names of films whose frames are there."""
    entries = storage.listing(store.uri("shots"), (".json",))
    return {entry.name.removesuffix(".json") for entry in entries}


def frame_films(config: TimelineConfig, films: dict[str, str]) -> None:
    """Cut films into shots and write their frames."""
    set_context()
    stage = fitted({}, {"video": config.video}, config.autoscaling)["video"]
    rows: Any = [{"film": name, "uri": uri} for name, uri in films.items()]
    store = Store(storage.absolute(config.output))
    cut: Any = partial(write_frames, config=config, store=store)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for number, row in enumerate(dataset.map_batches(cut, batch_size=1, **ray_task(stage)).iter_rows(), 1):
        log.info("%d of %d films cut: %s, %d shots", number, len(films), row["film"], row["shots"])


def write_frames(batch: Batch, config: TimelineConfig, store: Store) -> Batch:
    """Write the frames of films, and last shots/FILM.json, by which a film counts as cut: film, shots, error."""
    counts = []
    for film, uri in zip(map(str, batch["film"]), map(str, batch["uri"]), strict=True):
        shots, about = [], {"error": "", "message": ""}
        for row in _shots(uri, config):
            if row["shot"] < 0:
                about = {"error": row["error"], "message": row["message"]}
                continue
            first = sum(len(shot["times"]) for shot in shots)
            names = [f"{film}_{first + number:06d}.jpg" for number in range(len(row["jpegs"]))]
            for name, jpeg in zip(names, row["jpegs"], strict=True):
                storage.write_bytes(store.uri("frames", film, name), jpeg)
            shots.append({name: row[name] for name in ("shot", "start_s", "end_s", "times")} | {"images": names})
        # A film that failed is tried again by the next run.
        folder = "failed" if about["error"] and not shots else "shots"
        store.write_json({"film": film, "uri": uri, "shots": shots, **about}, folder, f"{film}.json")
        counts.append(len(shots))
    return {"film": batch["film"], "shots": np.array(counts)}


def _shots(uri: str, config: TimelineConfig) -> Iterator[Row]:
    """Rows of `actors.movie_characters.film_frames.frames_of_shots`, whatever happens to the decoding process."""
    limits: dict[str, Any] = {"stall_s": config.video.stall_s, "timeout_s": config.video.timeout_s}
    again: dict[str, Any] = {"attempts": DECODE_ATTEMPTS, "key": itemgetter("shot")}
    try:
        with storage.local(uri) as path:
            arguments = (str(path), config.shots, config.every_s, config.max_side, config.video.decoder)
            yield from CHILD.stream(frames_of_shots, *arguments, **limits, **again)
    except ChildFault as fault:
        yield {"shot": -1, "error": fault.code, "message": str(fault)}
    except FileNotFoundError as error:
        yield {"shot": -1, "error": "not_found", "message": str(error)}
    except PermissionError as error:
        yield {"shot": -1, "error": "forbidden", "message": str(error)}


@dataclass(frozen=True)
class Appearances:
    """Who is on screen when."""

    shots: pd.DataFrame
    """A row a shot: film, shot, start_s, end_s, frames, answer, share of the votes."""
    votes: pd.DataFrame
    """A row a shot and character that has a vote: film, shot, start_s, end_s, character, votes, share, score (mean)."""
    films: dict[str, dict[str, str]]
    """Error and message of each film, "" where it was read to its end."""


def appearances(config: TimelineConfig, films: Sequence[str], results: Results | None, lead: bool) -> Appearances:
    """Count the votes and write shots.csv and appearances.csv; results: None where no film has a frame."""
    store = Store(config.output)
    read = {
        film: store.read_json("shots", f"{film}.json") or store.read_json("failed", f"{film}.json") for film in films
    }
    said, scores = pd.Series(dtype=object), pd.DataFrame()
    if results is not None:
        scores = by_class(results)
        sure = confidence(scores, lead) if config.threshold is not None else pd.Series(0.0, scores.index)
        said = with_unknown(answers(scores), sure, config.threshold)
        scores, said = scores.rename(index=stem), said.rename(index=stem)
    shots, votes = [], []
    for film, about in read.items():
        for shot in about["shots"]:
            names = [stem(name) for name in shot["images"] if stem(name) in said.index]
            when = [film, shot["shot"], shot["start_s"], shot["end_s"]]
            counts = ballot(said.loc[names], scores.loc[names])
            answer, share = (counts.character.iloc[0], counts.share.iloc[0]) if len(counts) else (UNKNOWN, 0.0)
            shots.append([*when, len(names), answer, float(share)])
            votes += [[*when, *row] for row in counts.itertuples(index=False)]
    columns = ["film", "shot", "start_s", "end_s"]
    found = Appearances(
        pd.DataFrame(shots, columns=[*columns, "frames", "answer", "share"]),
        pd.DataFrame(votes, columns=[*columns, "character", "votes", "share", "score"]),
        {film: {name: about[name] for name in ("error", "message")} for film, about in read.items()},
    )
    write_csv(store.uri("shots.csv"), found.shots)
    write_csv(store.uri("appearances.csv"), found.votes)
    return found


def ballot(said: pd.Series, scores: pd.DataFrame) -> pd.DataFrame:
    """Votes of a shot's frames, most first, then the higher mean score: character, votes, share, score.

    said: the answer of each frame; scores: of classes (columns) for the same frames. UNKNOWN has no score, and of as
    many votes a character comes before it.
    """
    counts = Counter(said)
    rows = [
        (character, votes, votes / len(said), float(scores[character].mean()) if character in scores else np.nan)
        for character, votes in counts.items()
    ]
    rows.sort(key=lambda row: (-row[1], row[0] == UNKNOWN, -np.nan_to_num(row[3]), row[0]))
    return pd.DataFrame(rows, columns=["character", "votes", "share", "score"])


def frames_of(store: Store, films: Sequence[str]) -> list[str]:
    """URIs of the frames of films."""
    found = []
    for film in films:
        data = store.read_json("shots", f"{film}.json")
        names = [name for shot in (data or {"shots": []})["shots"] for name in shot["images"]]
        found += [storage.absolute(store.uri("frames", film, name)) for name in names]
    return found


def check_output(config: TimelineConfig) -> None:
    """Raise UserError where the output holds frames that were made otherwise."""
    before = Store(config.output).read_json("frames.json")
    if before is not None and before != _made_by(config):
        raise UserError(f"{config.output} holds frames that were made with other settings: use another output")


def remember(config: TimelineConfig) -> None:
    """Write down how frames are made."""
    Store(config.output).write_json(_made_by(config), "frames.json")


def _made_by(config: TimelineConfig) -> dict[str, Any]:
    made = {"every_s": config.every_s, "max_side": config.max_side, "decoder": config.video.decoder}
    return made | {"shots": asdict(config.shots)}
