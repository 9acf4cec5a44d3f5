"""Compare recaptions with captions, and kept scenes with random ones, by CLIPScore.

A scene's score for a text is the mean of 100 * max(cos, 0) over its key frames, or over every second of its sampled
frames, the first among them; all scenes that are compared are scored by the same. (Hessel et al. 2021, CLIPScore, have
2.5 instead of 100; this is the scale of torchmetrics and of the reference.)

kept    the scenes that `select` chose
random  as many scenes, drawn from all that are sound and neither too short nor too long. Kept ones may be among them:
        it is what a corpus of that size would be without the filter. The draw goes by a hash of seed and names, so that
        a smaller one is part of a larger one, and it hardly changes when films are added.

plan    driver   groups, captions and recaptions; less what evaluation/ has scored with the same model and texts
texts   actors   1 -> 1: every text once
frames  task     1 -> N: key frames that are stored, or the films of these scenes, each decoded once
embed   actors   1 -> 1: the key frames, or every second frame
write   task     N -> 1: scores, whole parts of evaluation/
compare driver   evaluation.json, and the totals of kept.json
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError
from actors.core.stage import Batch, Row, Stage, codes_in
from actors.core.store import Store
from actors.curation.evaluating.clip_scores import KEYS, SCORED, TEXTS, score_scenes
from actors.curation.tables import EVALUATION, ORIGIN, PLAN_AGAIN, SELECT_AGAIN, STALE, current, strings
from actors.models.clip import EmbeddingsConfig, FrameEmbedder, TextEmbedder
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import batches, fitted, ray_actors, ray_task, rows_of, set_context
from pipelines.curation.captioning.recaption import in_waves, unasked
from pipelines.curation.cutting.frames import frames_of, key_frames_of, without_key_frames
from pipelines.curation.evaluating.significance import Comparison, compare
from pipelines.curation.exporting.digests import TOTALS, digest
from pipelines.curation.exporting.export import renew_kept_json
from pipelines.curation.kept import ROWS, Chosen, Names, Scenes, located, names_of, scene_names
from pipelines.curation.rows import captions
from pipelines.curation.settings import CurationConfig

EVERY = {"keyframes": 1, "sampled": 2}
"""All key frames are scored, and every second sampled one."""

_KEYS = pa.schema([(name, pa.string()) for name in KEYS])
ALIKE = "To score all on one device, delete evaluation/ and evaluate again."
"""What to do where scores were computed in several ways."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What an evaluation compares, and what it has to score before."""

    rows: pd.DataFrame
    """The scenes of both groups, with the columns of EVALUATION."""
    scenes: Chosen
    """The same, as `frames_of` takes them."""
    todo: Chosen
    """Those of them that are to be scored."""
    pictures: str = "sampled"
    """Which pictures of them, by evaluate.pictures."""

    @property
    def texts(self) -> list[str]:
        """What is to be embedded, each text once."""
        rows = self.rows[self.rows.error != ""]
        return sorted(set(rows[TEXTS].to_numpy().ravel()) - {""})

    @property
    def comparable(self) -> bool:
        """Whether there are texts for one of the comparisons at least."""
        there = self.rows[TEXTS] != ""
        kept, random = there[self.rows.kept], there[self.rows.random]
        return bool(kept.all(axis=1).any() or (kept.any() & random.any()).any())


def plan_evaluation(config: CurationConfig) -> Plan:
    """Draw the groups and find what is missing; raises UserError where nothing is kept."""
    store = Store(config.output)
    kept = pa.concat_tables([_KEYS.empty_table(), *_chosen(store)])
    if not len(kept):
        raise UserError(
            f"{config.output} keeps no scene, so there is nothing to evaluate. Change the thresholds with `select`."
        )
    drawn = draw(_candidates(store), len(kept), config.evaluate.seed)
    both = pa.concat_tables([kept, drawn]).group_by(KEYS).aggregate([])
    scenes = located(store, [both.sort_by([(name, "ascending") for name in KEYS])])
    about = pa.concat_tables(scenes.tables(*KEYS, "caption", *ORIGIN)).to_pandas(types_mapper=strings)
    groups = {
        name: np.concatenate([Names([scene_names(group)]).places(some) >= 0 for some in names_of(scenes)])
        for name, group in (("kept", kept), ("random", drawn))
    }
    answers = captions(store).rename(columns={"code": "caption_code"})
    rows = about.assign(**groups).merge(answers, "left", on=KEYS)
    rows = rows.fillna({"caption": "", "recaption": "", "caption_code": "not_asked"})
    pictures = _pictures(store, scenes, config)
    rows = rows[[*EVALUATION.names[:7], *ORIGIN]].assign(pictures=pictures)
    rows = _with_scores(rows, store, config)
    return Plan(rows, scenes, scenes.where((rows.error != "").to_numpy()), pictures)


def _pictures(store: Store, scenes: Scenes, config: CurationConfig) -> str:
    """Which pictures are scored: where the settings leave it open, key frames if all scenes have them."""
    if config.evaluate.pictures:
        return config.evaluate.pictures
    without = without_key_frames(scenes.rows("part"), store)
    if without:
        log.info(
            "%d of %d scenes have no key frames: every second sampled frame is scored, for which films are opened; "
            "evaluate.pictures=keyframes opens only those of these",
            *(without, len(scenes)),
        )
    return "sampled" if without else "keyframes"


def check_comparable(config: CurationConfig, plan: Plan) -> None:
    """Raise UserError where neither captions nor recaptions are there to be compared, and none will be made."""
    if not plan.comparable and not (config.evaluate.recaption and unasked(config, plan.scenes)):
        raise UserError(
            f"There is nothing to compare: of {len(plan.scenes)} scenes of {config.output} too few have a caption or a "
            "recaption. Make recaptions with evaluate.recaption=true; where they failed, `failed` says why."
        )


def _selection(store: Store) -> Iterator[pd.DataFrame]:
    """Parts of scenes/, with `uncaptioned`: a scene whose recaption failed was chosen and is kept no more. It stays in
    both groups, and is counted where it is left out."""
    for part in store.read_parts("scenes", [*KEYS, "kept", "reason", "error"], again=SELECT_AGAIN):
        rows = part.to_pandas(types_mapper=strings)
        yield rows.assign(uncaptioned=rows.error == "caption_failed")


def _chosen(store: Store) -> Iterator[pa.Table]:
    for rows in _selection(store):
        yield pa.Table.from_pandas(rows.loc[rows.kept | rows.uncaptioned, KEYS], _KEYS, preserve_index=False)


def _candidates(store: Store) -> Iterator[pa.Table]:
    """All scenes that are sound and of a length that may be kept, by their keys."""
    for rows in _selection(store):
        sound = (rows.error == "") | rows.uncaptioned
        chosen = sound & ~rows.reason.isin(["frozen", "too_short", "too_long", "unmeasured"])
        yield pa.Table.from_pandas(rows.loc[chosen, KEYS], _KEYS, preserve_index=False)


def draw(candidates: Iterable[pa.Table], count: int, seed: int) -> pa.Table:
    """So many of the scenes, or all where there are fewer; a draw of fewer is the beginning of one of more.

    candidates: tables of KEYS, as is the result.
    """
    drawn, places = _KEYS.empty_table(), np.zeros((0, 2), np.uint64)
    for table in candidates:
        drawn, places = pa.concat_tables([drawn, table]), np.concatenate([places, _places(table, seed)])
        if len(drawn) > 2 * count:
            drawn, places = _first(drawn, places, count)
    return _first(drawn, places, count)[0]


def _first(scenes: pa.Table, places: np.ndarray, count: int) -> tuple[pa.Table, np.ndarray]:
    first = np.lexsort((places[:, 1], places[:, 0]))[:count]
    return scenes.take(first), places[first]


def _places(scenes: pa.Table, seed: int) -> np.ndarray:
    """Where scenes stand in the draw, uint64 (N, 2): hashes of 128 bits."""
    key = str(seed).encode()
    names = scene_names(scenes).to_pylist()
    hashes = [hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names]
    return np.frombuffer(b"".join(hashes), ">u8").reshape(-1, 2).astype(np.uint64)


def evaluate(config: CurationConfig, plan: Plan) -> dict[str, Any]:
    """Score what is missing and compare; returns what is written as evaluation.json."""
    started = time.monotonic()
    store, rows = Store(config.output), plan.rows
    # Captions that were asked for may all have failed.
    scored = plan.todo if plan.comparable else []
    if scored:
        _score(plan, config)
    parts = store.parts("evaluation")
    if scored:
        rows = _with_scores(rows.drop(columns=SCORED), store, config)
    table = pa.Table.from_pandas(rows, schema=EVALUATION, preserve_index=False)
    store.commit_table("evaluation", [table], "Run `evaluate` to make it again.", absorbed=parts)
    compared = comparisons(rows, config.evaluate.resamples, config.evaluate.seed)
    left = rows[rows.kept & (rows.caption_code != "caption_failed")]
    result = {
        "kept": int(rows.kept.sum()),
        "random": int(rows.random.sum()),
        "both": int((rows.kept & rows.random).sum()),
        "scored": len(scored),
        "comparisons": compared,
        "totals": totals(compared),
        "pictures": plan.pictures,
        "notes": mixed(Counter(rows[COMPUTED]), "CLIPScores", "scenes", ALIKE),
        "of": digest(_rows_of(left[[*KEYS, "recaption"]])),
        "settings": {"evaluate": asdict(config.evaluate), "embeddings": asdict(config.embeddings)},
        "open_clip": metadata.version("open_clip_torch"),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(result, "evaluation.json")
    renew_kept_json(store)
    return result


def _rows_of(rows: pd.DataFrame) -> Iterator[Row]:
    for batch in pa.Table.from_pandas(rows, preserve_index=False).to_batches(max_chunksize=ROWS):
        yield from batch.to_pylist()


def _with_scores(rows: pd.DataFrame, store: Store, config: CurationConfig) -> pd.DataFrame:
    """Rows with what evaluation/ has of the same scenes, texts and model; NaN where it has nothing."""
    found = pa.concat_tables([EVALUATION.empty_table(), *_stored(store)]).to_pandas()
    # Of a scene that was tried again the row without an error counts.
    found = found.fillna({"pictures": "sampled"})
    found = found[(found.model == config.embeddings.name()) & (found.pictures == rows.pictures.iloc[0])]
    found = found.sort_values("error", kind="stable")
    found = found.drop_duplicates([*KEYS, *TEXTS])
    return rows.merge(found[[*KEYS, *TEXTS, *SCORED]], "left", on=[*KEYS, *TEXTS])


def _stored(store: Store) -> Iterator[pa.Table]:
    """What can be read of evaluation/ and is of the films and times of the input: the rest is scored again."""
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    for name in store.parts("evaluation"):
        with suppress(FileNotFoundError):
            part = store.read_part("evaluation", name, EVALUATION.names, (*ORIGIN, "pictures", COMPUTED))
            if part is not None:
                yield part.filter(current(part, stale)).select(EVALUATION.names).cast(EVALUATION)


# -------------------------------------------------------------------------------------------------------------- scoring


def stages_of(config: CurationConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks of an evaluation, by name."""
    return {"embeddings": config.embeddings}, {"video": config.video, "write": config.write}


def _score(plan: Plan, config: CurationConfig) -> None:
    import ray

    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    model: Any = stages["embeddings"]
    about: Any = ray.put(plan.rows.set_index(KEYS))
    texts: Any = ray.put(_text_embeddings(plan.texts, model))
    pictures_of = key_frames_of if plan.pictures == "keyframes" else frames_of
    arguments = [model, EVERY[plan.pictures]]
    write: Any = partial(write_scores, about=about, texts=texts, store=Store(config.output), model=config.embeddings)

    def written() -> Iterator[Batch]:
        for some in in_waves(plan.todo):
            rows = pictures_of(some, config, stages["video"])
            rows = rows.map_batches(
                FrameEmbedder,
                fn_constructor_args=arguments,
                batch_size=model.batch_size,
                **ray_actors(model, inputs=-(-len(some) // model.batch_size)),
            )
            rows = rows.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))
            yield from batches(rows)

    progress = Progress("evaluate", len(plan.todo), "scenes")
    for _ in tracked(written(), progress, lambda counts: int(counts["scenes"].sum()), codes_in):
        pass


def write_scores(batch: Batch, about: Any, texts: Any, store: Store, model: EmbeddingsConfig) -> Batch:
    """As `score_scenes`; about and texts are references, so that the plan does not travel with every task."""
    import ray

    places, vectors = ray.get(texts)
    return score_scenes(batch, ray.get(about), places, vectors, store, model)


def _text_embeddings(texts: list[str], stage: EmbeddingsConfig) -> tuple[dict[str, int], np.ndarray]:
    """Each text's row in a matrix float32 (N, D)."""
    import ray

    if not texts:
        return {}, np.zeros((0, 0), np.float32)
    rows = ray.data.from_items([{"text": text} for text in texts])
    actors = ray_actors(stage, inputs=-(-len(texts) // stage.per_call))
    rows = rows.map_batches(TextEmbedder, fn_constructor_args=[stage], batch_size=stage.per_call, **actors)
    found = list(rows_of(rows))
    return {row["text"]: i for i, row in enumerate(found)}, np.stack([row["embedding"] for row in found])


# ------------------------------------------------------------------------------------------------------------ comparing


def comparisons(rows: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Recaptions against captions of kept scenes, and kept scenes against random ones by recaption and by caption.

    Each has its name, paired, the fields of `Comparison` (null where there is nothing to compare), and in left_out how
    many scenes of its groups have no score, by reason: they are in neither mean.
    """
    kept, random = rows[rows.kept], rows[rows.random]
    made = {
        "recaption - caption, kept scenes": ((kept, "recaption"), (kept, "caption")),
        "kept - random, recaptions": ((kept, "recaption"), (random, "recaption")),
        "kept - random, captions": ((kept, "caption"), (random, "caption")),
    }
    return [{"name": name} | _comparison(*sides, resamples, seed) for name, sides in made.items()]


def _comparison(
    first: tuple[pd.DataFrame, str], second: tuple[pd.DataFrame, str], resamples: int, seed: int
) -> dict[str, Any]:
    texts = {first[1], second[1]}
    needed = [f"score_{text}" for text in texts]
    a, b = (rows[rows[needed].notna().all(axis=1)].set_index(KEYS)[f"score_{text}"] for rows, text in (first, second))
    everything = pd.concat([first[0], second[0]]).drop_duplicates(KEYS)
    lost = everything[everything[needed].isna().any(axis=1)]
    left_out = Counter(_why(row, texts) for row in pa.Table.from_pandas(lost).to_pylist())
    paired = len(texts) == 2
    found = dict.fromkeys(field.name for field in fields(Comparison))
    if len(a) and len(b):
        found = asdict(compare(a, b, paired, resamples, seed))
        # JSON has no NaN.
        found |= {name: None for name in ("interval", "effect") if np.isnan(found[name]).any()}
    return {"paired": paired, **found, "left_out": dict(left_out)}


def _why(row: Row, texts: set[str]) -> str:
    if row["error"] or ("caption" in texts and not row["caption"]):
        return row["error"] or "no_caption"
    return row["caption_code"] or "no_recaption"


def totals(compared: list[dict[str, Any]]) -> dict[str, float | None]:
    """The reference's four figures, which are means."""
    (recaption, caption), (kept, random) = (one["means"] or (None, None) for one in compared[:2])
    return dict(zip(TOTALS, (caption, recaption, random, kept), strict=True))
