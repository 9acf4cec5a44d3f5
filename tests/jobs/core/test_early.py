"""What can be known early is said early: every verb with mistakes that names, counts, keys and files tell ends with 2,
names all that do not depend on each other, and has computed nothing."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from actors.core.store import Store
from jobs.reference import CAPABILITIES
from pipelines.core.film_vectors import Films, write_films
from pipelines.curation.selecting.select import select
from tests.pipelines.curation import outputs

COMPUTES = (
    "ray.init",
    "torch.nn.Module.load_state_dict",
    "torch.nn.Module.__call__",
    "safetensors.torch.load_file",
    "actors.core.child.Child.stream",
    "PIL.Image.open",
    "cv2.imdecode",
    "av.open",
)
"""What starts Ray, loads a model or lets one compute, or opens a picture or a film."""
HERE = "output={}/file/out"
NO_FOLDER = "cannot write to {}/file/out: {}/file is no folder"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures by director, a corpus without captions, films' vectors, and a file where a folder should be."""
    root = tmp_path_factory.mktemp("early")
    (root / "file").write_text("")
    (root / "empty").mkdir()
    for name in ("one/Ann/a/1.jpg", "one/Ann/b/1.jpg", "two/Ann/a/1.jpg", "two/Bob/a/1.jpg", "faces/Ann_1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    (root / "films").mkdir()
    (root / "films/a.mp4").write_text("")
    (root / "boxes.csv").write_text("series_id,page_id,type,index,char_index,x_0,y_0,x_1,y_1\n")
    (root / "times.csv").write_text("start_time,end_time,who\n")
    (root / "split.json").write_text('{"train": ["0"], "val": [], "test": ["1"]}')
    for name in ("corpus", "unselected"):
        settings = outputs.config(root / name)
        store = Store(settings.output)
        outputs.write_plan(store, {"a": 2})
        outputs.write_scores(store, outputs.scene("a.0_0"), outputs.scene("a.1_0", ordinal=1))
        outputs.write_settings(settings)
        if name == "corpus":
            select(settings)
    count = 6
    vectors, offsets = np.ones((count, 4), np.float16), np.arange(count + 1)
    genres, ids = np.zeros((count, 2), np.uint8), [str(number) for number in range(count)]
    write_films(Films(vectors, offsets, ids, genres, ["Drama", "War"], ["Ann"] * count), str(root / "films.npz"))
    return root


@pytest.fixture
def computes(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[str]:
    """What was begun that takes long."""
    begun: list[str] = []

    def noted(name: str) -> Any:
        def begin(*arguments: Any, **named: Any) -> Any:
            begun.append(name)
            raise RuntimeError(f"{name} was called")

        return begin

    for name in COMPUTES:
        monkeypatch.setattr(name, noted(name))
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    # Nobody listens there: what is asked of it is known at once to be missing.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    monkeypatch.setattr("actors.models.backbones.TORCHVISION", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(place / "empty"))
    return begun


GALLERY = "gallery={}/empty holds no images"
CASES: list[tuple[str, *tuple[str, ...]]] = [
    (
        f"curation run input={{}}/none {HERE} select.by=classifier fetch.cookies={{}}/none latents.model={{}}/none",
        *(NO_FOLDER, "{}/none: no such file", "fetch.cookies={}/none", "latents.model={}/none", "filter.json"),
    ),
    (f"curation run input={{}}/films {HERE} latents.model=tiny select.semantic_dedupe=0.9", "has no embeddings"),
    (f"curation run input={{}}/films {HERE}", NO_FOLDER, "latents.model=", "cannot be downloaded"),
    (f"curation fetch input={{}}/none {HERE}", NO_FOLDER, "{}/none: no such file"),
    (f"curation score input={{}}/none {HERE} scores=[none]", NO_FOLDER, "{}/none: no such file", "none"),
    ("curation select {}/corpus select.by=classifier select.semantic_dedupe=0.9", "filter.json", "has no embeddings"),
    ("curation export {}/unselected export.preset=none", "has no selection", "none"),
    ("curation export {}/unselected export.packed=true export.layout=hf", "export.packed=true"),
    (f"curation retry input={{}}/none {HERE} select.by=classifier", NO_FOLDER, "no such file", "filter.json"),
    ("curation measure {}/corpus scores=[none]", "none"),
    ("curation embed {}/corpus measure.embedding.model={}/none", "{}/none"),
    ("curation search {}/corpus query", "has no embeddings"),
    ("curation annotate {}/empty", "has no plan"),
    ("curation fit-filter {}/corpus", "holds no labels"),
    ("curation recaption {}/unselected", "has no selection", "set GEMINI_API_KEY"),
    ("curation evaluate {}/corpus evaluate.recaption=false embeddings.model={}/none", "embeddings.model={}/none"),
    ("curation explain {}/empty a", "has no selection"),
    ("curation compact {}/empty", "has no plan"),
    ("curation status {}/empty", "has no plan"),
    ("curation failed {}/empty", "has no plan"),
    ("directors status {}/empty", "has no run records"),
    (f"directors sample input={{}}/empty {HERE}", NO_FOLDER, "has no films"),
    (f"directors explore input={{}}/empty {HERE}", NO_FOLDER, "{}/empty"),
    (f"directors train input={{}}/one {HERE}", NO_FOLDER, "0 of 1 directors can be classes"),
    (
        f"directors train input={{}}/two {HERE} pictures.backbone.model=none",
        NO_FOLDER,
        "0 of 2 directors",
        "model=none ",
    ),
    (f"directors train films={{}}/films.npz {HERE}", NO_FOLDER, "1 of 1 directors can be classes"),
    ("directors guess {}/empty image={}/one", "has no model"),
    ("genres status {}/empty", "has no run records"),
    (f"genres embed input={{}}/empty {HERE} embeddings.model=none", NO_FOLDER, "has neither folders", "model=none"),
    (f"genres texts input={{}}/empty {HERE}", NO_FOLDER, "{}/empty"),
    (f"genres zero-shot input={{}}/empty {HERE}", NO_FOLDER, "has neither folders"),
    (f"genres process meta={{}}/empty {HERE}", NO_FOLDER, "holds no films", "meta={}/empty holds no .json"),
    (f"genres train input={{}}/films.npz {HERE}", NO_FOLDER, "no film has a genre"),
    (f"genres predict input={{}}/films.npz model={{}}/none {HERE}", NO_FOLDER, "holds no model"),
    (f"genres score input={{}}/films.npz {HERE} folds=3", NO_FOLDER, "no film has a genre"),
    ("movie_characters status {}/empty", "has no run records"),
    (f"movie_characters extract csv={{}}/times.csv input={{}}/films/a.mp4 category=who {HERE}", NO_FOLDER, "no rows"),
    (
        f"movie_characters identify-clip gallery={{}}/empty input={{}}/faces model_name=none {HERE}",
        *(NO_FOLDER, GALLERY, "model_name=none"),
    ),
    (f"movie_characters identify-faces gallery={{}}/empty input={{}}/faces {HERE}", NO_FOLDER, GALLERY),
    (f"movie_characters personalise input={{}}/empty {HERE}", NO_FOLDER, "holds no images", "cannot be downloaded"),
    (
        f"movie_characters identify-diffusion imagic_pretrained_path={{}}/empty input={{}}/empty {HERE}",
        *(NO_FOLDER, "holds no images", "holds no identities"),
    ),
    (f"movie_characters generate imagic_pretrained_path={{}}/empty {HERE}", NO_FOLDER, "holds no identities"),
    (f"movie_characters fuse models.a.folder={{}}/empty models.b.folder={{}}/faces {HERE}", NO_FOLDER, "no results"),
    (
        f"movie_characters compare input={{}}/faces models.a.by=clip models.a.settings.gallery={{}}/empty {HERE}",
        *(NO_FOLDER, GALLERY),
    ),
    (
        f"movie_characters timeline input={{}}/empty model.by=clip model.settings.gallery={{}}/empty {HERE}",
        *(NO_FOLDER, "has no films"),
    ),
    *((f"movie_characters score {verb} input={{}}/empty {HERE}", NO_FOLDER, "no results") for verb in ("topk", "map")),
    (f"movie_characters score report input={{}}/empty {HERE}", NO_FOLDER, "has no results"),
    (
        f"movie_characters score cast input={{}}/empty images={{}}/one annotations={{}}/none gallery={{}}/none {HERE}",
        *(NO_FOLDER, "face_answers.parquet does"),
    ),
    ("comic_characters status {}/empty", "has no run records"),
    (f"comic_characters panels input={{}}/empty {HERE}", NO_FOLDER, "{}/empty"),
    (f"comic_characters detect input={{}}/one detect.weights={{}}/none {HERE}", NO_FOLDER, "{}/none"),
    (f"comic_characters convert boxes={{}}/none.csv {HERE}", NO_FOLDER, "none.csv"),
    (f"comic_characters crop input={{}}/one boxes={{}}/boxes.csv {HERE}", NO_FOLDER, "has no rows"),
    (f"comic_characters pretrain {HERE}", NO_FOLDER, "Run `crop` first"),
    (f"comic_characters fine-tune {HERE} labels={{}}/empty", NO_FOLDER),
    (f"comic_characters embed {HERE}", NO_FOLDER),
    (f"comic_characters score {HERE} labels={{}}/empty", NO_FOLDER),
    (f"comic_characters assign {HERE}", NO_FOLDER, "Run `embed` first"),
    ("tiny_vae status {}/empty", "has no run records"),
    (f"tiny_vae train {HERE}", NO_FOLDER),
]


def invoked(command: str, place: Path) -> Any:
    capability, *arguments = command.replace("{}", str(place)).split()
    return CliRunner().invoke(importlib.import_module(f"jobs.{capability}.__main__").app, arguments)


@pytest.mark.parametrize(("command", "told"), [(command, told) for command, *told in CASES])
def test_all_mistakes_are_told_before_anything_is_computed(
    command: str, told: list[str], place: Path, computes: list[str]
):
    done = invoked(command, place)
    assert computes == []
    assert done.exit_code == 2, done.output
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    for part in told:
        assert part.replace("{}", str(place)) in done.stderr


def test_every_verb_has_its_mistakes():
    verbs = {
        f"{capability} {name}"
        for capability in CAPABILITIES
        for name in importlib.import_module(f"jobs.{capability}.__main__").app.commands()
    }
    commands = [command for command, *_ in CASES]
    assert {verb for verb in verbs if not any(one.startswith(f"{verb} ") for one in commands)} == set()
