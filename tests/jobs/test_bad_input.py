"""Every verb with input that cannot work: the exit code is not 0, the last lines say why, and nothing traces back."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.core.film_vectors import Films, write_films

COUNT = 8
"""Films of the npz files."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty and missing folders, text under the names of images, films and tables, and films without a genre."""
    root = tmp_path_factory.mktemp("bad")
    text = {
        **dict.fromkeys(("text/Ann_1.jpg", "text/Bob_1.jpg", "directors/Ann/1.jpg", "text.npz", "film.mp4"), "hello"),
        "films/loose.mp4": "hello",
        "corrupt.csv": 'a,b\n"x,1\n',
        "none.csv": "start_time,end_time,who\n",
        "one.csv": "start_time,end_time,who\n0,1,Ann\n",
        "blank.csv": "start_time,end_time,who\n0,1,\n",
        "pathless.csv": "path,director\n,Ann\n",
        "boxes.csv": "series_id,page_id,type,index,char_index,x_0,y_0,x_1,y_1\ns,p_0,face,0,0,0,0,5,5\n",
        "boxless.csv": "series_id,page_id,type,index,char_index,x_0,y_0,x_1,y_1\n",
        **dict.fromkeys(
            ("twice/Ann_1.jpg", "endings/x.jpg", "endings/x.png", "same/Ann_1.jpg", "same/Ann_1.png"), "hello"
        ),
        "twice/pictures.csv": "file,class\nAnn_1.jpg,Ann\nAnn_1.jpg,Bob\n",
        "endings/pictures.csv": "file,class\nx.jpg,Ann\nx.png,Bob\n",
        "results/Ann_results.csv": "GT Image name,input_embeds,loss\n,Ann_1,1\n",
        "damaged/Ann_results.csv": "GT Image name,input_embeds,loss\nAnn_1.jpg,Ann_1,1\n",
        "damaged/identified.json": '{"by": ',
        "model/config.json": "{",
        "model/model.safetensors": "",
    }
    for name, content in text.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (root / "empty").mkdir()
    vectors, offsets = np.ones((COUNT, 4), np.float16), np.arange(COUNT + 1)
    genres, ids = np.zeros((COUNT, 2), np.uint8), [str(number) for number in range(COUNT)]
    write_films(Films(vectors, offsets, ids, genres, ["Drama", "War"], [""] * COUNT), str(root / "bare.npz"))
    return root


FILM = "movie_characters extract input={}/film.mp4 category=who"
CLIP = "movie_characters identify-clip model_name=ViT-B-32"
FACES = "movie_characters identify-faces"
COMPARE = "movie_characters compare input={}/text models.a.by=clip models.a.settings.gallery={}/text"


def of_images(folder: str) -> list[str]:
    """Every verb of movie characters that reads images of known classes, with this folder as each of its settings."""
    diffusion = "movie_characters identify-diffusion imagic_pretrained_path={}/empty"
    faces = "movie_characters timeline input={}/film.mp4 model.by=faces"
    commands = [
        f"{CLIP} input={{}}/text gallery=HERE",
        f"{CLIP} gallery={{}}/text input=HERE",
        f"{FACES} input={{}}/text gallery=HERE",
        f"{FACES} gallery={{}}/text input=HERE",
        f"{diffusion} input=HERE",
        "movie_characters personalise input=HERE",
        f"{COMPARE} input=HERE",
        f"{COMPARE} models.a.settings.gallery=HERE",
        f"{faces} model.settings.gallery=HERE",
    ]
    return [command.replace("HERE", f"{{}}/{folder}") for command in commands]


CASES = [
    (f"{FILM} csv={{}}/corrupt.csv", 2, "is not a CSV table"),
    (f"{FILM} csv={{}}/binary.csv", 2, "is not UTF-8 but UTF-16"),
    (f"{FILM} csv={{}}/none.csv", 2, "has no rows"),
    (f"{FILM} csv={{}}/empty", 2, "Is a directory"),
    (f"{FILM} csv={{}}/one.csv video.num_gpus=1", 2, "decodes its film on a CPU"),
    (f"{FILM} csv={{}}/blank.csv", 1, "none of 1 rows came out: no_category 1"),
    (f"{FILM} csv={{}}/one.csv", 1, "none of 1 rows came out: not_a_video 1"),
    (f"{FILM} csv={{}}/one.csv --max-rejected 0", 3, "1 rows rejected, and --max-rejected allows 0"),
    ("movie_characters extract csv={}/one.csv input={}/empty category=who", 2, "is no file. Give one film"),
    (f"{CLIP} gallery={{}}/empty input={{}}/text", 2, "gallery={}/empty holds no images"),
    (f"{CLIP} gallery={{}}/missing input={{}}/text", 2, "gallery={}/missing holds no images"),
    (f"{CLIP} gallery={{}}/text input={{}}/films", 2, "such as loose.mp4, but no images"),
    (f"{CLIP} gallery={{}}/text input={{}}/none.txt", 2, "there is no list"),
    (f"{CLIP} gallery={{}}/text input={{}}/text model_name=ViT-B-33", 2, "near it: ViT-B-32"),
    (f"{FACES} gallery={{}}/text input={{}}/text", 2, "none of 2 images could be embedded (not_an_image 2). Ann_1.jpg"),
    ("movie_characters personalise input={}/empty", 2, "holds no images"),
    ("movie_characters generate imagic_pretrained_path={}/missing", 2, "holds no identities"),
    ("movie_characters identify-diffusion imagic_pretrained_path={}/empty input={}/empty", 2, "holds no images"),
    ("movie_characters fuse models.a.folder={}/empty models.b.folder={}/text", 2, "has no results"),
    ("movie_characters score topk input={}/missing", 2, "has no results"),
    ("movie_characters score map input={}/results", 2, "line 2: GT Image name or input_embeds is empty"),
    ("movie_characters score report input={}/damaged", 2, "identified.json is damaged"),
    (f"{COMPARE} models.a.settings.model_name=ViT-B-33", 2, "models.a.settings: model_name=ViT-B-33 is no folder"),
    (f"{COMPARE} models.a.by=clap", 2, "models.a.by: 'clap' is none of"),
    ("movie_characters timeline input={}/empty model.by=faces model.settings.gallery={}/text", 2, "has no films"),
    (
        "movie_characters timeline input={}/film.mp4 model.by=faces model.settings.gallery={}/empty",
        *(2, "model.settings: gallery={}/empty holds no images"),
    ),
    ("movie_characters status {}/missing", 2, "has no run records"),
    *((command, 2, "line 3: Ann_1.jpg is of Bob here, and of Ann further up") for command in of_images("twice")),
    *((command, 2, "is of Ann and x.png of Bob, and results name both x") for command in of_images("endings")),
    (f"{COMPARE} input={{}}/same", 2, "Ann_1.jpg and Ann_1.png would both be filtered into Ann_1.png"),
    ("comic_characters crop input={}/missing boxes={}/boxes.csv", 1, "none of 1 rows came out: missing_page 1"),
    ("comic_characters crop input={}/text boxes={}/corrupt.csv", 2, "is not a CSV table"),
    ("comic_characters crop input={}/text boxes={}/boxless.csv", 2, "boxless.csv has no rows"),
    ("comic_characters pretrain", 2, "Run `crop` first"),
    ("comic_characters assign", 2, "Run `embed` first"),
    ("directors sample input={}/missing", 2, "has no films"),
    ("directors sample input={}/missing.csv", 2, "missing.csv does not exist"),
    ("directors sample input={}/corrupt.csv", 2, "is not a CSV table"),
    ("directors sample input={}/films", 1, "none of 1 rows came out: no_director 1"),
    ("directors sample input={}/films screenshots.num_gpus=1", 2, "decoded on CPUs here"),
    ("directors sample input={}/pathless.csv", 1, "none of 1 rows came out: no_path 1"),
    ("directors explore input={}/text", 2, "the director of Ann_1.jpg is unknown"),
    ("directors explore input={}/directors", 1, "none of 1 rows came out: unreadable 1"),
    ("directors train films={}/text.npz", 2, "is no npz file"),
    ("directors train films={}/missing.npz", 2, "missing.npz does not exist"),
    ("directors guess {}/missing --image {}/text", 2, "has no model"),
    ("genres embed input={}/empty", 2, "has neither folders of images nor video files"),
    ("genres embed input={}/films images.video.num_gpus=1", 2, "video.decoder=pyav runs on CPUs"),
    ("genres embed input={}/directors embeddings.model=ViT-B-33", 2, "near it: ViT-B-32"),
    ("genres process meta={}/missing", 2, "holds no films"),
    ("genres train input={}/text.npz", 2, "is no npz file"),
    ("genres train input={}/missing.npz", 2, "missing.npz does not exist"),
    ("genres train input={}/bare.npz", 2, "no film has a genre"),
    ("genres predict input={}/bare.npz model={}/missing", 2, "holds no model"),
    ("genres predict input={}/bare.npz model={}/model", 2, "config.json is damaged"),
    ("genres score input={}/bare.npz folds=3 heads=[mean]", 2, "no film has a genre"),
]


@pytest.mark.parametrize(("command", "code", "told"), CASES, ids=[command for command, *_ in CASES])
def test_bad_input_is_told_in_the_last_lines(command: str, code: int, told: str, place: Path, tmp_path: Path) -> None:
    capability, *arguments = command.replace("{}", str(place)).split()
    app = importlib.import_module(f"jobs.{capability}.__main__").app
    output = [] if "status" in arguments or "guess" in arguments else [f"output={tmp_path / 'out'}"]
    done = CliRunner().invoke(app, [*arguments, *output])
    assert done.exit_code == code, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
    assert done.stderr.endswith("\n".join([*lines, ""]))
    assert any(told.replace("{}", str(place)) in line for line in lines)
    assert "Traceback" not in done.output
