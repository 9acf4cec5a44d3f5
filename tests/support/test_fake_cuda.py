"""What the CUDA device that is none refuses and counts, and that its numbers are those of the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.fake_cuda import FakeCuda


def both(make: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
    """What a computation finds on the CPU and on the device."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        made = make(device)
        assert made.device.type == device
        found.append(made.detach().cpu())
    return found[0], found[1]


def test_tensors_made_there_are_there_and_copies_are_counted(cuda: FakeCuda) -> None:
    made = [torch.ones(3, device="cuda"), torch.tensor([1.0, 2], device="cuda"), torch.arange(4, device="cuda")]
    made += [torch.zeros_like(made[0]), made[0].new_tensor([1.0]), made[0][:2], made[0] + 1]
    assert all(one.device == torch.device("cuda:0") and one.is_cuda for one in made)
    cuda.reset()
    there = torch.ones(3).to("cuda")
    assert (cuda.to_device, cuda.to_host, cuda.waits) == (1, 0, 1)
    there.to("cuda").cuda().to(torch.float64).to(there)
    assert (cuda.to_device, cuda.to_host, cuda.waits) == (1, 0, 1)
    assert there.cpu().device.type == "cpu" and there.tolist() == [1, 1, 1]
    assert (cuda.to_device, cuda.to_host, cuda.waits) == (1, 2, 3)


def mismatched(cuda: FakeCuda, say: str, what: Callable[[], object], kind: type[Exception] = RuntimeError) -> None:
    with pytest.raises(kind, match=say):
        what()
    with torch.inference_mode(), pytest.raises(kind, match=say):
        what()


def test_what_cuda_refuses_is_refused(cuda: FakeCuda) -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device="cuda")
    half, whole = there.bfloat16(), there.long()
    linear, picture = nn.Linear(3, 3).to("cuda"), torch.zeros(1, 3, 8, 8, device="cuda")
    mismatched(cuda, "at least two devices", lambda: there + here)
    mismatched(cuda, "at least two devices", lambda: linear(here))
    mismatched(cuda, "at least two devices", lambda: torch.cat([here, there]))
    mismatched(cuda, "at least two devices", lambda: functional.mse_loss(there, here))
    mismatched(cuda, "same dtype", lambda: linear(half))
    mismatched(cuda, "same dtype", lambda: half @ there)
    mismatched(cuda, "dtype|should be the same", lambda: nn.Conv2d(3, 3, 3).to("cuda")(picture.bfloat16()))
    mismatched(cuda, "not implemented for", lambda: whole @ whole)
    mismatched(cuda, "'Byte'", lambda: functional.interpolate(picture.byte(), size=4, mode="bilinear"))
    mismatched(cuda, "indices should be", lambda: here[torch.tensor([0], device="cuda")])
    mismatched(cuda, "Use Tensor.cpu", lambda: there.numpy(), TypeError)
    mismatched(cuda, "Use Tensor.cpu", lambda: np.asarray(there), TypeError)
    generator = torch.Generator("cuda")
    mismatched(
        cuda, "'cuda' device type for generator", lambda: torch.rand(3, generator=torch.Generator(), device="cuda")
    )
    mismatched(cuda, "'cpu' device type for generator", lambda: torch.rand(3, generator=generator))
    # These it takes.
    assert (there * torch.tensor(2.0) + 1).sum().item() == 27
    assert torch.rand(3, generator=generator, device="cuda").is_cuda


@pytest.mark.parametrize("inference", [False, True])
def test_waits_are_counted_also_inside_of_calls(cuda: FakeCuda, inference: bool) -> None:
    there = torch.arange(6.0, device="cuda")
    mask = there > 2

    def waits(what: Callable[[], object]) -> int:
        cuda.reset()
        with torch.inference_mode(inference):
            what()
        return cuda.waits

    assert waits(lambda: there.sum().item()) == waits(lambda: float(there[0])) == waits(lambda: bool(mask[0])) == 1
    assert waits(lambda: there[mask]) == waits(lambda: torch.where(mask)) == waits(lambda: torch.nonzero(mask)) == 1
    assert waits(lambda: there[torch.tensor([0, 1])]) == waits(lambda: there[[0, 1]]) == 1
    assert waits(lambda: there[torch.arange(2, device="cuda")]) == waits(lambda: there[:2] + there.max()) == 0
    assert waits(lambda: torch.equal(there, there)) == waits(lambda: there.unique()) == 1
    assert waits(lambda: functional.one_hot(mask.long())) > waits(lambda: functional.one_hot(mask.long(), 2)) == 0
    assert waits(lambda: torch.cuda.synchronize()) == waits(lambda: torch.cuda.Event().synchronize()) == 1
    assert waits(lambda: there.clone().masked_fill_(mask, 0)) == 0
    changed = there.clone()
    assert waits(lambda: changed.__setitem__(mask, 0)) == 0 and changed.tolist() == [0, 1, 2, 0, 0, 0]


def test_copies_from_pinned_memory_do_not_wait_and_those_to_the_host_are_garbage_until_something_does(
    cuda: FakeCuda,
) -> None:
    plain, pinned = torch.ones(3), torch.ones(3).pin_memory()
    assert pinned.is_pinned() and not plain.is_pinned() and torch.empty(2, pin_memory=True).is_pinned()
    cuda.reset()
    there = pinned.to("cuda", non_blocking=True)
    assert (cuda.to_device, cuda.waits) == (1, 0)
    plain.to("cuda", non_blocking=True)
    assert (cuda.to_device, cuda.waits) == (2, 1)
    with torch.cuda.stream(torch.cuda.Stream()):
        found = there.to("cpu", non_blocking=True)
        into = torch.empty(3, pin_memory=True)
        into.copy_(there, non_blocking=True)
    assert found.tolist() != [1, 1, 1] != into.tolist() and (cuda.to_host, cuda.waits) == (2, 1)
    torch.cuda.current_stream().synchronize()
    assert found.tolist() == [1, 1, 1] == into.tolist() and (cuda.to_host, cuda.waits) == (2, 2)


def networks() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    return {
        "convolutions": lambda: (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 2)),
            (2, 3, 8, 8),
        ),
        "lstm": lambda: (First(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)), (2, 5, 4)),
        "transformer": lambda: (
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True),
            (2, 5, 8),
        ),
    }


class First(nn.Module):
    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)[0]


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_trainings_and_answers_are_those_of_the_cpu(cuda: FakeCuda, name: str, optimizer: Any) -> None:
    def trained(device: str) -> Tensor:
        model, shape = networks()[name]()
        model.to(device)
        rows = torch.rand(shape).to(device)
        steps = optimizer(model.parameters(), lr=0.01)
        for _ in range(2):
            steps.zero_grad()
            model(rows).float().square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
        assert all(one.grad is not None and one.grad.device == one.device for one in model.parameters())
        with torch.inference_mode():
            return model.eval()(rows)

    here, there = both(trained)
    torch.testing.assert_close(there, here)


def test_autocast_is_that_of_cuda(cuda: FakeCuda) -> None:
    x, norm = torch.rand(4, 4, device="cuda"), nn.LayerNorm(4).to("cuda")
    linear = nn.Linear(4, 4).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        low = linear(x)
        dtypes = [
            one.dtype for one in (low, x @ x, norm(low), low.softmax(1), low.exp(), low.sum(), low + low, low * x)
        ]
        loss = functional.cross_entropy(low, torch.zeros(4, dtype=torch.long, device="cuda"))
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
    bfloat, single = torch.bfloat16, torch.float32
    assert dtypes == [bfloat, bfloat, single, single, single, single, bfloat, single] and loss.dtype == single
    loss.backward()
    assert linear.weight.grad is not None and linear.weight.grad.dtype == single and linear.weight.grad.is_cuda
    with torch.autocast("cuda"):
        assert (x @ x).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == bfloat


def test_nothing_of_it_is_left(cuda: FakeCuda) -> None:
    cuda.__exit__(None, None, None)
    try:
        assert not torch.cuda.is_available() and FakeCuda.now is None
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(1, device="cuda")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.rand(2, 2).bfloat16().softmax(1).dtype == torch.bfloat16
    finally:
        cuda.__enter__()
