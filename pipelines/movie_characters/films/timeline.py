"""Which characters a film shows when: shots, frames of each, an answer for every frame, votes per shot.

frames   task     a film's shots in one decode; frames/FILM/FILM_NUMBER.jpg, shots/FILM.json
identify          any model: each frame an image, its class the film
vote     driver   each frame votes for its best class, or for unknown below the threshold; most votes win the shot
         faces    each frame votes for everybody whom it shows, by tracks (`face_timeline.py`)
files    driver   tables, and per film what editors read: timelines/FILM.srt, .edl, .rttm

A frame stands for the time until the next frame of its shot, or until the shot's end.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.core import storage
from actors.core.addresses import short_name
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.media.film import VIDEO_SUFFIXES, VideoConfig
from actors.media.shot_detection.shots import NETWORKS, ShotsConfig
from actors.movie_characters.film_frames import write_frames
from actors.movie_characters.names import checked_class, stem
from actors.movie_characters.recognition.bodies import BodiesConfig, check_bodies
from pipelines.core.ray_data import fitted, ray_task, rows_of, set_context
from pipelines.movie_characters.films.bodies import bodies_by_film, embed_bodies
from pipelines.movie_characters.films.face_films import face_appearances
from pipelines.movie_characters.films.film_faces import (
    check_threshold,
    embed_faces,
    faces_by_film,
    frame_names,
    read_judge,
)
from pipelines.movie_characters.films.people import read_names
from pipelines.movie_characters.films.tables import (
    Appearances,
    Tables,
    about_of,
    film_about,
    shot_row,
    write_editing,
    written,
)
from pipelines.movie_characters.films.tracks import TracksConfig
from pipelines.movie_characters.gallery_settings import FaceConfig
from pipelines.movie_characters.metrics import answers, confidence, with_unknown
from pipelines.movie_characters.models import (
    DiffusionModel,
    FaceModel,
    ModelRun,
    SingleModel,
    check_all,
    run_all,
    run_of,
    with_images,
)
from pipelines.movie_characters.results import NO_ANSWER, UNKNOWN, Results, by_class, read_results

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimelineConfig:
    """Settings of `timeline`."""

    input: str
    """A film, or a folder or s3:// of films."""
    output: str
    """Where frames, results, tables, figures and the page are written: a path or s3://."""
    model: SingleModel
    """The model that identifies frames. It has `by` (clip, faces or diffusion) and `settings`, those of its verb:
    model.by=clip model.settings.gallery=gallery."""
    threshold: float | None = None
    """Confidence below which a frame votes for unknown, as trained by `score report`; null: never. With model.by=faces:
    cosine below which a track is unknown; null: 0.92, for dlib's vectors, and refused for faces.embedder in a file.
    Raise it if strangers are named."""
    lead: bool | None = None
    """Confidence is the lead of the best class over the others; false: its score. null: the lead for diffusion, whose
    losses cannot be compared between images, else the score."""
    every_s: float = 1.0
    """Seconds between two frames of a shot that are identified. Lower it for more votes, and for tracks that hold on to
    faces which move, at a higher cost."""
    max_side: int = 768
    """Longest side of stored frames in pixels, from 64."""
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    """How films are cut into shots."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How films are decoded."""
    tracks: TracksConfig = field(default_factory=TracksConfig)
    """How faces become tracks, and tracks people. For model.by=faces."""
    bodies: BodiesConfig = field(default_factory=BodiesConfig)
    """Bodies that name people who turn away. For model.by=faces."""
    names: str = ""
    """Table of names of people that the gallery does not know, a path or s3://: people.csv of the output, filled in.
    For model.by=faces."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        if not self.every_s > 0 or self.max_side < 64:
            raise UserError(f"every_s must be above 0, and max_side at least 64: {self.every_s}, {self.max_side}")
        if isinstance(self.model, DiffusionModel) and self.model.settings.preselect.model:
            raise UserError("model.settings.preselect.model: a timeline has one model. Set preselect.folder.")
        if self.lead and isinstance(self.model, FaceModel):
            raise UserError("lead=true: tracks of faces are judged by their cosine. Remove lead.")
        if self.names and not isinstance(self.model, FaceModel):
            raise UserError(f"names={self.names}: only model.by=faces finds people without a name. Remove names.")
        if self.bodies.model and not isinstance(self.model, FaceModel):
            raise UserError(f"bodies.model={self.bodies.model}: only model.by=faces uses bodies. Remove it.")


def find_films(where: str) -> dict[str, str]:
    """URIs of films by a name that may begin those of images; raises UserError where there are none, or two of one."""
    root = storage.absolute(where)
    suffixes = tuple(VIDEO_SUFFIXES)
    uris = [root] if root.lower().endswith(suffixes) else [entry.uri for entry in storage.listing(root, suffixes, True)]
    found: dict[str, str] = {}
    for uri in uris:
        name = checked_class(short_name(re.sub(r'[\s/\\:*?"<>|]', "_", PurePosixPath(uri).stem)), uri)
        if name in found:
            raise UserError(f"two films are named {name}: {found[name]} and {uri}")
        found[name] = uri
    if not found or (uris == [root] and not storage.exists(root)):
        raise UserError(f"input={where} has no films ({', '.join(suffixes)})")
    return found


def done_films(store: Store) -> set[str]:
    """Names of films whose frames exist."""
    entries = storage.listing(store.uri("shots"), (".json",))
    return {entry.name.removesuffix(".json") for entry in entries}


@dataclass(frozen=True)
class TimelinePlan:
    """What a timeline has to do."""

    films: dict[str, str]
    """URIs by name."""
    todo: dict[str, str]
    """Films without frames."""
    run: ModelRun
    """The identification, still without images."""


def plan_timeline(config: TimelineConfig) -> TimelinePlan:
    """Find the films, and check the model and its gallery; raises UserError for what cannot work."""
    films = find_films(config.input)
    config.video.check_gpus(config.shots.detector in NETWORKS)
    check_output(config)
    if config.names:
        read_names(config.names)
    store = Store(storage.absolute(config.output))
    run = run_of(config.model, [], store.uri("results"), config.output)
    check_all([run])
    if isinstance(run.config, FaceConfig):
        check_threshold(run.config, config.threshold)
        check_bodies(config.bodies.everywhere)
    done = done_films(store)
    return TimelinePlan(films, {name: uri for name, uri in films.items() if name not in done}, run)


def run_timeline(config: TimelineConfig, plan: TimelinePlan) -> tuple[Appearances, int]:
    """Cut films, identify frames, write the tables; returns these and the number of frames. Ray is running."""
    store = Store(storage.absolute(config.output))
    remember(config)
    if plan.todo:
        frame_films(config, plan.todo)
    films = list(plan.films)
    if isinstance(plan.run.config, FaceConfig):
        return _by_faces(config, plan.run.config, films)
    frames, results = frames_of(store, films), None
    if frames:
        run_all([with_images(plan.run, frames)])
        results = read_results(plan.run.folder, plan.run.clip_csv)
    lead = not plan.run.clip_csv if config.lead is None else config.lead
    return appearances(config, films, results, lead), len(frames)


def _by_faces(config: TimelineConfig, model: FaceConfig, films: Sequence[str]) -> tuple[Appearances, int]:
    """What `run_timeline` returns, by the faces of frames that exist; no film's frames are listed in the driver."""
    store = Store(storage.absolute(config.output))
    embed_faces(model, films, store)
    judge = read_judge(model, config.threshold)
    bodies = None
    if config.bodies.model:
        embed_bodies(model, config.bodies, films, store)
        bodies = bodies_by_film(model, config.bodies, store)
    found = face_appearances(config, films, faces_by_film(model, store), judge, bodies)
    assert found.people is not None
    return found, found.people.frames


def frame_films(config: TimelineConfig, films: dict[str, str]) -> None:
    """Cut films into shots and write their frames."""
    import ray

    set_context()
    stage = fitted({}, {"video": config.video}, config.autoscaling)["video"]
    rows: Any = [{"film": name, "uri": uri} for name, uri in films.items()]
    cut: Any = partial(
        write_frames,
        shots=config.shots,
        video=config.video,
        every_s=config.every_s,
        max_side=config.max_side,
        store=Store(storage.absolute(config.output)),
    )
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for number, row in enumerate(rows_of(dataset.map_batches(cut, batch_size=1, **ray_task(stage))), 1):
        log.info("%d of %d films cut: %s, %d shots", number, len(films), row["film"], row["shots"])


def appearances(config: TimelineConfig, films: Sequence[str], results: Results | None, lead: bool) -> Appearances:
    """Count the votes and write shots.csv and appearances.csv; results: None where no film has a frame."""
    import pandas as pd

    store = Store(config.output)
    read = {film: film_about(store, film) for film in films}
    said, scores = pd.Series(dtype=object), pd.DataFrame()
    if results is not None:
        scores = by_class(results)
        sure = confidence(scores, lead) if config.threshold is not None else pd.Series(0.0, scores.index)
        said = with_unknown(answers(scores), sure, config.threshold)
        scores, said = scores.rename(index=stem), said.rename(index=stem)
    shots, votes, parts = [], [], []
    for film, about in read.items():
        for shot in about["shots"]:
            names = [stem(name) for name in shot["images"]]
            voted = said.reindex(names, fill_value=NO_ANSWER)
            counts = ballot(voted, scores.reindex(names))
            shots.append(shot_row(film, shot, counts))
            votes += [[*shots[-1][:4], *row] for row in counts.itertuples(index=False)]
            shares = dict(zip(counts.character, counts.share, strict=True))
            own = segments(shot, voted, scores.reindex(names), shares)
            parts += [[film, shot["shot"], *row] for row in own]
    tables = Tables.of(shots, votes, parts)
    for film, rows in tables.segments.groupby("film"):
        write_editing(store, read[str(film)], rows)
    told = {film: about_of(about) for film, about in read.items()}
    return written(store, tables, sorted(map(str, scores.columns)), told)


def segments(shot: Row, said: pd.Series, scores: pd.DataFrame, shares: Mapping[str, float]) -> Iterator[list[Any]]:
    """Stretches of a shot with the same answer: start_s, end_s, character, frames, share, score, image.

    said, scores: of the shot's frames, in their order; shares: of the shot's votes, by character. Where frames have no
    answer there is no segment.
    """
    ends = [*shot["times"], shot["end_s"]][1:]
    about = zip(shot["images"], shot["times"], ends, said, strict=True)
    for character, run in itertools.groupby(enumerate(about), key=lambda one: one[1][3]):
        frames = list(run)
        if character == NO_ANSWER:
            continue
        own = scores[character].iloc[[number for number, _ in frames]] if character in scores else None
        best = int(np.argmax(own)) if own is not None else 0
        score = float(own.iloc[best]) if own is not None else np.nan
        (_, (_, start, _, _)), (_, (_, _, end, _)) = frames[0], frames[-1]
        yield [start, end, character, len(frames), float(shares[character]), score, frames[best][1][0]]


def ballot(said: pd.Series, scores: pd.DataFrame) -> pd.DataFrame:
    """Votes of a shot's frames, most first, then the higher mean score: character, votes, share, score.

    said: the answer of each frame; scores: of classes (columns) for the same frames. UNKNOWN has no score, and of as
    many votes a character comes before it. A frame without an answer has no vote, and counts in every share.
    """
    import pandas as pd

    counts = Counter(said)
    rows = [
        (character, votes, votes / len(said), float(scores[character].mean()) if character in scores else np.nan)
        for character, votes in counts.items()
        if character != NO_ANSWER
    ]
    rows.sort(key=lambda row: (-row[1], row[0] == UNKNOWN, -np.nan_to_num(row[3]), row[0]))
    return pd.DataFrame(rows, columns=["character", "votes", "share", "score"])


def frames_of(store: Store, films: Sequence[str]) -> list[str]:
    """URIs of the frames of films."""
    return [storage.absolute(store.uri("frames", film, name)) for film in films for name in frame_names(store, film)]


def check_output(config: TimelineConfig) -> None:
    """Raise UserError where the output has frames made with other settings."""
    before = Store(config.output).read_json("frames.json")
    if before is not None and before != _made_by(config):
        raise UserError(f"{config.output} has frames made with other settings: use another output")


def remember(config: TimelineConfig) -> None:
    """Store the settings that frames depend on."""
    Store(config.output).write_json(_made_by(config), "frames.json")


def _made_by(config: TimelineConfig) -> dict[str, Any]:
    made = {"every_s": config.every_s, "max_side": config.max_side, "decoder": config.video.decoder}
    return made | {"shots": asdict(config.shots)}
