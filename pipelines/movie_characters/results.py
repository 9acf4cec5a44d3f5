"""Result tables of identification: one value for each image and identity."""

from __future__ import annotations

import io
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from actors.core import storage
from actors.core.csv_tables import read_csv_table
from actors.core.errors import UserError
from actors.core.store import Store
from actors.movie_characters.names import UNLABELLED, class_or_unlabelled, identity_class, key

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IMAGE, IDENTITY, LOSS = RESULTS = ("GT Image name", "input_embeds", "loss")
"""Columns of a file of results."""
UNKNOWN = "unknown"
"""The answer for a character without an identity."""
NO_ANSWER = "no answer"
"""Stands for the answer of an image that a model could not answer: it is right for no class."""
ABOUT = "identified.json"
"""What a folder of results holds: by (method), higher (whether higher scores are better), unanswered (images), and
classes and identities: the classes of images and identities that their names do not say."""
SUFFIX = "_results.csv"
TABLES = (SUFFIX, "_certainty.csv")
"""How names of the tables of a class end."""
_METRICS = re.compile(r"(top_\d+(_avg)?_accuracy|average_precision)_results\.csv")


@dataclass(frozen=True)
class Results:
    """What a model answered."""

    rows: pd.DataFrame
    """One row per image and identity: image, truth (class), identity, cls (its class), score."""
    doubles: int = 0
    """Rows left out, since the same image and identity came again: the last one counts."""
    broken: int = 0
    """Rows left out, since their loss is not finite."""
    lost: tuple[str, ...] = ()
    """Images without a row left."""
    higher: bool = False
    """Whether higher is better in the files; here it always is."""
    by: str = ""
    """Method and model, where the folder says it."""
    unanswered: tuple[tuple[str, str], ...] = ()
    """Name and true class of the images without an answer: those that are lost, and those that the model rejected."""

    @property
    def images(self) -> pd.Series:
        """The true class of each image by its name, in the order of the files; last those without an answer."""
        import pandas as pd

        answered = self.rows.drop_duplicates("image").set_index("image").truth
        names, classes = [name for name, _ in self.unanswered], [cls for _, cls in self.unanswered]
        return pd.concat([answered, pd.Series(classes, pd.Index(names, name="image"), str, name="truth")])


def read_results(folder: str, clip_csv: bool | None, column: str = LOSS) -> Results:
    """The results in a folder.

    Args:
        folder: a path or s3://.
        clip_csv: higher is better; else they are losses. None: as the folder itself says, else losses.
        column: the column of scores.

    Raises:
        UserError: there are none, a file has other columns, or clip_csv contradicts the folder.
    """
    tables = []
    for entry in storage.listing(folder, (SUFFIX,)):
        if "/" in entry.name or _METRICS.fullmatch(entry.name):
            continue
        found = read_table(entry.uri, column)
        if not found.empty:
            tables.append(found.assign(truth=entry.name.removesuffix(SUFFIX)))
    if not tables:
        raise UserError(f"{folder} has no results: files named CLASS{SUFFIX} with the columns {','.join(RESULTS)}")
    import pandas as pd

    about = read_about(folder)
    higher = about.higher(clip_csv)
    rows = pd.concat(tables, ignore_index=True).rename(columns={IMAGE: "image", IDENTITY: "identity", LOSS: "score"})
    rows["truth"] = rows.image.map(about.classes).fillna(rows.truth) if about.classes else rows.truth
    rows["score"] = pd.to_numeric(rows.score, errors="coerce") * (1 if higher else -1)
    sound = rows[np.isfinite(rows.score)]
    rows_once = sound.drop_duplicates(["truth", "image", "identity"], keep="last").reset_index(drop=True)
    rows_once["cls"] = rows_once.identity.map(lambda name: about.identities.get(name) or identity_class(name))
    if rows_once.empty:
        raise UserError(f"{folder}: no loss is finite")
    # An identity's spelling is the model's; that of an image may be a file's.
    spelt = {key(name): name for name in [*rows_once.truth, *rows_once.cls]}
    for column in ("cls", "truth"):
        rows_once[column] = rows_once[column].map(lambda name: spelt[key(name)])
    twice = rows_once.drop_duplicates(["image", "truth"])
    if (again := twice.image[twice.image.duplicated()]).size:
        both = " and ".join(twice.truth[twice.image == again.iloc[0]])
        raise UserError(f"{folder}: {again.iloc[0]} is in the files of two classes, {both}; an image has one")
    lost = sorted(set(rows.image) - set(rows_once.image))
    classes = dict(zip(rows.image, rows.truth, strict=True))
    classes |= {name: about.classes.get(name) or class_or_unlabelled(name) for name in about.unanswered}
    silent = sorted((set(lost) | set(about.unanswered)) - set(rows_once.image))
    unanswered = tuple((name, spelt.get(key(classes[name]), classes[name])) for name in silent)
    return Results(
        rows_once, len(sound) - len(rows_once), len(rows) - len(sound), tuple(lost), higher, about.by, unanswered
    )


def labelled(results: Results, folder: str) -> Results:
    """Only the images whose class is known; warns of the others. Raises UserError where there are none."""
    others = (results.images == UNLABELLED).sum()
    if not others:
        return results
    if others == len(results.images):
        raise UserError(
            f"{folder}: no image has a class. To be scored, images are named CLASS_NUMBER, as Ann_001.jpg, "
            "or have a class in pictures.csv beside them."
        )
    log.warning("%s: %d images without a class are left out of the figures", folder, others)
    silent = tuple(one for one in results.unanswered if one[1] != UNLABELLED)
    names = {name for name, _ in silent}
    return replace(
        results,
        rows=results.rows[results.rows.truth != UNLABELLED].reset_index(drop=True),
        unanswered=silent,
        lost=tuple(name for name in results.lost if name in names),
    )


@dataclass(frozen=True)
class About:
    """What a folder of results says of itself."""

    folder: str
    by: str = ""
    """Method and model; empty where the folder says nothing."""
    says_higher: bool | None = None
    """Whether higher is better; None where the folder does not say."""
    unanswered: tuple[str, ...] = ()
    """Images that the model could not answer."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Classes of images that a manifest names, where their names say another."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Classes of identities, where their names say another."""

    def higher(self, clip_csv: bool | None) -> bool:
        """Whether higher is better; raises UserError where the setting contradicts the folder."""
        if self.says_higher is None or clip_csv is None:
            return bool(self.says_higher if clip_csv is None else clip_csv)
        if clip_csv != self.says_higher:
            better = "higher" if self.says_higher else "lower"
            raise UserError(
                f"{self.folder} holds results by {self.by}, of which {better} is better: remove "
                f"clip_csv={str(clip_csv).lower()}"
            )
        return clip_csv


def read_about(folder: str) -> About:
    """What a folder of results says of itself, also one of an earlier version."""
    store = Store(folder)
    told = store.read_json(ABOUT)
    if told is None:
        return About(folder)
    if not isinstance(told, dict) or "by" not in told or ("unanswered" in told and "higher" not in told):
        raise UserError(f"{store.uri(ABOUT)} is damaged. Remove it, and set clip_csv; or identify again.")
    if "unanswered" in told:
        classes, identities = told.get("classes", {}), told.get("identities", {})
        return About(folder, told["by"], told["higher"], tuple(told["unanswered"]), classes, identities)
    # Earlier versions wrote it for similarities only, and which images have no answer is in rejected/.
    parts = (part.to_pylist() for part in store.read_parts("rejected", ["image", "role"]))
    silent = {row["image"] for rows in parts for row in rows if row["role"] == "image"}
    return About(folder, told["by"], True, tuple(sorted(silent)), told.get("classes", {}))


def write_about(
    folder: str,
    by: str,
    higher: bool,
    answered: Iterable[str],
    unanswered: Iterable[str],
    identities: Mapping[str, str] | None = None,
) -> None:
    """Write what a folder holds; images of earlier runs that had no answer, and have none now, stay.

    identities: classes of identities by name, of which those are kept that their names do not say.
    """
    before = read_about(folder)
    silent = (set(before.unanswered) - set(answered)) | set(unanswered)
    known = {**before.identities, **(identities or {})}
    told = {"by": by, "higher": higher, "unanswered": sorted(silent), "classes": dict(before.classes)}
    told["identities"] = {name: cls for name, cls in known.items() if identity_class(name) != cls}
    Store(folder).write_json(told, ABOUT)


def note_classes(folder: str, classes: Mapping[str, str]) -> None:
    """Keep the classes of images that their names do not say, and move what there is of images to the right tables.

    A manifest may have come, changed or gone since a folder was written. classes: by name of the image.
    """
    before = read_about(folder)
    own = {name: cls for name, cls in classes.items() if class_or_unlabelled(name) != cls}
    odd = {name: classes[name] for name in classes if name in own or name in before.classes}
    if not odd:
        return
    kept = {name: cls for name, cls in before.classes.items() if name not in classes} | own
    told = Store(folder).read_json(ABOUT) or {"by": "", "higher": None, "unanswered": [], "identities": {}}
    Store(folder).write_json(told | {"classes": kept}, ABOUT)
    for suffix in TABLES:
        _move(folder, odd, suffix)


def _move(folder: str, classes: Mapping[str, str], suffix: str) -> None:
    """Move rows of images to the tables of their classes, in place of what these have of the same images."""
    import pandas as pd

    tables: dict[str, pd.DataFrame] = {}
    moved: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for entry in list(storage.listing(folder, (suffix,))):
        if "/" in entry.name or _METRICS.fullmatch(entry.name):
            continue
        own = entry.name.removesuffix(suffix)
        table = pd.read_csv(io.BytesIO(storage.read_bytes(entry.uri)), dtype=str, keep_default_na=False)
        belongs = table[IMAGE].map(classes).fillna(own)
        tables[own] = table[belongs == own]
        for cls, rows in table[belongs != own].groupby(belongs):
            moved[str(cls)].append(rows)
        if len(tables[own]) < len(table):
            moved.setdefault(own, [])
    # Tables that gain rows come first, so that a kill in between loses none.
    for cls in sorted(moved, key=lambda cls: not moved[cls]):
        rows = pd.concat(moved[cls]) if moved[cls] else None
        kept = tables.get(cls)
        if rows is not None:
            kept = rows if kept is None else pd.concat([kept[~kept[IMAGE].isin(rows[IMAGE])], rows])
        assert kept is not None
        uri = storage.join(folder, f"{cls}{suffix}")
        if len(kept):
            write_csv(uri, kept.sort_values(IMAGE, kind="stable"))
        else:
            storage.delete(uri)


def read_table(uri: str, column: str = LOSS) -> pd.DataFrame:
    """One file of results with the columns of RESULTS, the last from `column`; raises UserError for other columns."""
    import pandas as pd

    table = read_csv_table(uri, (IMAGE, IDENTITY, column))
    if (blank := (table[[IMAGE, IDENTITY]] == "").any(axis=1)).any():
        raise UserError(f"{uri}, line {table.index[blank][0]}: {IMAGE} or {IDENTITY} is empty")
    numbers = pd.to_numeric(table[column], errors="coerce")
    if (wrong := numbers.isna() & ~table[column].str.lower().isin(["", "nan"])).any():
        line = table.index[wrong][0]
        raise UserError(f"{uri}, line {line}: {column} is no number: {table[column][line]!r}")
    return table.assign(**{LOSS: numbers})[list(RESULTS)].reset_index(drop=True)


def write_results(
    folder: str, rows: pd.DataFrame, descending: bool, classes: Mapping[str, str] | None = None
) -> list[str]:
    """Write rows with the columns of RESULTS into the file of each image's class, best first; returns the classes.

    classes: by name of the image, for images whose names do not say them. What a file holds of other images and
    identities stays; the same image and identity is replaced.
    """
    import pandas as pd

    known = classes or {}
    of = rows[IMAGE].map(lambda name: known.get(str(name)) or class_or_unlabelled(str(name)))
    for cls, group in rows.groupby(of):
        uri = storage.join(folder, f"{cls}{SUFFIX}")
        before = [read_table(uri)] if storage.exists(uri) else []
        merged = pd.concat([*before, group[list(RESULTS)]]).drop_duplicates([IMAGE, IDENTITY], keep="last")
        merged = merged.sort_values(LOSS, ascending=not descending, kind="stable")
        merged = merged.sort_values(IMAGE, kind="stable")
        write_csv(uri, merged)
    return sorted(set(of))


def write_csv(uri: str, table: pd.DataFrame) -> None:
    """Write a table as CSV, without an index."""
    storage.write_bytes(uri, table.to_csv(index=False, lineterminator="\n").encode())


# ------------------------------------------------------------------------------------------------------------ measuring


def by_class(results: Results, average: bool = False) -> pd.DataFrame:
    """Scores of classes, images by classes: of the best identity of each, or the mean over them; NaN where it has none.

    Images are in the order of `results.images`, those without an answer included, classes sorted.
    """
    grouped = results.rows.groupby(["image", "cls"], sort=True).score
    table = (grouped.mean() if average else grouped.max()).unstack()
    return table.reindex(results.images.index)
