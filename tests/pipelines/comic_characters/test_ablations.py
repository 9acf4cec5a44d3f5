"""Which trainings an ablation has of its own, and which settings it can differ in."""

from dataclasses import replace

import pytest

from actors.comic_characters.network_settings import BackboneConfig
from pipelines.comic_characters.ablations import trained_anew, variant
from pipelines.comic_characters.settings import ComicsConfig, FineTuneConfig, PretrainConfig, ScoreConfig

CONFIG = ComicsConfig(output="out", labels="labels", score=ScoreConfig(draws=100))


def test_an_ablation_trains_what_differs_and_nothing_else() -> None:
    head = variant(CONFIG, "cat", replace(CONFIG, fine_tune=FineTuneConfig(loss="triplet")))
    assert head.fine_tune.folder == "scores/ablations/cat/fine-tune" and not trained_anew(CONFIG, head)
    stage = variant(CONFIG, "alone", replace(CONFIG, pretrain=PretrainConfig(identity=False)))
    assert stage.pretrain.folder == "scores/ablations/alone/pretrain" and trained_anew(CONFIG, stage)
    assert trained_anew(CONFIG, variant(CONFIG, "small", replace(CONFIG, backbone=BackboneConfig("resnet18"))))
    fixed = replace(CONFIG, features=replace(CONFIG.features, weights="w.safetensors"))
    with pytest.raises(ValueError, match=r"score.ablations.alone: .* add features.weights=null"):
        variant(fixed, "alone", replace(fixed, pretrain=PretrainConfig(identity=False)))
    for other in (replace(CONFIG, labels="else"), replace(CONFIG, backbone=BackboneConfig(face_size=32))):
        with pytest.raises(ValueError, match="only pretrain, fine_tune"):
            variant(CONFIG, "no", other)
    with pytest.raises(ValueError, match="named by letters"):
        ScoreConfig(ablations={"a/b": []})
