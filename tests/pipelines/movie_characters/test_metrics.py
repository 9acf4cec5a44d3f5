"""Result files as others write them, and figures that can be reckoned by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from actors.core.errors import UserError
from actors.core.store import Store
from actors.movie_characters.names import (
    class_identity,
    class_of,
    drawn_name,
    film_frame_name,
    frame_name,
    identity_class,
    image_identity,
)
from pipelines.movie_characters import metrics as ident
from pipelines.movie_characters.results import (
    NO_ANSWER,
    RESULTS,
    Results,
    by_class,
    note_classes,
    read_about,
    read_results,
    write_about,
    write_results,
)
from tests.support import results

ALIKE = {
    "Ann_001.jpg": {"Ann_1": 0.3, "Anna_1": 0.1, "Anna_2": 0.2, "Bob_1": 0.9},
    "Ann_002.jpg": {"Ann_1": 0.1, "Anna_1": 0.2, "Anna_2": 0.6, "Bob_1": 0.9},
    "Anna_001.jpg": {"Ann_1": 0.5, "Anna_1": 0.9, "Anna_2": 0.4, "Bob_1": 0.1},
    "Bob_001.jpg": {"Ann_1": 0.5, "Anna_1": 0.9, "Anna_2": 0.4, "Bob_1": 0.1},
}
"""Losses of three classes, one of which begins like another."""


@pytest.fixture
def alike(tmp_path: Path) -> Results:
    return read_results(results.write(tmp_path, ALIKE), clip_csv=False)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("Ann_001.jpg", "Ann"),
        ("folder/Harry_Potter_12.PNG", "Harry_Potter"),
        ("Dr_No_frame_0001.jpg", "Dr_No"),
        ("Mr. Bean_3", "Mr. Bean"),
        (drawn_name("subject01_001", 0, 0.0, 7.0), "subject01"),
        (drawn_name("Harry_Potter_12", 41, 0.25, 7.5), "Harry_Potter"),
        (drawn_name("Ann_1", 3, 1e-7, 1.0), "Ann"),
    ],
)
def test_the_class_is_what_comes_before_the_last_underscore(name: str, cls: str):
    assert class_of(name) == cls == identity_class(name)


def test_a_name_without_a_class_is_an_error():
    with pytest.raises(ValueError, match="CLASS_NUMBER"):
        class_of("ann.jpg")


@pytest.mark.parametrize("name", ["unlabelled_1.jpg", "Unlabelled_frame_0001.jpg"])
def test_the_class_that_stands_for_none_is_refused(name: str):
    with pytest.raises(UserError, match="stands for images without a class; call it something else"):
        class_of(name)


@pytest.mark.parametrize("cls", ["Ann", "Harry_Potter", "subject_01", "Mr. Bean"])
def test_names_that_are_made_are_read_as_their_class(cls: str):
    made = [frame_name(cls, 7), film_frame_name(cls, 7), class_identity(cls), image_identity("portrait.png", cls)]
    made += [image_identity(f"{cls}_1.png", cls), drawn_name(f"{cls}_1", 0, 0.5, 7.5).replace("Mr--", "Mr. ")]
    assert {class_of(name) for name in made} == {identity_class(name) for name in made} == {cls}


def test_an_identity_may_stand_for_a_whole_class():
    assert [identity_class(name) for name in ("Harry_Potter_1", "Harry_Potter", "Ann")] == [
        *("Harry_Potter", "Harry_Potter", "Ann")
    ]


def test_whole_names_are_compared(alike: Results):
    # By prefix the first image of Ann would be right, and both of Anna's identities would be Ann's.
    assert ident.topk(alike, 1).to_dict() == {"Ann": 50, "Anna": 0, "Bob": 100}


def test_top_k_counts_identities_and_averaged_classes(alike: Results):
    assert ident.topk(alike, 2).to_dict() == {"Ann": 50, "Anna": 100, "Bob": 100}
    assert ident.topk(alike, 3).to_dict() == {"Ann": 100, "Anna": 100, "Bob": 100}
    # Of Ann's first image Anna has the mean .15, and Ann .3; of Anna's image Ann has .5, and Anna .65.
    assert ident.topk(alike, 2, average=True).to_dict() == {"Ann": 100, "Anna": 0, "Bob": 100}


def test_cosines_are_better_the_higher(tmp_path: Path):
    turned = {image: {name: -loss for name, loss in found.items()} for image, found in ALIKE.items()}
    found = read_results(results.write(tmp_path, turned), clip_csv=True)
    assert ident.topk(found, 1).to_dict() == {"Ann": 50, "Anna": 0, "Bob": 100}


def test_average_precision_is_that_of_ranks_over_all_images(alike: Results):
    scores, truth = by_class(alike), alike.images
    # Bob's rank is 3, 3, 1, 1, and only the last image is his.
    assert ident.average_precision(scores, truth)["Bob"] == 0.5
    # Ann's rank is 2, 1, 3, 3: the two that are hers come first.
    assert ident.average_precision(scores, truth)["Ann"] == 1
    # Anna's is 1, 2, 2, 2: hers is one of the last three.
    assert ident.average_precision(scores, truth)["Anna"] == 0.25


def test_average_precision_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    names = [f"c{i}" for i in range(5)]
    scores = pd.DataFrame(random.random((40, 5)), [f"{name}_{i}" for i in range(8) for name in names], names)
    truth = pd.Series([image.partition("_")[0] for image in scores.index], scores.index)
    ours = ident.average_precision(scores, truth)
    for name in names:
        ranks = [list(row.sort_values().index).index(name) for _, row in scores.iterrows()]
        assert ours[name] == pytest.approx(average_precision_score(truth == name, ranks))


def test_the_reference_formula_is_the_precision_of_answers(alike: Results):
    values = ident.reference_precision(by_class(alike), alike.images)
    # Anna is answered once, and wrongly; Bob twice, and once rightly.
    assert values.to_dict() == {"Ann": 1, "Anna": 0, "Bob": 0.5}


def test_reciprocal_rank_is_the_mean_over_images(alike: Results):
    assert ident.reciprocal_rank(by_class(alike), alike.images) == pytest.approx((1 / 2 + 1 + 1 / 2 + 1) / 4)


def test_confusion_and_recall_count_answers(alike: Results):
    found, truth = ident.answers(by_class(alike)), alike.images
    assert ident.confusion(found, truth).loc["Ann"].to_dict() == {"Ann": 1, "Anna": 1, "Bob": 0}
    table = ident.per_class(found, truth)
    assert table.recall[:-1].tolist() == [0.5, 0, 1]
    assert table.recall["macro"] == 0.5
    assert table.support["macro"] == 4


def test_rows_that_came_twice_count_once_and_broken_ones_are_told(tmp_path: Path):
    results.write(tmp_path, {"Ann_1": {"Ann_1": 0.5, "Bob_1": 0.4}, "Ann_2": {"Ann_1": float("nan")}})
    file = tmp_path / "Ann_results.csv"
    file.write_text(file.read_text() + "Ann_1,Ann_1,0.1\n")
    # What `score` writes may lie in the same folder.
    (tmp_path / "top_1_accuracy_results.csv").write_text("GT_cls,Top_k_accuracy\nAnn,100\n")
    found = read_results(str(tmp_path), clip_csv=False)
    # The image whose only loss is broken has no answer.
    assert ident.topk(found, 1).to_dict() == {"Ann": 50}
    assert (found.doubles, found.broken, found.lost) == (1, 1, ("Ann_2",))


def test_spellings_of_one_class_are_one(tmp_path: Path):
    found = read_results(results.write(tmp_path, {"Mr_Bean_1": {"mr bean_1": 0.1, "Ann_1": 0.2}}), False)
    assert ident.topk(found, 1).to_list() == [100]


def test_a_file_with_other_columns_is_an_error_that_lists_them(tmp_path: Path):
    (tmp_path / "Ann_results.csv").write_text("name,loss\nAnn_1,0.1\n")
    with pytest.raises(ValueError, match=r"no column GT Image name, input_embeds; it has name, loss"):
        read_results(str(tmp_path), False)
    with pytest.raises(ValueError, match="has no results"):
        read_results(str(tmp_path / "elsewhere"), False)


def test_written_results_are_read_again_and_keep_what_was_there(tmp_path: Path):
    rows = [("Ann_1", "Ann_1", 0.2), ("Ann_1", "Bob_1", 0.4), ("Bob_1", "Bob_1", 0.9)]
    write_results(str(tmp_path), pd.DataFrame(rows, columns=list(RESULTS)), descending=True)
    more = pd.DataFrame([("Ann_1", "Ann_1", 0.8)], columns=list(RESULTS))
    write_results(str(tmp_path), more, descending=True)
    assert (tmp_path / "Ann_results.csv").read_text() == (
        "GT Image name,input_embeds,loss\nAnn_1,Ann_1,0.8\nAnn_1,Bob_1,0.4\n"
    )
    assert read_results(str(tmp_path), True).images.to_dict() == {"Ann_1": "Ann", "Bob_1": "Bob"}


SURE = pd.Series([0.9, 0.8, 0.7, 0.4, 0.6, 0.3])
KNOWN = pd.Series([True, True, True, True, False, False])


def test_auroc_and_equal_error_rate():
    found = ident.open_set(SURE, KNOWN)
    assert found is not None
    # 7 of 8 pairs are in order.
    assert found.auroc == 7 / 8
    # From .7 on 1 of 4 known ones is refused and no unknown one accepted, from .6 on half of them are.
    assert found.eer == pytest.approx(0.25)
    assert ident.open_set(SURE, KNOWN | True) is None


def test_a_threshold_is_learnt_where_most_answers_are_right():
    right = KNOWN
    threshold = ident.learn_threshold(SURE, right, KNOWN)
    # Between .6 and .7 five are right; between .3 and .4 five as well, and refusing less comes first.
    assert threshold == pytest.approx(0.35)
    # An answer that is wrong anyway is no loss.
    assert ident.learn_threshold(SURE, right & (SURE > 0.5), KNOWN) == pytest.approx(0.65)
    with pytest.raises(ValueError, match="one kind is missing"):
        ident.learn_threshold(SURE, right, KNOWN | True)


def test_images_of_a_class_without_identities_are_unknown(tmp_path: Path):
    losses = {"Ann_1": {"Ann_1": 0.1, "Bob_1": 0.5, "Eve_1": 0.6}, "Zoe_1": {"Ann_1": 0.4, "Bob_1": 0.5, "Eve_1": 0.6}}
    found = read_results(results.write(tmp_path, losses), False)
    scores, truth = by_class(found), found.images
    sure = ident.confidence(scores, lead=True)
    # The others have the mean .55 and a deviation of .05.
    assert sure.to_list() == pytest.approx([9, 3])
    said = ident.with_unknown(ident.answers(scores), sure, 5)
    assert said.to_dict() == {"Ann_1": "Ann", "Zoe_1": "unknown"} == ident.truths(scores, truth).to_dict()


def silent_folder(tmp_path: Path) -> str:
    """Two images of Ann that are right, and one of Bob without an answer."""
    cosines = {f"Ann_{n}": {"Ann_0": 0.9, "Bob_0": 0.1} for n in (1, 2)}
    folder = results.write(tmp_path, cosines)
    write_about(folder, "gallery of faces", True, cosines, ["Bob_1"])
    return folder


def test_an_image_without_an_answer_is_wrong_in_every_figure(tmp_path: Path) -> None:
    found = read_results(silent_folder(tmp_path), None)
    assert found.unanswered == (("Bob_1", "Bob"),) and len(found.images) == 3
    assert ident.topk(found, 2).to_dict() == ident.topk(found, 2, average=True).to_dict() == {"Ann": 100, "Bob": 0}
    scores, truth = by_class(found), found.images
    answers = ident.answers(scores)
    assert answers["Bob_1"] == NO_ANSWER
    assert ident.reciprocal_rank(scores, truth) == pytest.approx(2 / 3)
    assert ident.per_class(answers, truth).recall[["Ann", "Bob"]].tolist() == [1, 0]
    assert ident.confusion(answers, truth).loc["Bob", NO_ANSWER] == 1
    sure = ident.confidence(scores, lead=False)
    assert sure.idxmin() == "Bob_1" and np.isfinite(sure).all()
    # A threshold does not make an answer of it.
    assert ident.with_unknown(answers, sure, 2.0).to_dict() == {
        "Ann_1": "unknown",
        "Ann_2": "unknown",
        "Bob_1": NO_ANSWER,
    }


def test_an_image_that_is_answered_later_is_no_longer_without_an_answer(tmp_path: Path) -> None:
    folder = silent_folder(tmp_path)
    write_about(folder, "gallery of faces", True, ["Ann_1"], ["Ann_3"])
    assert read_about(folder).unanswered == ("Ann_3", "Bob_1")
    write_about(folder, "gallery of faces", True, ["Bob_1"], [])
    assert read_about(folder).unanswered == ("Ann_3",)


def test_a_folder_says_which_direction_is_better(tmp_path: Path) -> None:
    folder = silent_folder(tmp_path)
    assert read_results(folder, None).higher and read_results(folder, True).higher
    with pytest.raises(UserError, match="gallery of faces, of which higher is better: remove clip_csv=false"):
        read_results(folder, False)
    # Of others nothing is known, and the setting decides.
    other = results.write(tmp_path / "other", ALIKE)
    assert [read_results(other, given).higher for given in (None, False, True)] == [False, False, True]


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = silent_folder(tmp_path)
    store = Store(folder)
    store.write_json({"by": "gallery of x"}, "identified.json")
    rows = [{"image": name, "role": role} for name, role in (("Bob_1", "image"), ("Bob_2", "gallery"))]
    store.replace_table("rejected", [pa.Table.from_pylist(rows)])
    assert (read_about(folder).says_higher, read_about(folder).unanswered) == (True, ("Bob_1",))


def test_classes_that_names_do_not_say_are_kept_beside_the_results_and_win(tmp_path: Path):
    folder = str(tmp_path)
    results.write(tmp_path, {"x_1.png": {"Ann_1": 0.9, "portrait": 0.2}, "Bob_1.png": {"Ann_1": 0.1, "portrait": 0.7}})
    (tmp_path / "x_certainty.csv").write_text("GT Image name,answer\nx_1.png,Ann_1\n")
    write_about(
        folder, "gallery of a model", True, ["x_1.png", "Bob_1.png"], ["y.png"], {"portrait": "Bob", "Ann_1": "Ann"}
    )
    note_classes(folder, {"x_1.png": "Ann", "Bob_1.png": "Bob", "y.png": "Bob"})
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == [
        *("Ann_certainty.csv", "Ann_results.csv", "Bob_results.csv")
    ]
    found = read_results(folder, None)
    assert found.images.to_dict() == {"x_1.png": "Ann", "Bob_1.png": "Bob", "y.png": "Bob"}
    assert ident.answers(by_class(found)).to_dict() == {"x_1.png": "Ann", "Bob_1.png": "Bob", "y.png": NO_ANSWER}
    # What is not named now stays; what has no row in the manifest any more is of its name again.
    note_classes(folder, {"x_1.png": "x"})
    assert read_results(folder, None).images.to_dict() == {"x_1.png": "x", "Bob_1.png": "Bob", "y.png": "Bob"}
    assert not (tmp_path / "Ann_results.csv").exists()
