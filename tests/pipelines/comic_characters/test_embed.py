"""Which instances there are, and how their vectors come to be, a part at a time."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save

from actors.comic_characters.crops import CROPS, CropConfig, cut_pictures
from actors.comic_characters.instances import FEATURES, KEY, read_rows, write_features, write_vectors
from actors.comic_characters.network import FeatureExtractor, Head, InstanceEmbedder, load_head, make_backbone
from actors.comic_characters.network_settings import BackboneConfig, EmbedConfig, HeadConfig
from actors.core import storage
from actors.core.stage import Batch
from actors.core.store import Store
from pipelines.comic_characters.assign import assign, plan_assignment
from pipelines.comic_characters.crop import blocks, collect, plan_crops
from pipelines.comic_characters.embed import EmbedPlan, begin, crop_instances, plan_embedding, read_embeddings
from pipelines.comic_characters.embed import collect as collect_vectors
from pipelines.comic_characters.features import located
from pipelines.comic_characters.settings import AssignConfig, ComicsConfig, FineTuneConfig
from tests.support.comics import write_comic

HEAD = HeadConfig(dimensions=8, padding="learned")


def save_weights(folder: str, seed: int = 0) -> None:
    """A backbone and a head with first weights where `pretrain` and `fine-tune` would leave them."""
    torch.manual_seed(seed)
    models = {"fine-tune": Head(HEAD, 512), "pretrain": make_backbone("resnet10")}
    for name, model in models.items():
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        storage.write_bytes(storage.join(folder, name, "model.safetensors"), save(weights))


@pytest.fixture
def config(tmp_path: Path) -> ComicsConfig:
    """A comic whose faces and bodies are cut, a backbone and a head."""
    return cut_comic(tmp_path, str(tmp_path / "out"))


def cut_comic(tmp_path: Path, output: str) -> ComicsConfig:
    write_comic(tmp_path, series=2, panels=4)
    found = ComicsConfig(
        output,
        str(tmp_path / "panels"),
        str(tmp_path / "merged_face_body.csv"),
        backbone=BackboneConfig("resnet10", 32, 32),
        crop=CropConfig(),
        fine_tune=FineTuneConfig(head=HEAD),
        embed=EmbedConfig(batch_size=5),
    )
    plan = plan_crops(found)
    for table in blocks(plan, 64):
        cut_pictures(table, Store(output), found.crop)
    collect(found, plan)
    save_weights(output)
    return found


def embed(config: ComicsConfig, plan: EmbedPlan, parts: int | None = None, computed: str = "cpu float32") -> None:
    """What `embed` does, without Ray, up to so many parts."""
    store = Store(config.output)
    begin(config, plan)
    if plan.features:
        columns = [np.array(column, object) for column in zip(*plan.features, strict=True)]
        batch: Batch = dict(zip(KEY, columns, strict=True))
        batch |= {name: batch[name].astype(float) for name in ("face", "body")}
        extractor = FeatureExtractor(config.features, config.backbone, plan.backbone.weights, store.root)
        write_features(extractor(batch), store, plan.backbone.folder, computed)
    where = located(store, plan.backbone.folder)
    head = InstanceEmbedder(config.embed, HEAD, 512, plan.weights)
    for part in plan.todo[:parts]:
        rows = [{**dict(zip(KEY, one, strict=True)), "part": where[one][0]} for one in part]
        features = read_rows(pa.Table.from_pylist(rows), store, plan.backbone.folder).to_pandas()
        batch = {name: features[name].to_numpy() for name in FEATURES.names}
        write_vectors(head({**batch, **{name: batch[name].astype(float) for name in ("face", "body")}}), store)


def test_face_and_body_of_one_character_are_one_instance() -> None:
    rows = [
        ("face", 0, 3, ""),
        ("body", 1, 3, ""),
        ("face", 1, 3, ""),
        ("face", 2, 4, "outside"),
        ("body", 2, 4, ""),
        ("face", 4, None, ""),
        ("body", 4, None, ""),
    ]
    crops = pd.DataFrame(rows, columns=["type", "index", "char_index", "error"]).assign(series_id="s", page_id="0_1")
    expected = [(None, 2), (None, 4), (0, 1), (1, None), (4, None)]
    assert [one[2:] for one in crop_instances(crops)] == expected
    assert crop_instances(CROPS.empty_table().to_pandas()) == []


def test_every_instance_has_one_vector_or_says_why_not(config: ComicsConfig, tmp_path: Path) -> None:
    store = Store(config.output)
    plan = plan_embedding(config)
    lost = next(one for part in plan.parts for one in part if one[3] is not None)
    crop = tmp_path / "out/comics_crops" / lost[0] / lost[1] / f"bodies/{lost[3]}.jpg"
    kept = crop.rename(tmp_path / "kept.jpg")
    embed(config, plan)
    rows = collect_vectors(config, plan)["rows"]
    assert rows == {"in": sum(map(len, plan.parts)), "out": rows["in"] - 1, "rejected": {"missing_crop": 1}}
    rejected = next(iter(store.read_parts("rejected/embed"))).to_pylist()
    assert [row["body"] for row in rejected] == [lost[3]] and str(crop) in rejected[0]["message"]
    found = read_embeddings(store)
    assert found.vectors.dtype == np.float32 and found.vectors.shape == (rows["out"], 8)
    assert sorted(map(repr, found.instances)) == sorted(repr(one) for part in plan.parts for one in part if one != lost)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-5)
    # A crop that is back is embedded with its part, and nothing else is.
    kept.rename(crop)
    again = plan_embedding(config)
    assert again.features == [lost] and len(again.todo) == 1
    embed(config, again, computed="cuda float32")
    done = collect_vectors(config, again)
    assert done["rows"]["out"] == rows["in"]
    told = f"features of {rows['out']} instances were computed on cpu in float32, of 1 on cuda in float32"
    assert [note.partition(":")[0] for note in done["notes"]] == [told]
    assert plan_embedding(config).todo == []


def test_killed_it_ends_with_the_same_rows(config: ComicsConfig) -> None:
    store, plan = Store(config.output), plan_embedding(config)
    embed(config, plan)
    collect_vectors(config, plan)
    whole = read_embeddings(store)
    store.replace_table("embeddings", [])
    embed(config, plan_embedding(config), parts=2)
    (torn := sorted((Path(config.output) / "embeddings").iterdir())[0]).write_bytes(torn.read_bytes()[:90])
    rest = plan_embedding(config)
    assert len(rest.todo) == len(plan.parts) - 1 and rest.features == []
    with pytest.raises(RuntimeError, match=f"5 of {len(whole.instances)} instances"):
        collect_vectors(config, rest)
    embed(config, rest)
    collect_vectors(config, rest)
    again = read_embeddings(store)
    assert again.instances == whole.instances
    np.testing.assert_array_equal(again.vectors, whole.vectors)


def test_vectors_of_two_heads_never_lie_in_one_table(config: ComicsConfig) -> None:
    store, plan = Store(config.output), plan_embedding(config)
    embed(config, plan)
    before = read_embeddings(store)
    torch.manual_seed(5)
    weights = Head(HEAD, 512).state_dict()
    storage.write_bytes(store.uri("fine-tune/model.safetensors"), save(weights))
    other = plan_embedding(config)
    assert other.todo == other.parts and other.features == []
    embed(config, other, parts=1)
    found = read_embeddings(store)
    assert len(found.instances) == 5, "those of the older head are gone"
    assert not np.allclose(found.vectors, before.vectors[:5])


def test_instances_of_label_files_are_embedded_as_they_are_named(config: ComicsConfig, tmp_path: Path) -> None:
    series, page, face, _ = next(one for part in plan_embedding(config).parts for one in part if None not in one)
    one = {"charId": "a", "charInstances": [{"face": f"{series}_{page}_face_{face}"}]}
    (tmp_path / "test_sequences.json").write_text(json.dumps([{"seq_id": "q", "annotations": [one]}]))
    without = sum(map(len, plan_embedding(config).parts))
    parts = plan_embedding(ComicsConfig(**{**vars(config), "labels": str(tmp_path)})).parts
    assert (series, page, face, None) in {one for part in parts for one in part}
    assert sum(map(len, parts)) == without + 1


def test_what_is_missing_is_told(config: ComicsConfig) -> None:
    store = Store(config.output)
    with pytest.raises(ValueError, match="Run `embed` first"):
        read_embeddings(store)
    with pytest.raises(ValueError, match="not those of a head"):
        load_head(HeadConfig(dimensions=9), 512, storage.read_bytes(store.uri("fine-tune/model.safetensors")))
    storage.delete(store.uri("fine-tune/model.safetensors"))
    with pytest.raises(ValueError, match="Run `fine-tune` first"):
        plan_embedding(config)


@pytest.mark.slow
def test_all_of_it_on_s3(s3: str, tmp_path: Path) -> None:
    config = cut_comic(tmp_path, f"{s3}/out")
    embed(config, plan_embedding(config), parts=2)
    embed(config, plan_embedding(config))
    assert collect_vectors(config, plan_embedding(config))["rows"]["rejected"] == {}
    sequences = (tmp_path / "sequences.json").read_bytes()
    for split in ("validation", "test"):
        storage.write_bytes(f"{s3}/labels/{split}_sequences.json", sequences)
    config = ComicsConfig(**{**vars(config), "labels": f"{s3}/labels"})
    record, found = assign(config, plan_assignment(config))
    assert record["rows"]["in"] == record["rows"]["out"] and found.agreement is not None
    for name in ("threshold.json", "assign/clusters.json", "assign/pictures/000001.jpg"):
        assert storage.exists(f"{s3}/out/{name}")
    before = storage.read_bytes(f"{s3}/out/assign/pictures/000001.jpg")
    again = ComicsConfig(**{**vars(config), "assign": AssignConfig(threshold=0.0)})
    assign(again, plan_assignment(again))
    assert storage.read_bytes(f"{s3}/out/assign/pictures/000001.jpg") != before
