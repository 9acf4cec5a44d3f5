"""What a command imports before it does anything: help and refusals come at once."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from actors.movie_characters.identities import OPTIMIZED, write_embedding
from jobs.reference import CAPABILITIES

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "sklearn", "timm", "pandas", "open_clip", "matplotlib", "boto3"}
"""Packages that take a third of a CPU-second or more to import, or that import one of those."""
INPUTS = [
    "movie_characters identify-clip gallery={0} input={0} output={0}/out model_name=ViT-B-33",
    "movie_characters personalise input={0} output={0}/out pretrained_model_name_or_path={0}/none",
    "movie_characters identify-diffusion input={0} output={0}/out sd_model_name={0} imagic_pretrained_path={0}",
    "movie_characters compare input={0} output={0} models.a={{by: faces, settings: {{gallery: {0}/none}}}}",
    "movie_characters timeline input={0}/a.mp4 output={0} model={{by: clip, settings: {{gallery: {0}/none}}}}",
    "genres embed input={0}/films output={0}/out embeddings.model=ViT-B-33",
    "movie_characters extract csv={0}/none.csv input={0}/a.mp4 output={0}/out category=who",
    "movie_characters identify-diffusion input={0} output={0} sd_model_name={0}/sd imagic_pretrained_path={0}/ids "
    "alpha=0.5",
    "movie_characters identify-diffusion input={0} output={0} sd_model_name={0}/sd imagic_pretrained_path={0}/ids "
    "preselect.folder={0}/none",
    "movie_characters generate input={0}/none output={0}/out sd_model_name={0}/sd imagic_pretrained_path={0}/ids",
    "genres predict input={0} output={0}/out model={0}",
    "genres train input={0}/none.npz output={0}/out head=lstm",
    "genres score input={0}/none.npz output={0}/out folds=3 heads=[lstm]",
    "comic_characters crop input={0} output={0}/out boxes={0}/none.csv",
    "comic_characters pretrain output={0}/out",
    "comic_characters fine-tune output={0}/out labels={0}/none",
    "comic_characters embed output={0}/out features.weights={0}/none",
    "comic_characters embed output={0}/out features.weights={0}/a.mp4",
    "comic_characters score output={0}/out labels={0}/none",
    "comic_characters assign output={0}/out",
    "curation run input={0}/none output={0}/out",
    "curation status {0}",
    "curation failed {0}",
    "curation select input={0}/films output={0}/out",
    "curation export input={0}/films output={0}/out",
    "curation annotate {0}",
    "curation fit-filter {0}",
    "curation run input={0}/films output={0}/out export.preset=none",
    "curation evaluate input={0}/films output={0}/out embeddings.model=ViT-B-33",
    "curation recaption input={0}/films output={0}/out",
    "directors train input={0}/ids output={0}/out pictures.backbone.model=resnet51",
]
"""Commands whose input is refused; {0} is a folder."""
PROGRAM = """
import importlib, json, sys
from typer.testing import CliRunner
app = importlib.import_module(f"jobs.{sys.argv[1]}.__main__").app
verbs = [name.split() for name in app.commands()]
steps = {"--help": [["--help"]], "no_such_setting=1": []}
for last, runs in steps.items():
    runs += [[*verb, last] for verb in verbs]
before = set()
for name, runs in [*steps.items(), *json.loads(sys.argv[2])]:
    codes = [CliRunner().invoke(app, run).exit_code for run in runs]
    print(json.dumps([name, codes, sorted(set(sys.modules) - before)]))
    before = set(sys.modules)
"""


@cache
def told(capability: str) -> dict[str, tuple[list[int], set[str]]]:
    """Exit codes and the packages that were imported for the first time: of all verbs with --help, of all with a wrong
    setting, and of each of INPUTS; one after the other in one fresh process."""
    with TemporaryDirectory() as root:
        runs = []
        for number, command in enumerate(one for one in INPUTS if one.startswith(f"{capability} ")):
            folder = Path(root, str(number))
            for name in ("Ann_1.jpg", "a.mp4", "films/a.mp4", "sd/model_index.json"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            write_embedding(np.zeros((1, 77, 4), np.float32), str(folder / "ids"), "Ann_1", OPTIMIZED)
            _, *arguments = re.split(r"(?<!:) (?=[\w.-]+=|[\w-]+ |/)", command.format(folder))
            runs.append((command, [arguments]))
        program = [sys.executable, "-c", PROGRAM, capability, json.dumps(runs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (codes, {module.partition(".")[0] for module in modules}) for name, codes, modules in steps}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_help_imports_nothing_that_takes_long(capability: str) -> None:
    codes, packages = told(capability)["--help"]
    assert len(codes) > 2 and set(codes) == {0}
    assert "typer" in packages
    assert packages.isdisjoint(HEAVY)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_refused_setting_imports_no_model_and_no_cluster(capability: str) -> None:
    codes, packages = told(capability)["no_such_setting=1"]
    assert set(codes) == {2}
    assert packages.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", INPUTS)
def test_a_refused_input_imports_no_model_and_no_cluster(command: str) -> None:
    """Importing torch, transformers or Ray takes 3 to 10 CPU-seconds."""
    codes, packages = told(command.partition(" ")[0])[command]
    assert codes == [2]
    assert packages.isdisjoint(HEAVY)


@pytest.mark.slow
def test_a_guess_of_a_picture_whose_vector_is_stored_imports_what_the_head_needs_only():
    program = (
        "import sys, jobs.directors.pages, pipelines.directors.guess, pipelines.directors.head\n"
        "from actors.models.backbones import BackboneConfig, check_backbone\n"
        "check_backbone(BackboneConfig())\n"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert "torch" in packages and packages.isdisjoint({"ray", "sklearn", "timm", "torchvision", "pandas"})
