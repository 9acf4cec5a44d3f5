"""Which scenes of a film a shot lies in: those of an annotation, or so many shots each."""

from collections.abc import Sequence
from typing import NamedTuple

from actors.core import storage
from actors.media.movienet import FormError, read_annotation, shot_of


class Scene(NamedTuple):
    """Consecutive shots of a film."""

    name: str
    first: int
    end: int
    """The shot after its last one."""
    place: str
    """As an annotation names it."""


class NoScenesError(Exception):
    """A film has no scenes; it has a code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Division:
    """The scenes of a film.

    scenes: a folder or prefix with MovieNet's annotations, or how many shots are one scene. Raises NoScenesError where
    the film has no annotation, or none of its scenes.
    """

    def __init__(self, film: str, scenes: str | int) -> None:
        self._shots = scenes if isinstance(scenes, int) else 0
        self._scenes: list[Scene] = []
        if isinstance(scenes, str):
            uri = storage.join(scenes, f"{film}.json")
            try:
                about = read_annotation(uri)
            except FormError as error:
                raise NoScenesError(error.code, str(error)) from error
            self._scenes = [Scene(one.id, *one.shots, one.place) for one in about.scenes]

    def of(self, shot: int) -> list[Scene]:
        """The scenes that a shot lies in."""
        if self._shots:
            number = shot // self._shots
            return [Scene(f"{number:04d}", number * self._shots, (number + 1) * self._shots, "")]
        return [scene for scene in self._scenes if scene.first <= shot < scene.end]

    def shots_of(self, names: Sequence[str]) -> list[int]:
        """The shots of key frames by their names; where scenes are counted, an image without one counts as a shot.

        Raises NoScenesError where names do not say them and annotations need them.
        """
        numbers = [shot_of(name) for name in names]
        if not self._shots and None in numbers:
            raise NoScenesError("no_shots", f"{names[numbers.index(None)]}: the name does not say its shot")
        return [at if number is None else number for at, number in enumerate(numbers)]

    def divided(self, names: Sequence[str]) -> dict[Scene, list[int]]:
        """The numbers of the key frames of each scene that has any, in the order of the scenes.

        Raises NoScenesError as `shots_of`, and where no scene has any.
        """
        found: dict[Scene, list[int]] = {}
        for at, shot in enumerate(self.shots_of(names)):
            for scene in self.of(shot):
                found.setdefault(scene, []).append(at)
        if not found:
            raise none_inside()
        return {scene: found[scene] for scene in sorted(found, key=lambda one: one.first)}


def none_inside() -> NoScenesError:
    """What a film without a key frame in any scene has."""
    return NoScenesError("no_scenes", "no key frame lies in a scene")
