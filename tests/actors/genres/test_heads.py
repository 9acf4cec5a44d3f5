"""Heads see the frames of a film and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from actors.genres.head_settings import HeadConfig
from actors.genres.heads import LstmHead, MeanProbe, make_head

D, C = 16, 5
HEADS = {
    "mean": HeadConfig("mean"),
    "lstm": HeadConfig("lstm", hidden_size=8),
    "lstm both ways": HeadConfig("lstm", hidden_size=8, num_layers=2, bidirectional=True, max_pooling=3),
    "lstm of the reference": HeadConfig("lstm", hidden_size=8, reference=True),
    "lstm of the reference both ways": HeadConfig("lstm", hidden_size=8, reference=True, bidirectional=True),
    "attention": HeadConfig("attention", attention=3),
    "transformer": HeadConfig("transformer", hidden_size=8, num_layers=2, attention=2),
}


def head(config: HeadConfig) -> nn.Module:
    torch.manual_seed(0)
    model = make_head(config, D, C).eval()
    if isinstance(model, MeanProbe):
        nn.init.normal_(model.linear.weight)
    return model


def film(steps: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    frames = torch.randn(1, steps, D, generator=torch.Generator().manual_seed(seed))
    return frames, torch.ones(1, steps, dtype=torch.bool)


def padded(frames: Tensor, left: int, right: int, value: float) -> tuple[Tensor, Tensor]:
    before, after = torch.full((1, left, D), value), torch.full((1, right, D), value)
    mask = torch.tensor([[False] * left + [True] * frames.shape[1] + [False] * right])
    return torch.cat([before, frames, after], 1), mask


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("steps", [1, 3, 4, 9])
@torch.no_grad()
def test_padding_changes_nothing_wherever_it_stands_and_whatever_is_in_it(config: HeadConfig, steps: int):
    model, (frames, mask) = head(config), film(steps)
    alone = model(frames, mask)
    assert alone.shape == (1, C) and alone.isfinite().all()
    for left, right, value in [(5, 0, 0.0), (0, 3, 7.0), (2, 1, torch.nan)]:
        assert torch.allclose(model(*padded(frames, left, right, value)), alone, atol=1e-5)


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS)
def test_a_film_answers_the_same_in_any_company_and_only_its_frames_get_gradients(config: HeadConfig):
    model = head(config)
    films = [padded(film(steps, steps)[0], 6 - steps, 0, 0.0) for steps in (1, 4, 6)]
    frames = torch.cat([frames for frames, _ in films]).requires_grad_()
    mask = torch.cat([mask for _, mask in films])
    together = model(frames, mask)
    assert torch.allclose(together, torch.cat([model(*one) for one in films]), atol=1e-5)
    together.square().sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all()
    assert not frames.grad[~mask].any() and frames.grad[mask].any(1).all()


@pytest.mark.parametrize(
    ("name", "ordered"), [("mean", False), ("attention", False), ("lstm", True), ("transformer", True)]
)
@torch.no_grad()
def test_order_counts_where_it_should(name: str, ordered: bool):
    model, (frames, mask) = head(HEADS[name]), film(6)
    assert torch.allclose(model(frames, mask), model(frames.flip(1), mask), atol=1e-5) != ordered


@torch.no_grad()
def test_the_lstm_takes_the_maximum_over_time_and_the_reference_over_channels():
    frames, mask = film(6)
    config = HEADS["lstm"]
    model, reference = head(config), head(replace(config, reference=True))
    assert isinstance(model, LstmHead) and isinstance(reference, LstmHead)
    steps = model.lstm(model.norm(frames))[0][0]
    pooled = (steps[:4].max(0).values + steps[4:].max(0).values) / 2
    assert torch.allclose(model(frames, mask)[0], model.linear(pooled), atol=1e-6)
    last = reference.lstm(reference.norm(frames))[0][0, -1]
    channels = torch.stack([last[:4].max(), last[4:].max()])
    assert torch.allclose(reference(frames, mask)[0], reference.linear(channels), atol=1e-6)


@torch.no_grad()
def test_the_mean_probe_sees_directions_alone():
    model, (frames, mask) = head(HEADS["mean"]), film(3)
    assert isinstance(model, MeanProbe)
    model.centre += 0.1
    lengths = torch.tensor([0.5, 2.0, 30.0])[:, None]
    assert torch.allclose(model(frames * lengths, mask), model(frames, mask), atol=1e-5)
    assert torch.allclose(model.features(frames, mask).square().mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"hidden_size": 0}, "hidden_size starts at 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"head": "transformer", "hidden_size": 20, "attention": 4}, "multiple"),
        ({"head": "mean", "reference": True}, "a form of head=lstm"),
        ({"head": "lstm", "reference": True, "hidden_size": 2}, "fewer channels"),
    ],
)
def test_settings_that_make_no_head_are_refused(settings: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        HeadConfig(**settings)
