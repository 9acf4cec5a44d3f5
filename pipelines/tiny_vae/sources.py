"""The film and the pictures that the tiny VAE is trained and measured on: files of installed packages."""

from importlib import metadata
from pathlib import Path

from actors.core.errors import UserError

FILM = ("iscc-samples", "demo.mp4")
"""Package and file name of the film: 60 s of H.264, 176×144, 24 frames/s, CC-BY-4.0 (© Titusz Pan)."""
STILLS = ("astronaut.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg", "brick.png", "camera.png")
"""Training pictures of scikit-image, each public domain or CC0."""
HELD_OUT_STILLS = ("chelsea.png", "coffee.png")
"""Held-out pictures of scikit-image, CC0."""


def sources() -> list[Path]:
    """Paths of the film and of all stills. Raises UserError where one is missing."""
    files = (FILM, *(("scikit-image", name) for name in (*STILLS, *HELD_OUT_STILLS)))
    return [packaged(package, name) for package, name in files]


def packaged(package: str, name: str) -> Path:
    """Path of a file of an installed package, without importing it. Raises UserError where it is missing."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(f"{package} is not installed. Run: pip install 'filmray[tiny-vae]'") from error
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise UserError(f"{package} {metadata.version(package)} has no {name}. Install the pinned version.")
