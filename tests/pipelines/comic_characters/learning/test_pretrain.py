"""NT-Xent against a slow oracle and its closed forms; what workers see together; a training that learns."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from actors.comic_characters.augment_settings import ViewsConfig
from pipelines.comic_characters.learning.distributed import SharedBatchNorm, gathered
from pipelines.comic_characters.learning.pretrain import evaluate, loss, make_model, nt_xent
from pipelines.comic_characters.learning.validation import view_retrieval
from pipelines.comic_characters.settings import PretrainConfig
from pipelines.core.epochs import train_epoch, train_in_bfloat16, with_shared_norms
from pipelines.core.training_rows import Share

PLAIN = ViewsConfig(flip=0, min_scale=1, jitter=0, grey=0, max_sigma=0.1)


def vectors(count: int, seed: int, dimensions: int = 8) -> Tensor:
    drawn = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(drawn, dim=1).float()


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[float, list[int]]:
    """Written as the paper has it, one pair at a time."""
    z = [*first.tolist(), *second.tolist()]
    count = len(first)

    def cosine(i: int, k: int) -> float:
        return sum(a * b for a, b in zip(z[i], z[k], strict=True))

    total, places = 0.0, []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = [k for k in range(2 * count) if k != i]
        total -= math.log(
            math.exp(cosine(i, partner) / temperature) / sum(math.exp(cosine(i, k) / temperature) for k in others)
        )
        places.append(1 + sum(cosine(i, k) > cosine(i, partner) for k in others if k != partner))
    return total / (2 * count), places


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_nt_xent_is_that_of_the_paper(count: int, temperature: float) -> None:
    first, second = vectors(count, 0), vectors(count, 1)
    value, places = nt_xent(first, second, temperature)
    expected, expected_places = slow_nt_xent(first, second, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert places.tolist() == expected_places


def test_nt_xent_in_closed_form() -> None:
    """All alike: one of 2n - 1. All pairs at right angles to each other: 1 / t against 0."""
    alike = torch.ones(6, 1)
    value, places = nt_xent(alike, alike, 0.07)
    assert value.item() == pytest.approx(math.log(11))
    assert (places == 11).all(), "what is as alike as the partner stands before it"
    apart = torch.eye(6)
    for temperature in (0.3, 1.0):
        value, places = nt_xent(apart, apart, temperature)
        assert value.item() == pytest.approx(math.log(1 + 10 * math.exp(-1 / temperature)), rel=1e-4)
        assert (places == 1).all()


def test_similarities_are_float32_under_autocast() -> None:
    """Vectors as of an untrained network, all much alike: in bfloat16 most cosines are equal, and no rank says much."""
    first, second = (normalize(torch.ones(1, 16) + 0.02 * vectors(64, seed, 16), dim=1) for seed in (0, 1))
    value, places = nt_xent(first, second, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert len((first.float() @ second.float().T).unique()) <= 2, "what must not be"
        again, same = nt_xent(first, second, 0.07)
        found = view_retrieval(first, second)
    assert torch.equal(value, again) and torch.equal(places, same)
    assert found == view_retrieval(first, second)
    # Chance is 1 of 127.
    assert (places == 1).float().mean() < 0.05


def test_a_network_that_gives_no_numbers_finds_nobody() -> None:
    nothing = torch.full((5, 4), torch.nan)
    assert (nt_xent(nothing, nothing, 0.1)[1] >= 9).all()
    assert view_retrieval(nothing, nothing) <= 1 / 9


def test_a_training_in_bfloat16_is_validated_in_float32() -> None:
    config, rows = PretrainConfig(views=PLAIN), batch()
    plain, half = tiny(), tiny()
    train_in_bfloat16(half, "cpu")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor)
    with torch.no_grad():
        trained = loss(config, half.train(), rows)
        assert trained.dtype == torch.float32 and trained != loss(config, plain.train(), rows)
        assert trained.item() == pytest.approx(loss(config, tiny().train(), rows).item(), rel=0.05)
    # Batch norm of both has seen the same rows, rounded in one of them.
    half.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        assert evaluate(config, half.eval(), iter([rows])) == evaluate(config, plain.eval(), iter([rows]))


def test_without_other_workers_nothing_is_gathered_and_batch_norm_is_pytorchs() -> None:
    rows = vectors(5, 0)
    assert gathered(rows)[0] is rows and gathered(rows)[1] == 0
    ours, theirs = SharedBatchNorm(8), nn.BatchNorm1d(8)
    assert torch.equal(ours(rows), theirs(rows)) and ours.state_dict().keys() == theirs.state_dict().keys()


def test_gpus_share_batch_norm_by_pytorchs_own_with_the_same_weights() -> None:
    bare, rows = tiny(), torch.rand(4, 3, 32, 32)
    bare.train()(rows)
    expected = bare.eval()(rows)[0]
    before, weights = bare.state_dict(), list(bare.parameters())
    for device, workers in (("cpu", 2), ("cuda", 1)):
        assert with_shared_norms(bare, torch.device(device), workers) is bare
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in bare.modules())
    ours = with_shared_norms(bare, torch.device("cuda"), 2)
    norms = [module for module in ours.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(module, nn.SyncBatchNorm) for module in norms)
    assert isinstance(ours, type(bare)) and torch.equal(ours.eval()(rows)[0], expected)
    # An optimizer that has them goes on with them, and so does a checkpoint, on CPUs as well.
    assert all(one is other for one, other in zip(ours.parameters(), weights, strict=True))
    assert ours.state_dict().keys() == before.keys()
    tiny().load_state_dict(ours.state_dict())


def batch(rows: int = 7, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"face": (rows, 32, 32, 3), "body": (rows, 48, 48, 3)}
    return {kind: torch.randint(0, 256, shape, generator=generator).byte() for kind, shape in shapes.items()}


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return make_model("resnet10", 16)


def test_the_identity_term_can_be_switched_off() -> None:
    model, rows = tiny().eval(), batch()
    with torch.no_grad():
        whole = evaluate(PretrainConfig(views=PLAIN), model, iter([rows]))
        without = evaluate(PretrainConfig(views=PLAIN, identity=False), model, iter([rows]))
        value = loss(PretrainConfig(views=PLAIN), model, rows).item()
    assert {name.partition("_")[0] for name in whole} - {name.partition("_")[0] for name in without} == {"identity"}
    assert whole["valid_loss"] == pytest.approx(without["valid_loss"] + whole["identity_loss"])
    assert whole["valid_loss"] == pytest.approx(value, rel=1e-4)
    # Two views without changes are alike, so that each finds its own.
    assert whole["face_acc_top1"] == whole["body_acc_top5"] == whole["face_mean_position"] == 1
    assert whole["identity_mean_position"] > 1


def test_an_evaluation_is_a_mean_over_rows_and_always_the_same() -> None:
    model, config = tiny().eval(), PretrainConfig()
    with torch.no_grad():
        first = evaluate(config, model, iter([batch(6, 1), batch(2, 2)]))
        again = evaluate(config, model, iter([batch(6, 1), batch(2, 2)]))
    assert first == again
    assert 1 <= first["body_mean_position"] <= (6 * 11 + 2 * 3) / 8


def one_step(config: PretrainConfig, shares: Iterator[Share], workers: int = 1) -> tuple[nn.Module, float]:
    bare = tiny().train()
    model = DistributedDataParallel(bare) if workers > 1 else bare
    optimizer = torch.optim.SGD(bare.parameters(), 1e-3)

    def whole(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return loss(config, model, rows)

    total, _ = train_epoch(model, optimizer, shares, whole, workers=workers, clip=0.5)
    return bare, total.item()


def work(rank: int, folder: str, config: PretrainConfig) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mine = slice(0, 3) if rank == 0 else slice(3, 7)
    shares = iter([Share({name: column[mine] for name, column in batch().items()}, 7, True)])
    model, total = one_step(config, shares, workers=2)
    torch.save({"total": total, **model.state_dict()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    """Of a batch of seven the first has three rows and the second four; both make the step of a single worker."""
    config = PretrainConfig(views=PLAIN)
    spawn(work, (str(tmp_path), config), nprocs=2)
    ours = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone, total = one_step(config, iter([Share(batch(), 7, True)]))
    assert sum(one.pop("total") for one in ours) == pytest.approx(total, rel=1e-4)
    before = tiny().state_dict()
    moved = 0.0
    for name, tensor in alone.state_dict().items():
        assert torch.equal(ours[0][name], ours[1][name]), name
        torch.testing.assert_close(ours[0][name], tensor, rtol=1e-3, atol=2e-6, msg=name)
        moved += (tensor - before[name]).square().sum().item()
    assert moved > 0


def test_a_step_is_no_longer_than_allowed() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    share = Share({"x": torch.ones(1, 1)}, 1, True)
    train_epoch(model, torch.optim.SGD(model.parameters(), 1.0), [share], lambda m, b: 8 * m(b["x"]).mean(), clip=0.5)
    assert model.weight.item() == pytest.approx(-0.5)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"shares": (1.0, 0.0, 0.0)}, {"dimensions": 1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PretrainConfig(), **wrong)


@pytest.mark.parametrize("wrong", [{"accumulate": 2}, {"drop_last": False}, {"batch_size": 1}])
def test_a_batch_is_taken_as_a_whole(wrong: dict[str, object]) -> None:
    training = replace(PretrainConfig().training, **wrong)
    with pytest.raises(ValueError, match="training"):
        PretrainConfig(training=training)
