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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from itertools import starmap
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
from pipelines.movie_characters.films.bodies import (
    answer_backs,
    answer_turned,
    bodies_by_film,
    embed_bodies,
    find_bodies,
)
from pipelines.movie_characters.films.editing import Appearance, Stretch, edl, rttm, srt, stretches
from pipelines.movie_characters.films.face_timeline import (
    FacesOf,
    Judge,
    People,
    Track,
    answer_tracks,
    film_record,
    find_tracks,
    name_strangers,
    shot_votes,
    write_tracks,
)
from pipelines.movie_characters.films.film_faces import check_threshold, embed_faces, faces_by_film, read_judge
from pipelines.movie_characters.films.people import read_names
from pipelines.movie_characters.films.people_pictures import write_pictures
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
from pipelines.movie_characters.results import NO_ANSWER, UNKNOWN, Results, by_class, read_results, write_csv

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TIMELINES = "timelines"
"""Folder of what is made per film."""


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
    frames, results = frames_of(store, list(plan.films)), None
    if isinstance(plan.run.config, FaceConfig):
        embed_faces(plan.run.config, frames)
        judge = read_judge(plan.run.config, config.threshold)
        bodies = None
        if config.bodies.model:
            embed_bodies(plan.run.config, config.bodies, {film: frames_of(store, [film]) for film in plan.films}, store)
            bodies = bodies_by_film(plan.run.config, config.bodies, store)
        faces = faces_by_film(plan.run.config, store)
        return face_appearances(config, list(plan.films), faces, judge, bodies), len(frames)
    if frames:
        run_all([with_images(plan.run, frames)])
        results = read_results(plan.run.folder, plan.run.clip_csv)
    lead = not plan.run.clip_csv if config.lead is None else config.lead
    return appearances(config, list(plan.films), results, lead), len(frames)


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


@dataclass(frozen=True)
class Appearances:
    """Which characters are on screen when."""

    shots: pd.DataFrame
    """A row per shot: film, shot, start_s, end_s, frames, answer, share of the votes."""
    votes: pd.DataFrame
    """A row per shot and character with a vote: film, shot, start_s, end_s, character, votes, share, score (mean)."""
    segments: pd.DataFrame
    """A row per stretch of frames of a shot with the same answer: film, shot, start_s, end_s, character, frames, share
    (of the shot's votes for this character), score (the greatest; NaN for unknown), image (the frame with it)."""
    characters: list[str]
    """All characters that can be answered, sorted."""
    films: dict[str, dict[str, str]]
    """Decoder, error and message of each film; no error where it was read to its end."""
    people: People | None = None
    """Tracks, with model.by=faces."""


def appearances(config: TimelineConfig, films: Sequence[str], results: Results | None, lead: bool) -> Appearances:
    """Count the votes and write shots.csv and appearances.csv; results: None where no film has a frame."""
    import pandas as pd

    store = Store(config.output)
    read = _read(store, films)
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
            shots.append(_shot_row(film, shot, counts))
            votes += [[*shots[-1][:4], *row] for row in counts.itertuples(index=False)]
            shares = dict(zip(counts.character, counts.share, strict=True))
            own = segments(shot, voted, scores.reindex(names), shares)
            parts += [[film, shot["shot"], *row] for row in own]
    return _written(store, read, shots, votes, parts, sorted(map(str, scores.columns)))


def face_appearances(
    config: TimelineConfig,
    films: Sequence[str],
    faces_of: Callable[[str], FacesOf],
    judge: Judge,
    bodies_of: Callable[[str], FacesOf] | None = None,
) -> Appearances:
    """Tracks of all films, and the tables and files that they end in.

    faces_of, bodies_of: what the frames of a film show. Of one film at a time it is held; then its tracks.
    """
    store = Store(config.output)
    read = _read(store, films)
    alike = judge.threshold if config.tracks.alike is None else config.tracks.alike
    tracks: list[Track] = []
    backs: dict[str, list[Track]] = {}
    for film, about in read.items():
        own = find_tracks(about, film, faces_of(film), config.tracks, alike)
        if bodies_of is not None:
            backs[film] = find_bodies(about, film, own, bodies_of(film), config.tracks, config.bodies)
        tracks += own
    answer_tracks(tracks, judge)
    if bodies_of is not None:
        answer_turned(tracks, config.bodies)
    people = People(tracks, judge, name_strangers(store, tracks, alike, config.names))
    if bodies_of is not None:
        tracks += answer_backs(tracks, backs, config.bodies)
    write_tracks(store, people)
    write_pictures(store, [track for track in tracks if track.by == "face"], config.tracks.pictures)
    of_film, of_shot = defaultdict(list), defaultdict(list)
    for track in tracks:
        of_film[track.film].append(track)
        of_shot[track.film, track.shot].append(track)
    shots, votes, parts = [], [], []
    for film, about in read.items():
        if about["shots"]:
            store.write_json(film_record(about, of_film[film]), TIMELINES, f"{film}.json")
        for shot in about["shots"]:
            counts = shot_votes(shot, of_shot[film, shot["shot"]])
            shots.append(_shot_row(film, shot, counts))
            votes += [[*shots[-1][:4], *row] for row in counts.itertuples(index=False)]
            shares = dict(zip(counts.character, counts.share, strict=True))
            for track in of_shot[film, shot["shot"]]:
                score = np.nan if track.cluster or track.by == "body" else track.cosine
                found = [track.start_s, track.end_s, track.identity, len(track.images), shares[track.identity], score]
                parts.append([film, shot["shot"], *found, track.images[track.best]])
    return _written(
        store, read, shots, votes, parts, sorted({*judge.classes, *(one.identity for one in tracks)}), people
    )


def _read(store: Store, films: Sequence[str]) -> dict[str, Row]:
    """What is stored of each film."""
    return {
        film: store.read_json("shots", f"{film}.json") or store.read_json("failed", f"{film}.json") for film in films
    }


def _shot_row(film: str, shot: Row, counts: pd.DataFrame) -> list[Any]:
    """The row of a shot by its votes: film, shot, start_s, end_s, frames, answer, share."""
    answer, share = (counts.character.iloc[0], counts.share.iloc[0]) if len(counts) else (UNKNOWN, 0.0)
    return [film, shot["shot"], shot["start_s"], shot["end_s"], len(shot["images"]), answer, float(share)]


def _written(
    store: Store,
    read: Mapping[str, Row],
    shots: list[list[Any]],
    votes: list[list[Any]],
    parts: list[list[Any]],
    characters: list[str],
    people: People | None = None,
) -> Appearances:
    """Write the tables and the files for editors."""
    import pandas as pd

    columns = ["film", "shot", "start_s", "end_s"]
    found = Appearances(
        pd.DataFrame(shots, columns=[*columns, "frames", "answer", "share"]),
        pd.DataFrame(votes, columns=[*columns, "character", "votes", "share", "score"]),
        pd.DataFrame(parts, columns=[*columns, "character", "frames", "share", "score", "image"]),
        characters,
        {film: {name: about.get(name, "") for name in ("decoder", "error", "message")} for film, about in read.items()},
        people,
    )
    write_csv(store.uri("shots.csv"), found.shots)
    write_csv(store.uri("appearances.csv"), found.votes)
    write_csv(store.uri("segments.csv"), found.segments)
    for film, rows in found.segments.groupby("film"):
        write_editing(store, read[str(film)], rows)
    return found


def write_editing(store: Store, about: Row, segments: pd.DataFrame) -> None:
    """Write timelines/FILM.srt, .rttm and .edl: who is on screen when; about: what shots/FILM.json holds."""
    film = about["film"]
    shown = [Appearance(*row) for row in segments[["start_s", "end_s", "character"]].itertuples(index=False)]
    texts = {f"{film}.srt": srt(stretches(shown)), f"{film}.rttm": rttm(film, shown)}
    if about.get("rate"):
        # Timecode counts from the first frame, wherever the clock of the file starts.
        begin = about["begin_s"]
        counted = [(one.start_s - begin, one.end_s - begin, one.characters) for one in stretches(shown)]
        lists = edl(film, PurePosixPath(about["uri"]).name, starmap(Stretch, counted), Fraction(about["rate"]))
        texts |= {f"{film}{f'_{number}' if number > 1 else ''}.edl": text for number, text in enumerate(lists, 1)}
    else:
        where = store.uri("shots", f"{film}.json")
        log.warning(
            "%s: no .edl, since an earlier version did not store its rate. Remove %s to cut it again", film, where
        )
    for name, text in texts.items():
        storage.write_bytes(store.uri(TIMELINES, name), text.encode())


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
    found = []
    for film in films:
        data = store.read_json("shots", f"{film}.json")
        names = [name for shot in (data or {"shots": []})["shots"] for name in shot["images"]]
        found += [storage.absolute(store.uri("frames", film, name)) for name in names]
    return found


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
