"""Losses against sums written out one by one, and against what they must come to at their ends."""

import math

import pytest
import torch

from pipelines.genres.losses import asymmetric, class_balanced, class_balanced_weights, cross_entropy

LOGITS = torch.tensor([[2.0, -1.0, 0.3], [-0.5, 4.0, -6.0]])
TARGETS = torch.tensor([[1, 0, 1], [0, 1, 0]])
PAIRS = [(z, y) for z, y in zip(LOGITS.flatten().tolist(), TARGETS.flatten().tolist(), strict=True)]


def p(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_cross_entropy_is_the_mean_over_films_and_classes():
    expected = -sum(math.log(p(z) if y else 1 - p(z)) for z, y in PAIRS) / 6
    assert cross_entropy(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("there", "missing", "margin"), [(0, 4, 0.05), (1, 2, 0.2), (2, 0, 0)])
def test_asymmetric_as_in_the_paper(there: float, missing: float, margin: float):
    def one(z: float, y: int) -> float:
        if y:
            return (1 - p(z)) ** there * math.log(p(z))
        q = max(p(z) - margin, 0)
        return q**missing * math.log(1 - q)

    expected = -sum(one(z, y) for z, y in PAIRS) / 6
    assert asymmetric(LOGITS, TARGETS, there, missing, margin).item() == pytest.approx(expected, rel=1e-5)


def test_losses_are_float32_under_autocast_and_of_narrow_logits():
    weights = class_balanced_weights(torch.tensor([1, 10, 5]), 100)
    narrow = LOGITS.bfloat16()
    for loss in (cross_entropy, asymmetric, lambda logits, targets: class_balanced(logits, targets, *weights)):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(narrow, TARGETS)
        assert found.dtype == torch.float32 and torch.equal(found, loss(narrow.float(), TARGETS))


def test_asymmetric_without_its_settings_is_cross_entropy_and_stays_finite_far_out():
    assert torch.allclose(asymmetric(LOGITS, TARGETS, 0, 0, 0), cross_entropy(LOGITS, TARGETS))
    far = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    loss = asymmetric(far, torch.tensor([[0, 1, 1]]), 0, 4, 0)
    loss.backward()
    assert loss.isfinite() and far.grad is not None and far.grad.isfinite().all()


def test_class_balanced_weighs_by_the_effective_number():
    there, missing = class_balanced_weights(torch.tensor([1, 10, 0]), 100, beta=0.9)
    for number, count in enumerate([1, 10]):
        few, many = (0.1 / (1 - 0.9**n) for n in (count, 100 - count))
        assert there[number].item() == pytest.approx(2 * few / (few + many), rel=1e-5)
        assert missing[number].item() == pytest.approx(2 * many / (few + many), rel=1e-5)
    assert torch.isfinite(there).all() and torch.isfinite(missing).all()
    expected = -sum(
        (there[i % 3] if y else missing[i % 3]).item() * math.log(p(z) if y else 1 - p(z))
        for i, (z, y) in enumerate(PAIRS)
    )
    assert class_balanced(LOGITS, TARGETS, there, missing).item() == pytest.approx(expected / 6, rel=1e-5)


def test_class_balanced_goes_from_even_to_inverse_counts():
    counts = torch.tensor([2, 25])
    even = class_balanced_weights(counts, 50, beta=0)
    assert torch.equal(even[0], torch.ones(2)) and torch.equal(even[1], torch.ones(2))
    there, missing = class_balanced_weights(counts, 50, beta=1 - 1e-9)
    assert torch.allclose(there / missing, torch.tensor([48 / 2, 1.0]), rtol=1e-4)
    with pytest.raises(ValueError, match="beta"):
        class_balanced_weights(counts, 50, beta=1)
