"""Accuracies, intervals and McNemar's test, from results that are written by hand."""

from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import chi2

from actors.movie_characters.names import Picture
from pipelines.core.metrics import wilson
from pipelines.movie_characters import compare as robustness
from pipelines.movie_characters.compare import CompareConfig
from pipelines.movie_characters.gallery_settings import ClipSettings, FaceSettings
from pipelines.movie_characters.models import (
    ClipModel,
    DiffusionModel,
    FaceModel,
    FusionModel,
    FusionSettings,
    ModelRun,
    NamedPreselect,
    PreselectedSettings,
)
from tests.support import results

CLIP = ClipModel("clip", ClipSettings("gallery"))
SD = DiffusionModel("diffusion", PreselectedSettings("identities"))


def hits(text: str) -> pd.Series:
    return pd.Series([letter == "1" for letter in text])


def test_mcnemar_counts_what_only_one_has_right():
    assert robustness.mcnemar(hits("1110"), hits("1001")) == (2, 1, 1.0)
    # Five to none by chance: twice 1/32.
    assert robustness.mcnemar(hits("11111"), hits("00000")) == (5, 0, pytest.approx(1 / 16))
    assert robustness.mcnemar(hits("10"), hits("10")) == (0, 0, 1.0)


def test_mcnemar_comes_near_its_approximation_for_many_images():
    one, other, p = robustness.mcnemar(hits("1" * 70 + "0" * 40), hits("0" * 70 + "1" * 40))
    assert p == pytest.approx(chi2.sf((abs(one - other) - 1) ** 2 / (one + other), 1), rel=0.05)


def test_models_are_compared_on_all_images(tmp_path: Path):
    config = CompareConfig("images", str(tmp_path), {"clip": CLIP, "sd": SD}, {"none": 0, "dark": 0.5}, k_range=2)
    pictures = [Picture(f"{cls}_{n}.jpg", "", 1) for cls in ("Ann", "Bob") for n in (1, 2)]
    cosines = {
        f"{cls}_{n}.jpg": {"Ann_1": cls == "Ann", "Bob_1": cls == "Bob"} for cls in ("Ann", "Bob") for n in (1, 2)
    }
    # In the dark there are PNG files, Bob is taken for Ann, and of his second image nothing is said.
    dark = {"Ann_1.png": {"Ann_1": 1, "Bob_1": 0}, "Ann_2.png": {"Ann_1": 1, "Bob_1": 0}, "Bob_1.png": {"Ann_1": 1}}
    losses = {image: {name: -score for name, score in found.items()} for image, found in cosines.items()}
    runs = []
    for model, name, said, clip_csv in [
        ("clip", "none", cosines, True),
        ("clip", "dark", dark, True),
        ("sd", "none", losses, False),
        ("sd", "dark", losses, False),
    ]:
        folder = results.write(
            tmp_path / model / name, {k: {i: float(v) for i, v in s.items()} for k, s in said.items()}
        )
        runs.append(ModelRun(model, name, None, folder, clip_csv))
    runs.append(ModelRun("sd", "none", None, runs[2].folder, False, alpha=0.5))
    compared = robustness.compare(config, runs, pictures)
    table = compared.accuracy.set_index(["model", "filter"])
    assert table.accuracy.to_dict() == {
        ("clip", "none"): 1,
        ("clip", "dark"): 0.5,
        ("sd", "none"): 1,
        ("sd", "dark"): 1,
    }
    assert table.unanswered["clip", "dark"] == 1
    assert compared.mcnemar.set_index("filter").loc["dark"].to_dict() == {
        **{"first": "clip", "second": "sd", "only_first": 0, "only_second": 2},
        "p": 0.5,
    }
    low = wilson(1, 4)[0]
    rows = [["clip", 1, 1, low, 1], ["clip", 2, 1, low, 1], ["sd", 1, 1, low, 1], ["sd", 2, 1, low, 1]]
    assert compared.topk.to_numpy().tolist() == rows
    assert pd.read_csv(tmp_path / "topk.csv").columns.tolist() == ["model", "k", "accuracy", "low", "high"]
    assert compared.alpha.to_dict("records") == [{"alpha": 0.5, "accuracy": 1, "low": wilson(1, 4)[0], "high": 1}]
    assert pd.read_csv(tmp_path / "accuracy.csv").shape == (4, 8)


def test_validation_is_asked_of_those_whose_weights_are_learnt():
    models = {
        "near": CLIP,
        "sd": DiffusionModel("diffusion", PreselectedSettings("ids", preselect=NamedPreselect(model="far"))),
        "far": CLIP,
        "other": FaceModel("faces", FaceSettings("gallery")),
        "set": FusionModel("fusion", FusionSettings(("near", "other"), weights={"near": 2})),
        "learnt": FusionModel("fusion", FusionSettings(("near", "sd"))),
    }
    config = CompareConfig("images", "out/", models, {"dark": 0.5}, alpha_model="sd", validation="others")
    found = robustness.teaching(config)
    assert list(found.models) == ["near", "sd", "far"] and found.filters == {"dark": 0.5}
    assert (found.input, found.output, found.alpha_model) == ("others", "out/validation", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": {"fog": 0.5}}, "there is no fog"),
        ({"filters": {"red": 2.0}}, "lie in 0..1"),
        ({"models": {}}, "one or more"),
        (
            {"models": {"f": FusionModel("fusion", FusionSettings(("f", "g")))}},
            "there is no model g",
        ),
        ({"alpha_model": "clip"}, "no diffusion model"),
        ({"validation": "others"}, "trains the weights of fusions without weights"),
    ],
)
def test_settings_that_do_not_hold(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{"input": "i", "output": "o", "models": {"clip": CLIP}, **change})
