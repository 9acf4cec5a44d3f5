"""Who of many identities predicts the noise best, with as few evaluations of the UNet as the answer needs.

The state of a question is one matrix: losses (K, P) of K identities on the P pairs (timestep, noise) of a bank, NaN
where none was spent. Pairs are taken in their order and are the same for all, so that identities are compared pair by
pair. After each look those that cannot win any more leave:

stages    after so many pairs only so many of the best stay (Li et al., "Your Diffusion Model is Secretly a Zero-Shot
          Classifier", 2023)
test      who loses to the leader by a paired t-test leaves at once, so that it ends when the leader is certain
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import stats

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.media.images import ImageError, read_image
from actors.movie_characters.diffusion import (
    TRAIN_TIMESTEPS,
    DiffusionConfig,
    Loras,
    Loss,
    StableDiffusion,
    Weighting,
    check_size,
    crop,
    encode_pictures,
    full_bank,
    latent_shape,
    load_diffusion,
    noise_losses,
    staged_bank,
    with_unet,
)


@dataclass(frozen=True)
class StagesConfig:
    """When identities leave."""

    samples: tuple[int, ...] = (4, 8, 16, 50)
    """Pairs that each who is left has had at the end of each stage."""
    keep: tuple[int, ...] = (8, 4, 2, 1)
    """How many stay after each stage."""
    p: float = 0.01
    """Who is worse than the leader with a p below this, by a one-sided paired t-test, leaves; 0: nobody does."""
    look: int = 2
    """Pairs between two tests, the first of which comes after the first stage."""

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.keep):
            raise UserError(f"samples and keep belong together, one a stage: {self.samples} and {self.keep}")
        if list(self.samples) != sorted(set(self.samples)) or self.samples[0] < 2:
            raise UserError(f"samples grow from 2 or more: {self.samples}")
        if list(self.keep) != sorted(self.keep, reverse=True) or self.keep[-1] != 1:
            raise UserError(f"keep shrinks to 1: {self.keep}")
        if not 0 <= self.p < 0.5 or self.look < 1:
            raise UserError(f"p lies in [0, .5) and look starts at 1: {self}")


@dataclass(frozen=True)
class Answer:
    """What losses say."""

    losses: np.ndarray
    """float64 (K,): the mean loss; of who left early as much above the leader's as on the pairs that both had, but not
    below that of anyone who stayed longer. So their order is that of the answer."""
    best: int
    """Number of the identity that predicts best."""
    p: float
    """The greatest p, over all others, that they are as good: one-sided paired t-test over the pairs that both had. It
    is that of a single look. NaN where there is no other, or one pair only."""
    margin: float
    """The least lead over any other, in standard errors of the paired difference."""
    evaluations: int
    """Evaluations of the UNet that were spent."""


def looks(stages: StagesConfig) -> list[int]:
    """After how many pairs it is asked who leaves."""
    first, last = stages.samples[0], stages.samples[-1]
    return sorted({*range(first, last, stages.look), *stages.samples})


def survivors(losses: np.ndarray, alive: np.ndarray, stages: StagesConfig) -> np.ndarray:
    """Numbers of those who stay of `alive`, in its order; losses (K, n) of the pairs so far, without NaN for them."""
    seen = losses[alive].astype(np.float64)
    means = seen.mean(1)
    leader = int(means.argmin())
    stay = np.ones(len(alive), bool)
    if seen.shape[1] >= stages.samples[0] and stages.p > 0:
        stay = ~(np.array([paired(row - seen[leader])[0] for row in seen]) < stages.p)
    for samples, keep in zip(stages.samples, stages.keep, strict=True):
        if seen.shape[1] >= samples:
            stay &= means.argsort(kind="stable").argsort(kind="stable") < keep
    stay[leader] = True
    return alive[stay]


def paired(differences: np.ndarray) -> tuple[float, float]:
    """One-sided p that the mean (n,) is not above 0, and the mean in standard errors; NaN for fewer than two."""
    count = len(differences)
    if count < 2:
        return np.nan, np.nan
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / count**0.5
    if error == 0:
        return (0.5, 0.0) if mean == 0 else (float(mean < 0), np.copysign(np.inf, mean))
    return float(stats.t.sf(mean / error, count - 1)), mean / error


def decide(losses: np.ndarray) -> Answer:
    """The answer of losses (K, P), NaN where none was spent; each row begins with the pairs that it had."""
    spent = np.isfinite(losses).sum(1)
    longest = np.flatnonzero(spent == spent.max())
    best = int(longest[np.nanmean(losses[longest], axis=1).argmin()])
    estimates, tests = np.empty(len(losses)), []
    for number, row in enumerate(losses):
        own = row[: spent[number]].astype(np.float64)
        ahead = own - losses[best, : spent[number]]
        estimates[number] = own.mean() if number in longest else np.nanmean(losses[best]) + ahead.mean()
        if number != best:
            tests.append(paired(ahead))
    floor = -np.inf
    for count in sorted(set(spent.tolist()), reverse=True):
        group = spent == count
        estimates[group] = np.maximum(estimates[group], floor)
        floor = float(np.nextafter(estimates[group].max(), np.inf))
    p, margin = (max(p for p, _ in tests), min(m for _, m in tests)) if tests else (np.nan, np.nan)
    return Answer(estimates, best, p, margin, int(spent.sum()))


Ask = Callable[[np.ndarray], np.ndarray]
"""Losses (B,) of evaluations int (B, 3): number of the picture, of the identity, of the pair."""


def race(wanted: Sequence[Sequence[int]], identities: int, stages: StagesConfig, ask: Ask) -> np.ndarray:
    """Losses float32 (N, K, P) of a staged question for the identities that are wanted with each of N pictures.

    NaN where none was spent.
    Pictures go on side by side, so that evaluations of all of them fill the batches of the UNet.
    """
    losses = np.full((len(wanted), identities, stages.samples[-1]), np.nan, np.float32)
    alive = [np.array(some, int) for some in wanted]
    done = 0
    for look in looks(stages):
        first = look == stages.samples[0]
        open_ = [number for number, some in enumerate(alive) if len(some) > 1 or (first and len(some))]
        asked = [np.array([(number, k, pair) for pair in range(done, look) for k in alive[number]]) for number in open_]
        if not asked:
            break
        rows = np.concatenate(asked)
        losses[tuple(rows.T)] = ask(rows)
        for number in open_:
            alive[number] = survivors(losses[number, :, :look], alive[number], stages)
        done = look
    return losses


def ask_all(wanted: Sequence[Sequence[int]], identities: int, pairs: int, ask: Ask) -> np.ndarray:
    """Losses float32 (N, K, P) of every pair for the identities that are wanted with each of N pictures, else NaN."""
    losses = np.full((len(wanted), identities, pairs), np.nan, np.float32)
    rows = np.array([(number, k, pair) for number, some in enumerate(wanted) for pair in range(pairs) for k in some])
    if len(rows):
        losses[tuple(rows.T)] = ask(rows)
    return losses


@dataclass(frozen=True)
class QuestionConfig:
    """What is asked about each picture."""

    method: Literal["staged", "full"] = "staged"
    """staged: identities leave as soon as they cannot win; full: every identity at every timestep, with one noise."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """When identities leave, of staged."""
    loss: Loss = "l2"
    """Of the predicted noise: its squared or absolute difference, or Huber's with a delta of 1."""
    weighting: Weighting = "uniform"
    """Of timesteps: all alike, exp(-7 t) with t in 0..1, or by the ratio of signal to noise."""
    num_inference_steps: int = 50
    """How many evenly spaced timesteps there are."""
    seed: int = 0
    """Of the noise."""
    height: int = 512
    """Of the picture, after it was scaled and cropped in the middle."""
    width: int = 512
    """The same."""

    def __post_init__(self) -> None:
        check_size(height=self.height, width=self.width)
        if not 1 <= self.num_inference_steps <= TRAIN_TIMESTEPS:
            raise UserError(f"num_inference_steps={self.num_inference_steps}: it lies in 1..{TRAIN_TIMESTEPS}")

    @property
    def pairs(self) -> int:
        """Pairs of a timestep and noise that an identity has at most."""
        return self.num_inference_steps if self.method == "full" else self.stages.samples[-1]


@dataclass(frozen=True)
class Identity:
    """One learned representation of a character."""

    name: str
    condition: np.ndarray
    """float32 (77, d)."""
    lora: str = ""
    """The file of a LoRA of the UNet, where it has one."""
    unet: str = ""
    """The folder of a UNet of its own, where it has one."""


class Unets:
    """The UNet as each identity has it: the base, the base with a LoRA of its own, or another one.

    The base is loaded once, whatever the number of identities; a LoRA is put into it.
    """

    def __init__(self, model: StableDiffusion, identities: Sequence[Identity]) -> None:
        self._model, self._identities = model, identities
        self._loras = Loras(model.unet)
        self._own: tuple[int, StableDiffusion] | None = None

    def of(self, number: int) -> StableDiffusion:
        """The model with the UNet of an identity."""
        identity = self._identities[number]
        if identity.unet:
            if self._own is None or self._own[0] != number:
                # Before the next one is loaded, so that there are never two.
                self._own = None
                self._own = number, with_unet(self._model, identity.unet)
            return self._own[1]
        if identity.lora:
            self._loras.use(identity.lora)
        else:
            self._loras.leave()
        return self._model


class DiffusionIdentifier:
    """Ask of pictures which identity's condition predicts their noise best.

    Reads:  image    str (N,), where the picture is
            missing  object array (N,), each int (M,): numbers of the identities to be asked for
    Adds:   losses   object array (N,), each float32 (K, P): of K identities on P pairs, NaN where none was spent
            error    str (N,), "" where the row is sound, else a code of ImageError; message says more
    """

    def __init__(
        self, model: str, config: DiffusionConfig, question: QuestionConfig, identities: Sequence[Identity]
    ) -> None:
        import torch

        self._config, self._question, self._identities = config, question, identities
        self._model = load_diffusion(model, config)
        self._unets = Unets(self._model, identities)
        self._conditions = torch.from_numpy(np.stack([one.condition for one in identities])).to(self._model.device)
        shape = latent_shape(self._model.vae, question.height, question.width)
        about = question.num_inference_steps, shape, question.seed, question.weighting
        scheduler = self._model.scheduler
        bank = (
            full_bank(scheduler, *about)
            if question.method == "full"
            else staged_bank(scheduler, question.pairs, *about)
        )
        self._bank = bank.to(self._model.device)

    def __call__(self, batch: Batch) -> Batch:
        pixels, errors = [], []
        for uri in batch["image"]:
            try:
                pixels.append(crop(read_image(str(uri)), self._question.height, self._question.width))
                errors.append(("", ""))
            except ImageError as bad:
                errors.append((bad.code, str(bad)))
        sound = [number for number, (code, _) in enumerate(errors) if not code]
        losses = np.empty(len(errors), object)
        losses[:] = [np.zeros((len(self._identities), 0), np.float32) for _ in errors]
        if sound:
            missing = [batch["missing"][number].tolist() for number in sound]
            for number, found in zip(sound, self._losses(np.stack(pixels), missing), strict=True):
                losses[number] = found
        codes, messages = zip(*errors, strict=True)
        return {**batch, "losses": losses, "error": np.array(codes, object), "message": np.array(messages, object)}

    def _losses(self, pixels: np.ndarray, missing: list[list[int]]) -> np.ndarray:
        latents = encode_pictures(self._model, pixels)

        def ask(rows: np.ndarray) -> np.ndarray:
            found = np.empty(len(rows), np.float32)
            for numbers in self._groups(rows):
                model = self._unets.of(int(rows[numbers[0], 1]))
                found[numbers] = noise_losses(
                    model,
                    latents,
                    self._conditions,
                    self._bank,
                    rows[numbers],
                    self._question.loss,
                    self._config.evaluations_per_call,
                )
            return found

        if self._question.method == "full":
            return ask_all(missing, len(self._identities), len(self._bank), ask)
        return race(missing, len(self._identities), self._question.stages, ask)

    def _groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """Numbers of the evaluations that one UNet makes, for each UNet."""
        own = np.array([bool(one.lora or one.unet) for one in self._identities])
        users = np.where(own[rows[:, 1]], rows[:, 1], -1)
        return [np.flatnonzero(users == user) for user in np.unique(users)]
