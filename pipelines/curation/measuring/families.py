"""Which families of scores an output has, and which columns."""

from collections.abc import Sequence

import pyarrow as pa

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.measuring.measured import Family, families_now
from actors.curation.tables import SCORES


def columns_now(store: Store) -> dict[str, pa.DataType]:
    """The columns of families that an output has, with their types."""
    return {name: kind for family in families_now(store) for name, kind in family.columns.items()}


def family_of(store: Store, column: str) -> Family:
    """The family that has a column. Raises UserError."""
    found = [family for family in families_now(store) if column in family.columns]
    if not found:
        there = ", ".join([*SCORES.names, *columns_now(store)])
        raise UserError(
            f"{store.root} has no column {column}. It has {there}. Scores are added with: "
            f"python -m jobs.curation measure {store.root} scores=[...]"
        )
    return found[0]


def families_with(store: Store, columns: list[str]) -> list[Family]:
    """The families that columns come from, those of scores/ left out. Raises UserError for one that is nowhere."""
    wanted = [name for name in columns if name not in SCORES.names]
    found = {family.name: family for family in (family_of(store, name) for name in wanted)}
    return list(found.values())


def check_measured(store: Store, families: Sequence[Family], left: Sequence[int]) -> None:
    """Raise UserError where families have yet to measure scenes: so many of each."""
    counts = {family.name: count for family, count in zip(families, left, strict=True)}
    missing = [f"{count} scenes have no scores of {name}" for name, count in counts.items() if count]
    if missing:
        names = ",".join(name for name, count in counts.items() if count)
        raise UserError(
            f"{store.root}: {', '.join(missing)}. Measure them: "
            f"python -m jobs.curation measure {store.root} scores=[{names}]"
        )
