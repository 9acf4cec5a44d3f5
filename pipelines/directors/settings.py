"""Settings of `directors train`."""

from dataclasses import dataclass, field
from typing import Literal

from actors.core.errors import UserError
from pipelines.core.training_config import TrainingConfig
from pipelines.directors.vectors import PicturesConfig


@dataclass(frozen=True)
class HeadConfig:
    """The layers that are trained."""

    hidden: int = 128
    """Width of the hidden layer."""
    dropout: float = 0.5
    """Share of it that is left out in training."""
    balanced: bool = True
    """Directors weigh alike, however many pictures there are of each."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"hidden starts at 1 and dropout lies in [0, 1): {self}")


@dataclass(frozen=True)
class DirectorsConfig:
    """Settings of `train`."""

    data: str = ""
    """A folder of screenshots, as `sample` makes it, or <director>/<film>/<image>; a path or s3://."""
    films: str = ""
    """Instead of data: vectors of films in one npz file, with directors."""
    output: str = ""
    """A path or s3:// for the model and its report."""
    split: Literal["film", "frame"] = "film"
    """What is kept apart: films, or, for comparison, single pictures."""
    compare: bool = True
    """Tell the figures of the other split, too."""
    test: float = 0.1
    """Share of each director's films (or pictures) that the figures are of."""
    valid: float = 0.1
    """Share that decides when training ends, and how sure answers are."""
    folds: int = 0
    """Measure by so many folds, so that each film is once among those not seen; 0: by the one split."""
    min_films: int = 3
    """Directors with fewer films are not learned: they are the strangers by which "unknown" is measured."""
    unknown: list[str] = field(default_factory=list)
    """More directors to be strangers."""
    neighbours: int = 10
    """Pictures that the comparison by nearest neighbours asks."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The layers that are trained."""
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(epochs=200, batch_size=32, learning_rate=1e-4, patience=20)
    )
    """How they are trained; the seed is that of the split, too."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """How pictures become vectors."""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.films) or not self.output:
            raise UserError("output is needed, and one of data (screenshots) and films (an npz file)")
        if not (0 < self.test < 1 and 0 < self.valid < 1 and self.test + self.valid < 1):
            raise UserError(f"test and valid are above 0 and sum to less than 1, not {self.test} and {self.valid}")
        if self.folds and self.folds < 3:
            raise UserError(f"folds are 3 or more, or 0, not {self.folds}: one is to test, one to validate")
        if self.min_films < 3 and (self.split == "film" or self.compare or self.folds):
            raise UserError(
                "min_films is 3 or more where films are split: training, validation and test need one each; with "
                "fewer films there is split=frame compare=false"
            )
        if self.films and self.pictures.views.count:
            raise UserError("films are vectors already: pictures.views.count needs data")
        if self.neighbours < 1 or self.min_films < 1:
            raise UserError(f"neighbours and min_films start at 1: {self.neighbours}, {self.min_films}")
