"""The optimizer steps of one identity, with a checkpoint of each phase: the embedding, then the UNet or its LoRA."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.core import storage
from actors.core.checkpoints import metrics_of, state_of, unpack, write_file
from actors.core.errors import UserError
from actors.core.temporary import TemporaryFolder
from actors.movie_characters.diffusion import copy_all
from actors.movie_characters.peers import Peers
from actors.movie_characters.personalise_settings import PersonaliseConfig, Task
from actors.movie_characters.sharding import gathered, is_divided, like


class NotFinite(ArithmeticError):
    """A loss that is not a finite number."""


class Trained:
    """Parameters in float32, and the same ones in the precision that the UNet computes in, where that is another.

    The UNet computes without autocast, which would cast its weights in every pass and compute norms in float32.
    """

    def __init__(self, used: list[nn.Parameter], exact: list[Tensor] | None = None) -> None:
        """used: what the loss depends on; exact: its float32 values, where they are kept beside it."""
        self._used = used
        self.parameters = used if exact is None else [nn.Parameter(one) for one in exact]
        """What the optimizer trains, float32."""
        self._apart = exact is not None

    def clear(self) -> None:
        """Forget gradients."""
        for one in (*self._used, *self.parameters):
            one.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the gradients of a backward pass to those in float32."""
        if not self._apart:
            return
        some = [
            (own, used, used.grad)
            for own, used in zip(self.parameters, self._used, strict=True)
            if used.grad is not None
        ]
        found = [torch.empty_like(own) for own, *_ in some]
        copy_all(found, [grad for *_, grad in some])
        for (own, used, _), grad in zip(some, found, strict=True):
            own.grad, used.grad = grad if own.grad is None else own.grad.add_(grad), None

    @torch.no_grad()
    def spread(self) -> None:
        """Round the float32 values to those that the UNet computes with."""
        if self._apart:
            copy_all(self._used, self.parameters)

    def finish(self) -> None:
        """Put the float32 values in the place of the rounded ones."""
        self.clear()
        for used, own in zip(self._used, self.parameters if self._apart else (), strict=self._apart):
            used.data = own.data


class Steps:
    """The optimizer steps of one identity, resumed from its checkpoints, by one worker or by several together."""

    def __init__(self, config: PersonaliseConfig, task: Task, device: str, peers: Peers | None = None) -> None:
        self._config, self._task, self._device, self._peers = config, task, device, peers or Peers()
        self.losses: dict[str, list[list[float]]] = {}
        """By phase: [steps done, mean loss since the entry before]."""
        self._saved = time.monotonic()

    def steps(
        self,
        phase: str,
        trained: Trained,
        condition: Callable[[], Tensor],
        loss: Callable[[Tensor, int, slice], Tensor],
        count: int,
        rate: float | None = None,
    ) -> None:
        """Make the missing steps of a phase; raises NotFinite.

        Args:
            phase: embedding or unet.
            trained: what the steps train.
            condition: the condition (1, rows, d), computed anew for every pass.
            loss: the mean loss of a condition over some rows of a piece of a step, whose noise a number draws.
            count: steps of the phase in all.
            rate: learning rate; None: emb_learning_rate.
        """
        config, unet = self._config, phase == "unet"
        rate = config.emb_learning_rate if rate is None else rate
        if config.scale_lr:
            rate *= config.rows_per_step
        decay = config.adam_weight_decay if unet else 0.0
        optimizer = _optimizer(config, trained.parameters, rate, decay, self._device)
        model = nn.ParameterList(trained.parameters)
        scaler = torch.amp.GradScaler(self._device, enabled=config.precision == "fp16")
        begin, total = self._restore(phase, model, optimizer, scaler)
        trained.spread()
        losses = self.losses.setdefault(phase, [])
        unread: list[Tensor] = []
        for step in range(begin, count):
            trained.clear()
            unread.append(self._backward(trained, condition, loss, scaler, [config.seed, unet, step]))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained.parameters, config.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            trained.spread()
            done = step + 1
            record = done % config.log_interval == 0 or done == count
            # The next phase begins with the embedding as it is at the end of its own.
            save = self._peers.agreed(self._due()) or (done == count and not unet)
            if not record and not save:
                continue
            found = torch.stack(unread).tolist()
            # A worker that reads losses only to save them does not raise alone: the others would wait for it.
            save = save and all(map(math.isfinite, found))
            if record:
                _check(found, phase, done)
            if record or save:
                total, unread = total + sum(found), []
            if record:
                losses.append([done, total / (done - (losses[-1][0] if losses else 0))])
                total = 0.0
            if save and (self._peers.rank == 0 or self._peers.sharded):
                self._save(phase, done, total, model, optimizer, scaler)

    def _due(self) -> bool:
        """Whether this worker is to save a checkpoint by now."""
        return self._peers.rank == 0 and time.monotonic() - self._saved >= self._config.checkpoint_s

    def _backward(
        self,
        trained: Trained,
        condition: Callable[[], Tensor],
        loss: Callable[[Tensor, int, slice], Tensor],
        scaler: torch.amp.GradScaler,
        seed: list[int],
    ) -> Tensor:
        """Leave the gradient of one step over the rows of all workers; returns its loss, still on the device."""
        size, rows = self._config.train_batch_size, self._config.rows_per_step
        seen = []
        for mine in self._peers.pieces(rows, size):
            count = mine.stop - mine.start
            piece = (mine.start if count else mine.start - 1) // size
            # A pass without rows of its own computes with one, which counts for nothing.
            start = mine.start - piece * size - (not count)
            state = np.random.SeedSequence([*seed, piece]).generate_state(1)
            value = loss(condition(), int(state[0]), slice(start, start + max(count, 1))) * count / rows
            scaler.scale(value).backward()
            trained.gather()
            seen.append(value.detach())
        found = torch.stack(seen).sum()
        grads = [one.grad for one in trained.parameters if one.grad is not None]
        # Those of a divided network are added in the backward pass.
        self._peers.add([*(one for one in grads if not (self._peers.sharded and is_divided(one))), found])
        return found

    def _uri(self, phase: str) -> str:
        return storage.join(self._config.output, "checkpoints", self._task.name, f"{phase}.safetensors")

    def _save(
        self,
        phase: str,
        done: int,
        total: float,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        metrics = {
            "settings": self._task.settings,
            "step": done,
            "total": total,
            "losses": self.losses[phase],
            "scaler": scaler.state_dict(),
        }
        tensors = state_of(model, optimizer)
        if self._peers.sharded:
            tensors = gathered(tensors, keep=self._peers.rank == 0)
        if self._peers.rank == 0:
            with TemporaryFolder() as folder:
                path = folder / "state.safetensors"
                write_file(path, metrics, tensors)
                storage.upload(path, self._uri(phase))
        self._saved = time.monotonic()

    def _restore(
        self, phase: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> tuple[int, float]:
        """Load the checkpoint of these settings; returns the steps done and the sum of losses since the last record."""
        if not storage.exists(self._uri(phase)):
            return 0, 0.0
        with storage.local(self._uri(phase)) as path:
            metrics = metrics_of(path)
            if metrics["settings"] != self._task.settings:
                return 0, 0.0
            unpack(path, model, optimizer, like=like)
        self.losses[phase] = metrics["losses"]
        scaler.load_state_dict(metrics["scaler"])
        return metrics["step"], metrics["total"]

    def forget(self) -> None:
        """Delete the checkpoints: the identity is done."""
        for phase in ("embedding", "unet"):
            storage.delete(self._uri(phase))


def _check(losses: list[float], phase: str, done: int) -> None:
    """Raise NotFinite where one of the losses of the last steps is no number."""
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            step = done - (len(losses) - 1 - number)
            raise NotFinite(f"the loss of the {phase} is not finite in step {step}: lower its learning rate")


def _optimizer(
    config: PersonaliseConfig, parameters: list[nn.Parameter], rate: float, decay: float, device: str
) -> torch.optim.Optimizer:
    """AdamW, which is Adam where decay is 0."""
    how: dict[str, Any] = {"lr": rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
    if config.use_8bit_adam:
        return adam8bit()(parameters, weight_decay=decay, **how)
    # On a GPU one launch for all parameters, and with fp16 no step waits to hear whether gradients overflowed.
    return torch.optim.AdamW(parameters, weight_decay=decay, fused=True if device == "cuda" else None, **how)


def adam8bit() -> Any:
    """Adam with moments in 8 bits, of bitsandbytes; raises UserError where the extra is not installed."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError(
            'use_8bit_adam needs the extra adam8bit. Install it: pip install -c constraints.txt -e ".[adam8bit]"'
        ) from error
    return AdamW8bit
