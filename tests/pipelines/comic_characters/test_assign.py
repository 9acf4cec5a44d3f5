"""From vectors to who is the same in sequences, with names, a threshold that was learnt, and pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.comic_characters.instances import Instance
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.comic_characters.assign import DEFAULT, Assignment, assign, consecutive, names_of, plan_assignment
from pipelines.comic_characters.sequences import Sequence, read_sequences
from pipelines.comic_characters.settings import AssignConfig, ComicsConfig
from tests.support.embedded_comics import embedded_comic, write_vectors


@pytest.fixture(scope="module")
def comic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComicsConfig, list[Sequence]]:
    return embedded_comic(tmp_path_factory.mktemp("comic"))


def of(config: ComicsConfig, **settings: Any) -> ComicsConfig:
    return replace(config, assign=replace(config.assign, **settings))


def done(config: ComicsConfig) -> tuple[dict[str, Any], Assignment]:
    return assign(config, plan_assignment(config))


def test_who_is_the_same_is_written_as_label_files_have_it(comic: tuple[ComicsConfig, list[Sequence]]) -> None:
    config, sequences = comic
    record, found = done(of(config, folder="test", pictures=2))
    assert found.agreement is not None and found.agreement.f1 > 0.95
    uri = Store(config.output).uri("test/clusters.json")
    again = read_sequences(uri)
    assert [one.name for one in again] == [one.name for one in sequences[4:]]
    for one, truth in zip(again, sequences[4:], strict=True):
        assert sorted(map(str, one.instances)) == sorted(map(str, truth.instances))
    assert record["rows"] == {"in": 32, "out": 32, "rejected": {}}
    assert record["clusters"] == sum(len(set(one.characters)) for one in again) and record["sequences"] == 4
    names = [one["picture"] for one in json.loads(Path(uri).read_text())]
    assert names == ["pictures/000000.jpg", None, None, "pictures/000003.jpg"]
    pictures = {name: Path(config.output, "test", name) for name in names if name}
    times = {name: path.stat().st_mtime_ns for name, path in pictures.items()}
    pictures[names[0]].unlink()
    done(of(config, folder="test", pictures=2))
    assert pictures[names[0]].exists(), "what is missing is drawn"
    assert pictures[names[3]].stat().st_mtime_ns == times[names[3]], "and nothing else"
    done(of(config, folder="test", pictures=2, threshold=0.0))
    assert pictures[names[3]].stat().st_mtime_ns > times[names[3]], "but for other clusters all are"


def test_the_threshold_is_learnt_from_validation_and_kept(comic: tuple[ComicsConfig, list[Sequence]]) -> None:
    config, _ = comic
    record, _ = done(of(config, folder="learnt", pictures=0))
    store = Store(config.output)
    taught = store.read_json("threshold.json")
    assert taught["f1"] == max(row["f1"] for row in taught["curve"]) and taught["sequences"] == 4
    assert record["threshold"]["value"] == taught["threshold"] != DEFAULT
    later = replace(config, labels="")
    assert plan_assignment(later).threshold.value == taught["threshold"]
    assert plan_assignment(of(config, threshold=0.3)).threshold.value == 0.3
    # What was learnt of one method, or of vectors of another head, says nothing of others.
    with pytest.raises(UserError, match=r"was fitted for assign.method=agglomerative. Set assign.threshold, or labels"):
        plan_assignment(of(later, method="dbscan"))
    made = store.read_json("embeddings.json")
    store.write_json({**made, "features": "features/z"}, "embeddings.json")
    with pytest.raises(UserError, match="was fitted for other weights"):
        plan_assignment(later)
    assert plan_assignment(of(later, threshold=0.3)).threshold.value == 0.3
    store.write_json(made, "embeddings.json")
    storage.delete(store.uri("threshold.json"))
    assert plan_assignment(later).threshold.value == DEFAULT


def test_without_labels_consecutive_panels_are_sequences(comic: tuple[ComicsConfig, list[Sequence]]) -> None:
    config, sequences = comic
    record, found = done(of(config, folder="all", split=None, pictures=1))
    assert found.agreement is None and record["sequences"] == 8
    assert {one.sequence.name for one in found.sequences} == {one.name for one in sequences}
    whole = plan_assignment(of(config, split=None, panels=0)).sequences
    assert [one.name for one in whole] == ["s0", "s1", "s2", "s3"]
    instances: list[Instance] = [("s", page, 0, 0) for page in ("10_0", "2_0", "2_10", "2_9")]
    pages = [[one[1] for one in part.instances] for part in consecutive(instances, 3)]
    assert pages == [["2_0", "2_9", "2_10"], ["10_0"]]


def test_the_bank_gives_names(comic: tuple[ComicsConfig, list[Sequence]], tmp_path: Path) -> None:
    config, sequences = comic
    one = sequences[6]
    named = dict(zip(list(dict.fromkeys(one.characters))[:2], ("Anna", "Борис"), strict=True))
    rows = [
        f"{named[character]},{next(iter(names_of(instance).values()))}"
        for instance, character in zip(one.instances, one.characters, strict=True)
        if character in named
    ]
    bank = tmp_path / "bank.csv"
    bank.write_text("\n".join(["name,instance", *rows]))
    record, found = done(of(config, folder="named", bank=str(bank), pictures=1))
    truth = {who.split("_")[0] + who.split("_")[2]: name for who, name in named.items()}
    for assigned in found.sequences:
        for character, place in zip(assigned.sequence.characters, assigned.clusters.tolist(), strict=True):
            series, _, who = character.split("_")
            assert assigned.names.get(place) == truth.get(series + who)
    assert record["named"] >= 2
    told = json.loads(Path(config.output, "named/clusters.json").read_text())[2]
    assert {"Anna", "Борис"} <= {annotation["charId"] for annotation in told["annotations"]}
    instance = rows[0].partition(",")[2]
    bank.write_text(f"name,instance\nAnna,{instance}\nBea,{instance}\n")
    with pytest.raises(UserError, match=f"line 3: {instance} is listed under two characters, Anna and Bea"):
        plan_assignment(of(config, bank=str(bank)))
    bank.write_text("name,instance\nAnna,s0_9_9_face_0\n")
    with pytest.raises(ValueError, match=r"line 2: 's0_9_9_face_0' of 'Anna' has no vector"):
        plan_assignment(of(config, bank=str(bank)))
    bank.write_text("who,instance\n")
    with pytest.raises(ValueError, match="has no column name; it has who, instance"):
        plan_assignment(of(config, bank=str(bank)))


def test_what_has_no_vector_is_rejected_and_counted(comic: tuple[ComicsConfig, list[Sequence]]) -> None:
    config, sequences = comic
    lost = sequences[5].instances
    write_vectors(config, sequences, lost=lost)
    record, found = done(of(config, folder="lost", pictures=9))
    write_vectors(config, sequences)
    assert record["rows"] == {"in": 32, "out": 24, "rejected": {"missing_crop": 8}}
    assert (found.sequences[1].clusters == -1).all() and 1 not in found.pictures
    told = json.loads(Path(config.output, "lost/clusters.json").read_text())[1]
    assert told["annotations"] == [] and len(told["rejected"]) == 8 and told["rejected"][0]["error"] == "missing_crop"
    table = next(Store(config.output).read_parts("rejected/assign"))
    assert len(table) == 8


def test_vectors_that_are_not_those_asked_for_are_refused(
    comic: tuple[ComicsConfig, list[Sequence]], tmp_path: Path
) -> None:
    config, sequences = comic
    write_vectors(config, sequences[:5])
    with pytest.raises(ValueError, match=r"24 instances that are not in embeddings/.*`embed`"):
        plan_assignment(config)
    write_vectors(config, sequences)
    uri = Store(config.output).uri("fine-tune/model.safetensors")
    storage.write_bytes(uri, b"another")
    with pytest.raises(ValueError, match="of another head than"):
        plan_assignment(config)
    storage.delete(uri)
    with pytest.raises(ValueError, match="has no vectors"):
        plan_assignment(replace(config, output=str(tmp_path)))
    with pytest.raises(ValueError, match="threshold lies in"):
        AssignConfig(threshold=3.0)
