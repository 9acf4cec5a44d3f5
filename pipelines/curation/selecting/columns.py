"""Which columns of scenes there are for rules, filters and the report."""

from collections.abc import Mapping, Sequence
from functools import partial

import pyarrow as pa

from actors.core.errors import check_all
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.families.embedding import COLUMN
from actors.curation.measuring.family import scorer_class
from actors.curation.selecting.column_rules import COLUMNS, NUMBER, ColumnRule, check_rules, kind_of, scalars
from pipelines.curation.measuring.families import columns_now
from pipelines.curation.settings import CurationConfig, measured_by

PLACES = ("start_s", "end_s")
"""Numbers that say where a scene is, not what it is like."""


def columns_of(store: Store) -> dict[str, pa.DataType]:
    """Columns that rules and filters can be on: of scores/, then of the families that the output has."""
    return {**COLUMNS, **scalars(columns_now(store))}


def check_rules_of(config: CurationConfig, measured: Sequence[str] = ()) -> None:
    """Raise UserError where a rule is on a column that the output does not have, or that it cannot be on.

    measured: families that are measured before scenes are selected.
    """
    if not config.select.column_rules:
        return
    there = columns_of(Store(config.output))
    for name in measured:
        columns = getattr(scorer_class(name), "columns", None)
        if columns is None:
            # Only its model says which it has; `select` checks them.
            return
        there |= scalars(columns)
    check_rules(config.select.column_rules, there, config.output)


def check_selectable(config: CurationConfig, measured: Sequence[str] = ()) -> None:
    """Raise UserError where scenes could not be selected: a rule is on a column that the output does not have, or the
    filter or embeddings are missing.

    measured: families that are measured before scenes are selected.
    """
    store, select = Store(config.output), config.select

    def ranked() -> None:
        if select.by == "classifier":
            from actors.curation.selecting.filter import load_filter, place

            made = (store.read_json("plan", "settings.json") or {}).get("measured_by") or measured_by(config)
            # Columns that are still to be measured are checked when scenes are selected.
            load_filter(place(config.output, config.filter), made, None if measured else store)

    def compared() -> None:
        columns = [getattr(scorer_class(name), "columns", None) for name in measured]
        # Only its model says which columns a family without them has.
        there = any(one is None or COLUMN in one for one in columns)
        if (select.semantic_dedupe is not None or select.balance.concepts) and not there:
            from pipelines.curation.selecting.vectors import embeddings

            embeddings(store)

    check_all(partial(check_rules_of, config, measured), ranked, compared)


def numeric(more: Mapping[str, pa.DataType], rules: Sequence[ColumnRule] = ()) -> list[str]:
    """Columns of scenes/ that are numbers: the seven features, those of rules, and all others.

    more: the columns of families that scenes/ holds.
    """
    there = {**COLUMNS, **more}
    ruled = [rule.column for rule in rules if rule.column in there]
    names = [*FEATURES, *ruled, *(name for name in there if name not in PLACES)]
    return [name for name in dict.fromkeys(names) if kind_of(there[name]) == NUMBER]
