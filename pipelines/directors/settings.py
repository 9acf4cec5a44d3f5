"""Settings of the verbs of directors that work on screenshots: explore, train, guess."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from actors.core.errors import UserError
from actors.directors.head_settings import HeadConfig
from actors.directors.screenshots import ScreenshotsConfig
from pipelines.core.training_config import TrainingConfig
from pipelines.directors.vectors import PicturesConfig


@dataclass(frozen=True)
class ExploreConfig:
    """Settings of `explore`."""

    input: str = ""
    """Folder of screenshots, as `sample` writes it, <director>/<film>/<image> or <director>/<image>: a path or
    s3://bucket/prefix."""
    film_separator: str = ""
    """Separator that ends the film's name in the names of pictures that lie as <director>/<image>: with `_`, the film
    of `vertigo_0012.jpg` is `vertigo`. Empty: their films are unknown and not counted."""
    output: str = ""
    """Where the page goes: a path or s3://bucket/prefix. Empty: the folder `explore` in the input."""
    per_director: int = 6
    """Screenshots of each director on the contact sheet, from 1, drawn at random."""
    directors: int = 40
    """Directors on the contact sheet, from 1; those with the most screenshots come first."""
    seed: int = 0
    """Seed that decides which screenshots the contact sheet shows."""

    ALIASES: ClassVar[dict[str, Any]] = {"data": "input"}

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("input is missing. Set input=SCREENSHOTS, a folder as `sample` writes it.")
        if self.per_director < 1 or self.directors < 1:
            raise UserError(f"per_director and directors start at 1, not {self.per_director} and {self.directors}")


@dataclass(frozen=True)
class HeadTraining(TrainingConfig):
    """Training of the head."""

    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    patience: int | None = 20
    monitor: str = "valid_accuracy"
    """Validation metric that selects the best epoch. valid_accuracy: share of pictures that are classified correctly,
    and of equal ones the least loss; valid_loss (with mode=min): the loss, which a few sure mistakes decide."""
    mode: Literal["min", "max"] = "max"


@dataclass(frozen=True)
class DirectorsConfig:
    """Settings of `train`."""

    input: str = ""
    """Folder of screenshots, as `sample` writes it, <director>/<film>/<image> or <director>/<image>: a path or
    s3://bucket/prefix. Required unless `films` is set."""
    film_separator: str = ""
    """Separator that ends the film's name in the names of pictures that lie as <director>/<image>: with `_`, the film
    of `vertigo_0012.jpg` is `vertigo`. Empty: their films are unknown, and pictures are split, which leaks."""
    meta: str = ""
    """Folder or prefix with MovieNet's meta, one FILM.json with its director(s) per film. `input` is then MovieNet's
    key frames: one folder or .tar per film, FILM/shot_0000_img_0.jpg."""
    annotations: str = ""
    """With meta: folder or prefix with MovieNet's annotations, FILM.json, whose shot scale and movement become features
    of style. Films without one count as well."""
    shots: str = ""
    """With meta: folder or prefix with MovieNet's shot files, shot_FILM.txt, whose lengths become a feature of style.
    The frame rate is that of the annotation, else 24."""
    films: str = ""
    """One npz file of precomputed frame vectors with directors, as `genres process` writes it, instead of `input`. A
    model trained on it cannot classify pictures."""
    output: str = ""
    """Where the model and its report go: a path or s3://bucket/prefix."""
    plot: bool | str = False
    """Training curves: true shows them in the report; a path or s3://bucket/name.png also writes them there, as PNG."""
    split: Literal["film", "frame"] = "film"
    """What is split into training, validation and test: whole films; or single pictures, which overstates accuracy,
    because pictures of one film are then on both sides."""
    split_file: str = ""
    """A given split of films instead of a random one: JSON with lists of film names, `train`, `val` and `test`, as
    MovieNet's movie1K.split.v1.json. Films in none of them are left out."""
    compare: bool = True
    """Also report the accuracy of the other split, which shows how much it leaks. Takes about twice as long."""
    test: float = 0.1
    """Share of each director's films (or pictures) that accuracy is measured on, above 0."""
    valid: float = 0.1
    """Share of each director's films (or pictures) that decides when training stops, and calibrates probabilities."""
    folds: int = 0
    """Folds of a cross-validation, from 3, in which each film is tested once; 0: one split. Use it for few films."""
    min_films: int = 3
    """Directors with fewer films (pictures, where films are unknown) are not classes. Their films serve as unknown
    directors, which set the threshold."""
    unknown: list[str] = field(default_factory=list)
    """Further directors to keep out of the classes and use as unknown ones, by name."""
    neighbours: int = 10
    """Neighbours, from 1, of the nearest-neighbour baseline in the report."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Layers trained on top of the frozen network."""
    training: HeadTraining = field(default_factory=HeadTraining)
    """Training of the head. training.seed also decides the split."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Embedding of screenshots by the frozen network."""

    ALIASES: ClassVar[dict[str, Any]] = {"data": "input", "p": "plot"}

    def __post_init__(self) -> None:
        if bool(self.input) == bool(self.films) or not self.output:
            raise UserError("Set output, and one of input (a folder of screenshots) and films (an npz file).")
        if not (0 < self.test < 1 and 0 < self.valid < 1 and self.test + self.valid < 1):
            raise UserError(
                f"test and valid must be above 0 and sum to less than 1, not {self.test:g} and {self.valid:g}"
            )
        if (self.annotations or self.shots) and not self.meta:
            raise UserError("annotations and shots are of MovieNet's key frames: set meta, too")
        if self.meta and (self.films or self.film_separator):
            raise UserError("meta says of which director the key frames in input are: leave out films, film_separator")
        if self.split_file and (self.folds or self.split == "frame"):
            raise UserError("split_file is a split of films: leave out folds and split=frame")
        if self.folds and self.folds < 3:
            raise UserError(f"folds must be 0, or 3 or more (one to test, one to validate), not {self.folds}")
        if self.min_films < 3 and (self.split == "film" or self.compare or self.folds):
            raise UserError(
                f"min_films={self.min_films} is too low to split films: training, validation and test need one each. "
                "Set min_films=3, or split=frame compare=false."
            )
        if self.films and self.pictures.views.count:
            raise UserError("pictures.views.count needs pictures, and films are vectors. Set input, or remove it.")
        if self.neighbours < 1 or self.min_films < 1:
            raise UserError(f"neighbours and min_films start at 1, not {self.neighbours} and {self.min_films}")


@dataclass(frozen=True)
class GuessConfig:
    """Settings of `guess`."""

    model: str
    """Output of `train`: a path or s3://bucket/prefix."""
    image: str = ""
    """Picture to classify, or a folder or prefix of pictures, which are also classified together as one film."""
    film: str = ""
    """Film to classify as a whole, instead of `image`: a video file, a folder or .tar of pictures, or a folder or
    prefix of films."""
    screenshots: ScreenshotsConfig = field(default_factory=ScreenshotsConfig)
    """Which frames of video files are classified. They are kept in the model's folder, below `guess`."""
    top: int = 3
    """Likeliest directors to print, from 1, each with its probability."""
    save: str | None = None
    """Where to write each picture with its answer drawn below it: a folder or prefix; or, for a single picture, a file
    (.png, .jpg). null: nothing is written."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Embedding of pictures. Defaults to the settings that the model was trained with, on CPUs and without views."""

    ALIASES: ClassVar[dict[str, Any]] = {
        "i": "image",
        "s": "save",
        **{name: f"pictures.{name}" for name in ("backbone", "views", "read", "write", "autoscaling")},
    }

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"top starts at 1, not {self.top}")
        if self.film and (self.image or self.save):
            raise UserError("film is classified as a whole: leave out image and save, or leave out film")
