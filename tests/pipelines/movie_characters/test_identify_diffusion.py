"""Conditions of the modes, what resume asks for, and the tables, without Ray."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.movie_characters.answers import write_answers
from actors.movie_characters.diffusion import embed_prompt, load_texts
from actors.movie_characters.diffusion_classifier import StagesConfig
from actors.movie_characters.drawer import GenerateConfig
from actors.movie_characters.identities import LORA, OPTIMIZED, TARGET, TEXT, find_learnt, write_embedding
from actors.movie_characters.names import identity_class, image_identity
from pipelines.movie_characters.generate import plan_generate
from pipelines.movie_characters.identify_diffusion import (
    IdentifyConfig,
    Plan,
    check_identify,
    conditions,
    identify,
    plan_identify,
)
from pipelines.movie_characters.metrics import topk
from pipelines.movie_characters.preselect import PreselectConfig
from pipelines.movie_characters.results import read_results
from tests.support import results


@pytest.fixture
def config(sd_folder: str, tmp_path: Path) -> IdentifyConfig:
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Ann_2", "Anna_1"):
        for which in (TARGET, OPTIMIZED):
            write_embedding(random.normal(size=(1, 77, 16)).astype(np.float32), str(tmp_path / "ids"), name, which)
    (tmp_path / "pictures").mkdir()
    for name in ("Ann_8.png", "Ann_9.png", "Anna_8.png"):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "pictures" / name)
    return IdentifyConfig(
        imagic_pretrained_path=str(tmp_path / "ids"),
        output=str(tmp_path / "out"),
        input=str(tmp_path / "pictures"),
        sd_model_name=sd_folder,
        resolution=16,
        method="full",
        num_inference_steps=3,
    )


def answer(config: IdentifyConfig, plan: Plan, names: list[str], losses: np.ndarray, errors: Any = None) -> None:
    """Store the answers of an actor for pictures: losses (N, K, P)."""
    told = np.empty(len(names), object)
    told[:] = list(losses)
    missing = np.empty(len(names), object)
    missing[:] = [np.array(plan.missing[name], int) for name in names]
    errors = np.array(errors or [""] * len(names), object)
    batch = {"name": np.array(names, object), "missing": missing, "losses": told, "error": errors, "message": errors}
    names, staged = [one.name for one in plan.identities], config.method == "staged"
    write_answers(batch, f"{config.output}/{config.mode}", names, plan.digests, staged)


def table(config: IdentifyConfig, name: str) -> list[list[str]]:
    return list(csv.reader(Path(config.output, config.mode, name).read_text().splitlines()))


def test_modes_have_their_conditions(config: IdentifyConfig, sd_folder: str, tmp_path: Path) -> None:
    learnt = find_learnt(config.imagic_pretrained_path, "x")
    blends = {one.name: 0.25 * one.target + 0.75 * one.optimized for one in learnt if one.target is not None}
    config = replace(config, alpha=0.25)
    plain, _ = conditions(config, learnt)
    assert [one.name for one in plain] == ["Ann_1", "Ann_2", "Anna_1"] and config.mode == "SD_pipeline"
    for one in plain:
        assert one.condition == pytest.approx(blends[one.name], abs=1e-6) and not one.lora
    average = replace(config, category_class=True)
    ann, anna = conditions(average, learnt)[0]
    assert (ann.name, anna.name, average.mode) == ("Ann", "Anna", "SD_embeds_cat_avg")
    assert ann.condition == pytest.approx((blends["Ann_1"] + blends["Ann_2"]) / 2, abs=1e-6)
    assert anna.condition == pytest.approx(blends["Anna_1"], abs=1e-6)
    own = replace(config, imagic_pipe=True)
    with pytest.raises(ValueError, match="3 identities have neither a LoRA nor a UNet, such as Ann_1"):
        check_identify(own)
    for one in learnt:
        (tmp_path / "ids" / one.name / LORA).write_bytes(one.name.encode())
    with_lora, weights = conditions(own, find_learnt(config.imagic_pretrained_path, "x"))
    assert own.mode == "Imagic_pipeline" and len(set(weights)) == 3
    assert with_lora[0].lora == str(tmp_path / "ids" / "Ann_1" / LORA)
    both = replace(own, category_class=True)
    (ann, anna), digests = conditions(both, find_learnt(config.imagic_pretrained_path, "x"))
    assert (ann.name, anna.name, both.mode) == ("Ann", "Anna", "Imagic_pipeline_cat_avg")
    assert [one.lora for one in ann.members] == [one.lora for one in with_lora[:2]] and len(set(digests)) == 2
    assert anna.members[0].condition == pytest.approx(blends["Anna_1"], abs=1e-6)


def test_a_text_encoder_of_its_own_embeds_prompts_without_a_target(
    config: IdentifyConfig, sd_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "ids" / "Ann_1" / f"{TARGET}.safetensors").unlink()
    (tmp_path / "ids" / "Ann_1" / TEXT).write_text("ann")
    learnt = find_learnt(config.imagic_pretrained_path, "x")
    config = replace(config, alpha=1, sd_model_name=str(tmp_path / "without texts"))
    with pytest.raises(ValueError, match="its tokenizer cannot be loaded"):
        conditions(config, learnt)
    found, _ = conditions(replace(config, clip_model_name=sd_folder), learnt)
    told = embed_prompt(load_texts(sd_folder, None), "ann")[0].numpy()
    assert found[0].condition == pytest.approx(told, abs=1e-6)


def test_results_are_ascending_and_by_true_class(config: IdentifyConfig) -> None:
    plan = plan_identify(config)
    losses = np.array(
        [
            [[1, 2, 3], [1, 1, 1], [2, 2, 3]],
            [[2, 2, 2], [2, 2, 2], [1, 1, 1]],
            [[5, 5, 5], [4, 4, 4], [6, 6, 6]],
        ],
        np.float32,
    )
    answer(config, plan, ["Ann_8.png", "Ann_9.png", "Anna_8.png"], losses)
    done = plan_identify(config)
    assert done.missing == {}
    outcome = identify(config, done)
    assert (outcome.answered, outcome.evaluations, outcome.of_full) == (3, 27, 27)
    assert table(config, "Ann_results.csv") == [
        ["GT Image name", "input_embeds", "loss"],
        ["Ann_8.png", "Ann_2", "1.0"],
        ["Ann_8.png", "Ann_1", "2.0"],
        ["Ann_8.png", "Anna_1", "2.3333333333333335"],
        ["Ann_9.png", "Anna_1", "1.0"],
        ["Ann_9.png", "Ann_1", "2.0"],
        ["Ann_9.png", "Ann_2", "2.0"],
    ]
    assert [row[1] for row in table(config, "Anna_results.csv")[1:]] == ["Ann_2", "Ann_1", "Anna_1"]
    sure = table(config, "Ann_certainty.csv")
    assert sure[0] == [
        "GT Image name",
        "answer",
        "p",
        "certainty",
        "p_noise",
        "margin",
        "evaluations",
        "asked",
        "computed",
    ]
    few = "not stated: it takes 20 images, and 3 identities"
    assert sure[2] == ["Ann_9.png", "Anna_1", "", few, "0.0", "inf", "9", "3", "cpu float32"]
    assert (outcome.certain, outcome.judged) == (0, 0)
    # A list of fewer pictures leaves the rows of others.
    identify(replace(config, input=f"{config.input}/Ann_9.png"), plan_identify(config))
    assert len(table(config, "Ann_results.csv")) == 7 and outcome.notes == []
    sure[1][-1] = "cuda bfloat16"
    Path(config.output, config.mode, "Ann_certainty.csv").write_text("".join(",".join(row) + "\n" for row in sure[:2]))
    one = plan_identify(replace(config, input=f"{config.input}/Ann_9.png"))
    [note] = identify(config, one).notes
    assert note.startswith("losses of 1 images were computed on cuda in bfloat16, of 1 on cpu in float32: ")


def test_certainty_is_judged_over_the_pairs_that_all_had_by_the_images_of_the_run(
    config: IdentifyConfig, tmp_path: Path
) -> None:
    config = replace(config, method="staged", stages=StagesConfig(samples=(2, 4), keep=(3, 1)))
    random = np.random.default_rng(0)
    names = [f"Ann_{number}.png" for number in range(12)] + [f"Anna_{number}.png" for number in range(12)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "pictures" / name)
    losses = random.normal(5, 0.1, (24, 3, 4)).astype(np.float32)
    losses[:9, 0] -= 1
    losses[9:12, 2] -= 1
    losses[12:20, 1] -= 1
    losses[20:, 2] -= 1
    # Pairs that only two of them had, in favour of the third, who is behind on all that are shared.
    losses[:, 2, 2:] = np.nan
    plan = plan_identify(config)
    answer(config, plan, names, losses)
    # A file of an earlier version: its p was of one image.
    Path(config.output, config.mode, "Ann_certainty.csv").write_text(
        "GT Image name,answer,p,margin,evaluations,asked\nAnn_77.png,007,1e-16,9.0,9,3\n"
    )
    outcome = identify(config, replace(plan_identify(config), missing={}))
    rows = {row[0]: row for name in ("Ann", "Anna") for row in table(config, f"{name}_certainty.csv")[1:]}
    assert rows["Ann_77.png"][:4] == ["Ann_77.png", "007", "", ""] and outcome.judged == 24
    first = [row for name, row in rows.items() if name in names[:9]]
    assert {(row[1], row[3]) for row in first} == {("Ann_1", "certain")}
    assert all(0 < float(row[2]) <= 0.05 for row in first)
    assert outcome.certain == sum(row[3] == "certain" for row in rows.values())
    assert {rows[name][3] for name in names[9:12]} == {"not certain"}


def test_a_class_counts_the_evaluations_of_all_its_identities(config: IdentifyConfig, tmp_path: Path) -> None:
    for name in ("Ann_1", "Ann_2", "Anna_1"):
        (tmp_path / "ids" / name / LORA).write_bytes(name.encode())
    config = replace(config, category_class=True, imagic_pipe=True)
    plan = plan_identify(config)
    assert (plan.pairs, sum(map(plan.cost, plan.missing.values()))) == (6, 9)
    answer(config, plan, list(plan.missing), np.arange(2)[:, None] + np.ones((3, 2, 3)))
    outcome = identify(config, plan_identify(config))
    assert (outcome.answered, outcome.evaluations, outcome.of_full) == (3, 27, 27)
    assert [row[1] for row in table(config, "Anna_results.csv")[1:]] == ["Ann", "Anna"]
    # Other weights of one identity are another class.
    (tmp_path / "ids" / "Ann_2" / LORA).write_bytes(b"another")
    assert plan_identify(config).missing["Ann_8.png"] == (0,)


def test_resume_asks_for_pairs_that_are_missing_or_were_asked_otherwise(config: IdentifyConfig, tmp_path: Path) -> None:
    plan = plan_identify(config)
    assert plan.missing == dict.fromkeys(("Ann_8.png", "Ann_9.png", "Anna_8.png"), (0, 1, 2))
    answer(config, plan, ["Ann_8.png"], np.ones((1, 3, 3), np.float32))
    assert set(plan_identify(config).missing) == {"Ann_9.png", "Anna_8.png"}
    # Where a part is torn its pictures are asked about again.
    for name in ("seed", "alpha"):
        assert len(plan_identify(replace(config, **{name: 1})).missing) == 3
    new = np.ones((1, 77, 16), np.float32)
    write_embedding(new, str(tmp_path / "ids"), "Ann_2", OPTIMIZED)
    write_embedding(new, str(tmp_path / "ids"), "Bob_1", OPTIMIZED)
    assert plan_identify(config).missing["Ann_8.png"] == (1, 3)
    # In a race all take part again.
    staged = replace(config, method="staged")
    plan = plan_identify(staged)
    answer(staged, plan, ["Ann_8.png"], np.ones((1, 4, 3), np.float32))
    assert "Ann_8.png" not in plan_identify(staged).missing
    write_embedding(new, str(tmp_path / "ids"), "Eve_1", OPTIMIZED)
    assert plan_identify(staged).missing["Ann_8.png"] == range(5)


def test_a_torn_part_is_asked_for_again(config: IdentifyConfig) -> None:
    answer(config, plan_identify(config), ["Ann_8.png"], np.ones((1, 3, 3), np.float32))
    (part,) = Path(config.output, config.mode, "answers").iterdir()
    part.write_bytes(part.read_bytes()[:-4])
    assert len(plan_identify(config).missing) == 3


def test_a_picture_with_an_error_has_no_answer_and_is_tried_again(config: IdentifyConfig) -> None:
    plan = plan_identify(config)
    answer(config, plan, ["Ann_8.png"], np.zeros((1, 3, 0), np.float32), ["not_an_image"])
    assert len(plan_identify(config).missing) == 3


@pytest.fixture
def many(config: IdentifyConfig, tmp_path: Path) -> IdentifyConfig:
    """Two identities of Ann, one each of Anna, Bob and Cid; of Cid CLIP knows nothing, of Ann_9.png neither."""
    for name in ("Bob_1", "Cid_1"):
        write_embedding(np.ones((1, 77, 16), np.float32), str(tmp_path / "ids"), name, OPTIMIZED)
    cosines = {
        "Ann_8": {"Ann_7": 0.3, "Anna_7": 0.9, "Bob_6": 0.4, "Bob_7": 0.8, "Eve_1": 1.0},
        "Anna_8.png": {"Ann_7": 0.9, "Ann_6": 0.1, "anna_7": 0.8, "Bob_7": 0.7},
        "Ann_9": {"Bob_7": 1.0, "Eve_1": 0.1},
    }
    folder = results.write(tmp_path / "clip", cosines)
    return replace(config, preselect=PreselectConfig(folder, best=2))


def test_a_preselection_asks_about_the_best_classes_only(many: IdentifyConfig) -> None:
    plan = plan_identify(many)
    assert [one.name for one in plan.identities] == ["Ann_1", "Ann_2", "Anna_1", "Bob_1", "Cid_1"]
    # Of Ann_9 only one class is told that there is an identity of, and so nobody can be left out.
    assert plan.missing == {"Ann_8.png": (2, 3), "Ann_9.png": (0, 1, 2, 3, 4), "Anna_8.png": (0, 1, 2)}
    assert plan.pairs == 10
    losses = np.arange(5, 0, -1)[:, None] * np.ones((3, 5, 3)) + [0, 0.5, 1]
    answer(many, plan, list(plan.missing), losses)
    assert plan_identify(many).missing == {}
    outcome = identify(many, plan_identify(many))
    assert (outcome.answered, outcome.evaluations, outcome.of_full) == (3, 30, 45)
    assert (outcome.preselected, outcome.saved) == (2, (3 + 2) * 3)
    # A row for every identity: after those who were asked, the others in the order of CLIP.
    rows = [row for row in table(many, "Ann_results.csv")[1:] if row[0] == "Ann_8.png"]
    assert [row[1] for row in rows] == ["Bob_1", "Anna_1", "Ann_1", "Ann_2", "Cid_1"]
    assert [float(row[2]) for row in rows] == pytest.approx([2.5, 3.5, 3.5, 3.5, 3.5])
    found = read_results(f"{many.output}/{many.mode}", clip_csv=False)
    ordered = found.rows[found.rows.image == "Ann_8.png"].sort_values("score", ascending=False)
    assert ordered.identity.tolist() == [row[1] for row in rows] and ordered.score.is_unique
    asked = {row[0]: row[-2] for name in ("Ann", "Anna") for row in table(many, f"{name}_certainty.csv")[1:]}
    assert asked == {"Ann_8.png": "2", "Ann_9.png": "5", "Anna_8.png": "3"}


def test_an_identity_with_any_ending_is_of_its_class_from_personalise_to_score(
    config: IdentifyConfig, tmp_path: Path
) -> None:
    name = image_identity("Ann_left.png", "Ann")
    (tmp_path / "ids" / "Ann_1").rename(tmp_path / "ids" / name)
    write_embedding(np.ones((1, 77, 16), np.float32), str(tmp_path / "ids"), "Bob_1", OPTIMIZED)
    cosines = {"Ann_8": {"Ann_7": 0.9, "Anna_7": 0.8, "Bob_1": 0.1}}
    chosen = PreselectConfig(results.write(tmp_path / "clip", cosines), best=2)
    plan = plan_identify(replace(config, preselect=chosen))
    assert [plan.identities[number].name for number in plan.chosen["Ann_8.png"]] == ["Ann_2", "Ann_left", "Anna_1"]
    plan = plan_identify(config)
    answer(config, plan, list(plan.missing), np.array([2, 1, 3, 4])[:, None] * np.ones((3, 4, 3)))
    identify(config, plan_identify(config))
    found = read_results(f"{config.output}/{config.mode}", None)
    classes = dict(zip(found.rows.identity, found.rows.cls, strict=True))
    assert classes == {"Ann_2": "Ann", "Ann_left": "Ann", "Anna_1": "Anna", "Bob_1": "Bob"}
    assert topk(found, 1).to_dict() == {"Ann": 100, "Anna": 0}
    average = replace(config, category_class=True)
    assert [one.name for one in plan_identify(average).identities] == ["Ann", "Anna", "Bob"]
    drawn = plan_generate(
        GenerateConfig(config.imagic_pretrained_path, str(tmp_path / "drawn"), sd_model_name=config.sd_model_name)
    )
    assert {(row["identity"], row["class"]) for row in drawn.manifest.values()} == set(classes.items())
    assert {identity_class(file) for file in drawn.manifest} == {"Ann", "Anna", "Bob"}


@pytest.mark.parametrize("method", ["full", "staged"])
def test_more_of_a_preselection_asks_only_for_those_who_join(many: IdentifyConfig, method: Any) -> None:
    many = replace(many, method=method)
    plan = plan_identify(many)
    answer(many, plan, list(plan.missing), np.ones((3, 5, 4)))
    more = plan_identify(replace(many, preselect=replace(many.preselect, best=3)))
    # In a race all take part again.
    joining = {"Ann_8.png": (0, 1), "Anna_8.png": (3,)}
    everyone = {"Ann_8.png": (0, 1, 2, 3), "Anna_8.png": (0, 1, 2, 3)}
    assert more.missing == (joining if method == "full" else everyone)


def test_a_picture_that_is_gone_has_no_answer_though_some_were_asked(config: IdentifyConfig, tmp_path: Path) -> None:
    plan = plan_identify(config)
    answer(config, plan, list(plan.missing), np.ones((3, 3, 3)))
    write_embedding(np.ones((1, 77, 16), np.float32), str(tmp_path / "ids"), "Bob_1", OPTIMIZED)
    plan = plan_identify(config)
    answer(config, plan, ["Ann_9.png", "Anna_8.png"], np.ones((2, 4, 3)))
    assert identify(config, replace(plan, missing={})).answered == 2


def test_what_cannot_work_is_told(config: IdentifyConfig) -> None:
    with pytest.raises(ValueError, match="alpha=2"):
        replace(config, alpha=2)
    with pytest.raises(ValueError, match="best=1: it starts at 2"):
        PreselectConfig("x", best=1)
    with pytest.raises(ValueError, match="has no results"):
        plan_identify(replace(config, preselect=PreselectConfig(config.output)))
    with pytest.raises(ValueError, match="multiples of 8"):
        replace(config, height=12)
    question = replace(config, height=24).question()
    assert (question.height, question.width) == (24, 16)
