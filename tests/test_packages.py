"""What is installed belongs together: no package writes over another's files."""

from collections import defaultdict
from importlib import metadata


def test_each_library_of_nvidia_belongs_to_one_package() -> None:
    """Of two that hold one libnccl.so.2, the one that was installed last counts, whatever torch was built with."""
    owners = defaultdict(set)
    for package in metadata.distributions():
        name = package.name
        for file in package.files or ():
            if file.parts[0] == "nvidia":
                owners[str(file)].add(name)
    several = {file: packages for file, packages in owners.items() if len(packages) > 1}
    assert not several, f"remove .venv and run make again: {dict(list(several.items())[:3])}"
    assert any(file.endswith("libnccl.so.2") for file in owners), "torch brings it on Linux"


def test_xgboost_has_one_package_and_no_nccl_of_its_own() -> None:
    assert {"xgboost-cpu"} == set(metadata.packages_distributions()["xgboost"])
    assert not [line for line in metadata.requires("xgboost-cpu") or () if "nccl" in line and "extra" not in line]
