"""The optimizer steps of one identity, with a checkpoint of each phase: the embedding, then the UNet or its LoRA."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.core import storage
from actors.core.checkpoints import metrics_of, pack, unpack
from actors.core.errors import UserError
from actors.core.temporary import TemporaryFolder
from actors.movie_characters.personalise_settings import PersonaliseConfig, Task


class NotFinite(ArithmeticError):
    """A loss that is not a finite number."""


class Steps:
    """The optimizer steps of one identity, resumed from its checkpoints."""

    def __init__(self, config: PersonaliseConfig, task: Task, device: str) -> None:
        self._config, self._task, self._device = config, task, device
        self.losses: dict[str, list[list[float]]] = {}
        """By phase: [steps done, mean loss since the entry before]."""
        self._saved = time.monotonic()

    def steps(
        self,
        phase: str,
        parameters: list[nn.Parameter],
        condition: Callable[[], Tensor],
        loss: Callable[[Tensor, int], Tensor],
        count: int,
        rate: float | None = None,
    ) -> None:
        """Make the missing steps of a phase; raises NotFinite.

        Args:
            phase: embedding or unet.
            condition: the condition (1, 77, d), computed anew for every pass.
            loss: the loss of a condition, with the noise that a number draws.
            count: steps of the phase in all.
            rate: learning rate; None: emb_learning_rate.
        """
        config, unet = self._config, phase == "unet"
        rate = config.emb_learning_rate if rate is None else rate
        if config.scale_lr:
            rate *= config.train_batch_size * config.gradient_accumulation_steps
        optimizer = _optimizer(config, parameters, rate, config.adam_weight_decay if unet else 0.0)
        model = nn.ParameterList(parameters)
        scaler = torch.amp.GradScaler(self._device, enabled=config.precision == "fp16")
        begin, total = self._restore(phase, model, optimizer, scaler)
        losses = self.losses.setdefault(phase, [])
        pieces = config.gradient_accumulation_steps
        for step in range(begin, count):
            optimizer.zero_grad()
            for piece in range(pieces):
                state = np.random.SeedSequence([config.seed, unet, step, piece]).generate_state(1)
                value = loss(condition(), int(state[0])) / pieces
                scaler.scale(value).backward()
                total += float(value.detach())
            if not math.isfinite(total):
                raise NotFinite(f"the loss of the {phase} is not finite in step {step + 1}: lower its learning rate")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            done = step + 1
            if done % config.log_interval == 0 or done == count:
                losses.append([done, total / (done - (losses[-1][0] if losses else 0))])
                total = 0.0
            # The next phase begins with the embedding as it is at the end of its own.
            if time.monotonic() - self._saved >= config.checkpoint_s or (done == count and not unet):
                self._save(phase, done, total, model, optimizer, scaler)

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
        with TemporaryFolder() as folder:
            path = folder / "state.safetensors"
            pack(path, metrics, model, optimizer)
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
            unpack(path, model, optimizer)
        self.losses[phase] = metrics["losses"]
        scaler.load_state_dict(metrics["scaler"])
        return metrics["step"], metrics["total"]

    def forget(self) -> None:
        """Delete the checkpoints: the identity is done."""
        for phase in ("embedding", "unet"):
            storage.delete(self._uri(phase))


def _optimizer(
    config: PersonaliseConfig, parameters: list[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    """AdamW, which is Adam where decay is 0."""
    kind = adam8bit() if config.use_8bit_adam else torch.optim.AdamW
    betas = config.adam_beta1, config.adam_beta2
    return kind(parameters, lr=rate, betas=betas, eps=config.adam_epsilon, weight_decay=decay)


def adam8bit() -> Any:
    """Adam with moments in 8 bits, of bitsandbytes; raises UserError where the extra is not installed."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError(
            'use_8bit_adam needs the extra adam8bit. Install it: pip install -c constraints.txt -e ".[adam8bit]"'
        ) from error
    return AdamW8bit
