"""The verb `search`, and the page of what it finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.tables import PICTURES, check_planned
from jobs.core.verbs import Preview, Run, Verb

COLUMNS = ("cosine", "video_id", "scene_id", "start_s", "end_s", "kept", "reason", "caption")
"""What is printed of a scene."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings of `search`."""

    output: str
    """The output of a run with embeddings: a path or s3://bucket/prefix."""
    query: str
    """What to search for: a text, or a picture's path or s3:// (.jpg, .png and others)."""
    count: int = 24
    """Scenes to show, at least 1."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count={self.count}: set at least 1")

    @property
    def folder(self) -> str:
        """Where the page and the table go, below the output."""
        return f"search/{re.sub(r'[^a-z0-9]+', '-', self.query.lower()).strip('-')[-60:] or 'query'}"


class Search(Verb):
    """Search scenes by a text or a picture: prints the nearest, and writes a page and a table of them."""

    positional = ("output", "query")

    def settings(self) -> type[SearchConfig]:
        return SearchConfig

    def root(self, config: SearchConfig) -> None:
        return None

    def outputs(self, config: SearchConfig) -> list[str]:
        return [config.output]

    def plan(self, config: SearchConfig) -> None:
        from pipelines.curation.selecting.search import check_query

        store = Store(config.output)
        check_planned(store)
        check_query(store, config.query)

    def preview(self, config: SearchConfig, plan: None) -> Preview:
        names = {"page": "index.html", "table": "scenes.tsv"}
        artefacts = {name: Store(config.output).uri(config.folder, file) for name, file in names.items()}
        return Preview([f"to search: embeddings of {config.output}"], artefacts)

    def work(self, config: SearchConfig, plan: None, run: Run) -> None:
        from pipelines.curation.selecting.search import search

        store = Store(config.output)
        found = search(store, config.query, config.count)
        lines = ["\t".join(COLUMNS), *("\t".join(_cell(row[name]) for name in COLUMNS) for row in found)]
        storage.write_bytes(store.uri(config.folder, "scenes.tsv"), "".join(f"{line}\n" for line in lines).encode())
        for line in lines:
            run.say(line)
        run.say(f"page: {write_page(store, config, found)}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return re.sub(r"\s+", " ", str("" if value is None else value))


def write_page(store: Store, config: SearchConfig, found: list[dict[str, Any]]) -> str:
    """Write the page of scenes that were found, and their key frames beside it; returns its URI."""
    from actors.curation.cutting.pictures import stored
    from actors.curation.exporting.export import clip_name
    from jobs.core.pages import render, thumbnail

    wanted: dict[str, set[tuple[str, str]]] = {}
    for row in found:
        wanted.setdefault(row[PICTURES], set()).add((row["video_id"], row["scene_id"]))
    pictures = {key: files for part, keys in wanted.items() for key, files in stored(store, part, keys).items()}
    cards = []
    for number, row in enumerate(found, 1):
        key = row["video_id"], row["scene_id"]
        name, files = clip_name(*key), pictures.get(key, [])
        clip = row["kept"] and storage.exists(store.uri("clips", name))
        card = {**row, "clip": f"../../clips/{quote(name)}" if clip else "", "jpeg": b"", "picture": ""}
        if files:
            middle = files[len(files) // 2]
            card |= {"jpeg": thumbnail(middle), "picture": f"{number:03}.jpg"}
            storage.write_bytes(store.uri(config.folder, card["picture"]), middle)
        cards.append(card)
    uri = store.uri(config.folder, "index.html")
    page = render("curation/search.html.j2", query=config.query, output=config.output, cards=cards)
    storage.write_bytes(uri, page.encode())
    return uri
