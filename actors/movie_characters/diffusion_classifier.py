"""Which of many identities predicts the noise best, with as few evaluations of the UNet as the answer needs.

The state of a picture is one matrix: losses (K, P) of K identities on the P pairs (timestep, noise) of a bank, NaN
where none was evaluated. Pairs are evaluated in their order and are the same for all identities, so that identities are
compared pair by pair. After each look, identities that can no longer win are eliminated:

stages    after n pairs only the best k identities stay (Li et al., "Your Diffusion Model is Secretly a Zero-Shot
          Classifier", 2023)
test      identities that are worse than the leader by a paired t-test are eliminated at once
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.media.images import ImageError, read_image
from actors.models.devices import moved
from actors.movie_characters.bases import check_base
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    StableDiffusion,
    check_size,
    crop,
    encode_pictures,
    latent_shape,
    load_diffusion,
    with_unet,
)
from actors.movie_characters.families import TRAIN_TIMESTEPS
from actors.movie_characters.noise_losses import Loss, Weighting, full_bank, noise_losses, staged_bank


@dataclass(frozen=True)
class StagesConfig:
    """When identities are eliminated."""

    samples: tuple[int, ...] = (4, 8, 16, 50)
    """Pairs of timestep and noise that each remaining identity has at the end of each stage; growing, from 2. More
    pairs cost more evaluations and make fewer mistakes."""
    keep: tuple[int, ...] = (8, 4, 2, 1)
    """Identities that remain after each stage; as many numbers as samples, the last is 1."""
    p: float = 0.01
    """An identity is eliminated when a one-sided paired t-test against the leader gives a p below this, in [0, 0.5);
    0: never by the test. The test is of a single look and over noise alone: it is when to stop, not a certainty."""
    look: int = 2
    """Pairs between two t-tests, the first of which comes after the first stage."""

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.keep):
            raise UserError(f"samples and keep belong together, one number per stage: {self.samples} and {self.keep}")
        if list(self.samples) != sorted(set(self.samples)) or self.samples[0] < 2:
            raise UserError(f"samples grow, from 2 or more: {self.samples}")
        if list(self.keep) != sorted(self.keep, reverse=True) or self.keep[-1] != 1:
            raise UserError(f"keep shrinks to 1: {self.keep}")
        if not 0 <= self.p < 0.5 or self.look < 1:
            raise UserError(f"p lies in [0, 0.5) and look starts at 1: {self}")


@dataclass(frozen=True)
class Answer:
    """The answer for one picture."""

    losses: np.ndarray
    """float64 (K,): the mean loss. An eliminated identity's loss is the leader's loss plus their mean gap on shared
    pairs, but not below that of any identity that stayed longer. So the order of losses is that of the answer."""
    best: int
    """Number of the identity that predicts best."""
    p_noise: float
    """p over the noise of this image: the greatest over all other identities of a one-sided paired t-test on shared
    pairs, times the number of identities and of looks (Bonferroni). NaN where there is no other identity, or one pair
    only. It says that the network predicts better under this identity, not that the image shows it."""
    margin: float
    """The least lead over any other, in standard errors of the paired difference."""
    evaluations: int
    """Losses that were evaluated."""


def looks(stages: StagesConfig) -> list[int]:
    """Numbers of pairs after which identities may be eliminated."""
    first, last = stages.samples[0], stages.samples[-1]
    return sorted({*range(first, last, stages.look), *stages.samples})


def survivors(losses: np.ndarray, alive: np.ndarray, stages: StagesConfig) -> np.ndarray:
    """Numbers of `alive` that stay, in its order; losses (K, n) of the pairs so far, without NaN for these."""
    seen = losses[alive].astype(np.float64)
    means = seen.mean(1)
    leader = int(means.argmin())
    stay = np.ones(len(alive), bool)
    if seen.shape[1] >= stages.samples[0] and stages.p > 0:
        stay = ~(paired(seen - seen[leader])[0] < stages.p)
    for samples, keep in zip(stages.samples, stages.keep, strict=True):
        if seen.shape[1] >= samples:
            stay &= means.argsort(kind="stable").argsort(kind="stable") < keep
    stay[leader] = True
    return alive[stay]


def paired(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p that the mean of differences (..., n) is not above 0, and that mean in standard errors, both (...).

    NaN for fewer than two.
    """
    from scipy import stats

    count = differences.shape[-1]
    if count < 2:
        unknown = np.full(differences.shape[:-1], np.nan)
        return unknown, unknown
    mean, error = differences.mean(-1), differences.std(-1, ddof=1) / count**0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.where((mean == 0) & (error == 0), 0.0, mean / error)
    return stats.t.sf(margin, count - 1), margin


def decide(losses: np.ndarray, looked: int = 1) -> Answer:
    """The answer of losses (K, P), NaN where none was evaluated; each row begins with the pairs that it had.

    looked: the most looks after which identities could be eliminated.
    """
    spent = np.isfinite(losses).sum(1)
    longest = np.flatnonzero(spent == spent.max())
    best = int(longest[np.nanmean(losses[longest], axis=1).argmin()])
    estimates, tests = np.empty(len(losses)), []
    for number, row in enumerate(losses):
        own = row[: spent[number]].astype(np.float64)
        ahead = own - losses[best, : spent[number]]
        estimates[number] = own.mean() if number in longest else np.nanmean(losses[best]) + ahead.mean()
        if number != best:
            tests.append([float(one) for one in paired(ahead)])
    floor = -np.inf
    for count in sorted(set(spent.tolist()), reverse=True):
        group = spent == count
        estimates[group] = np.maximum(estimates[group], floor)
        floor = float(np.nextafter(estimates[group].max(), np.inf))
    p, margin = (max(p for p, _ in tests), min(m for _, m in tests)) if tests else (np.nan, np.nan)
    p_noise = float(np.minimum(p * len(losses) * looked, 1))
    return Answer(estimates, best, p_noise, margin, int(spent.sum()))


Ask = Callable[[np.ndarray], np.ndarray]
"""Losses (B,) of evaluations int (B, 3): number of the picture, of the identity, of the pair."""


def race(wanted: Sequence[Sequence[int]], identities: int, stages: StagesConfig, ask: Ask) -> np.ndarray:
    """Losses float32 (N, K, P) with elimination, for the wanted identities of each of N pictures; else NaN.

    Pictures proceed side by side, so that evaluations of all of them fill the batches of the UNet.
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
    """Losses float32 (N, K, P) of every pair for the wanted identities of each of N pictures; else NaN."""
    losses = np.full((len(wanted), identities, pairs), np.nan, np.float32)
    rows = np.array([(number, k, pair) for number, some in enumerate(wanted) for pair in range(pairs) for k in some])
    if len(rows):
        losses[tuple(rows.T)] = ask(rows)
    return losses


@dataclass(frozen=True)
class QuestionConfig:
    """How each picture is classified."""

    method: Literal["staged", "full"] = "staged"
    """staged: identities are eliminated early; full: every identity at every timestep, with one noise."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """When identities are eliminated, of method=staged."""
    loss: Loss = "l2"
    """Loss of the predicted noise: squared or absolute difference, or Huber's with a delta of 1."""
    weighting: Weighting = "uniform"
    """Weights of timesteps: equal, exp(-7 t) with t in 0..1, or the ratio of signal to noise."""
    num_inference_steps: int = 50
    """Number of evenly spaced timesteps."""
    seed: int = 0
    """Seed of the noise."""
    height: int = 512
    """Height in pixels of the picture after scaling and cropping in the middle."""
    width: int = 512
    """Width in pixels of the picture after scaling and cropping in the middle."""

    def __post_init__(self) -> None:
        check_size(height=self.height, width=self.width)
        if not 1 <= self.num_inference_steps <= TRAIN_TIMESTEPS:
            raise UserError(f"num_inference_steps={self.num_inference_steps}: it lies in 1..{TRAIN_TIMESTEPS}")

    @property
    def pairs(self) -> int:
        """Most pairs of timestep and noise that an identity can have."""
        return self.num_inference_steps if self.method == "full" else self.stages.samples[-1]


@dataclass(frozen=True)
class Identity:
    """One learned representation of a character, or the mean over several."""

    name: str
    condition: np.ndarray
    """float32 (S, d)."""
    lora: str = ""
    """The file of a LoRA of the UNet, where it has one."""
    unet: str = ""
    """The folder of a UNet of its own, where it has one."""
    base: dict[str, Any] | None = None
    """The model that it was trained on, as `bases` records it; None where that is not recorded."""
    members: tuple["Identity", ...] = ()
    """Identities whose losses are averaged; empty: its own loss."""

    @property
    def parts(self) -> tuple["Identity", ...]:
        """The identities that the UNet evaluates for it."""
        return self.members or (self,)


class Unets:
    """The UNet as each identity has it: the base, the base with a LoRA of its own, or another one.

    The base is loaded once, whatever the number of identities; a LoRA is put into it.
    """

    def __init__(self, model: StableDiffusion, identities: Sequence[Identity]) -> None:
        # Only workers that hold a model pay for importing torch.
        from actors.movie_characters.loras import Loras

        self._model, self._identities = model, identities
        self._loras = Loras(model.unet, model.family.network)
        self._own: tuple[int, StableDiffusion] | None = None
        self.mixed = model.device != "cpu"
        """Whether rows of one call may have LoRAs of their own, so that calls are full. A CPU gains nothing by it."""

    def shared(self, number: int) -> str:
        """What two identities must have in common for rows of both to be in one call: "" for all with the base UNet."""
        identity = self._identities[number]
        if identity.lora and not identity.unet and self.mixed:
            return self._loras.together(identity.lora)
        return str(number) if identity.lora or identity.unet else ""

    def of(self, *numbers: int) -> StableDiffusion:
        """The model with the UNet of an identity, or with those of one identity per row, which share a call."""
        number, identity = numbers[0], self._identities[numbers[0]]
        if identity.unet:
            if self._own is None or self._own[0] != number:
                # Before the next one is loaded, so that there are never two.
                self._own = None
                self._own = number, with_unet(self._model, identity.unet)
            return self._own[1]
        if identity.lora:
            self._loras.use([self._identities[one].lora for one in numbers])
        else:
            self._loras.leave()
        return self._model


class DiffusionIdentifier:
    """Evaluate how well each identity's condition predicts the noise in pictures.

    Reads:  image    str (N,), where the picture is
            missing  object array (N,), each int (M,): numbers of the identities to evaluate
    Adds:   losses   object array (N,), each float32 (K, P): of K identities on P pairs, NaN where none was evaluated
            error    str (N,), "" where the row is sound, else a code of ImageError; message: details
    """

    def __init__(
        self, model: str, config: DiffusionConfig, question: QuestionConfig, identities: Sequence[Identity]
    ) -> None:
        import torch

        self._config, self._question, self._identities = config, question, identities
        self._model = load_diffusion(model, config)
        self._parts = [part for one in identities for part in one.parts]
        check_base({part.name: part.base for part in self._parts if part.base}, self._model, model)
        self._counts = np.array([len(one.parts) for one in identities])
        self._unets = Unets(self._model, self._parts)
        self._conditions = torch.from_numpy(np.stack([one.condition for one in self._parts])).to(self._model.device)
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
        import torch

        latents = encode_pictures(self._model, pixels)

        def ask(wanted: np.ndarray) -> np.ndarray:
            rows, starts = self._of_parts(wanted)
            calls = self._calls(rows)
            order = np.concatenate(calls)
            asked = moved(torch.from_numpy(rows[order]), self._model.device)
            found = []
            for numbers, some in zip(calls, asked.split([len(one) for one in calls]), strict=True):
                model = self._unets.of(*rows[numbers, 1].tolist())
                question = (latents, self._conditions, self._bank, some, self._question.loss)
                found.append(noise_losses(model, *question, self._config.evaluations_per_call))
            losses = np.empty(len(rows), np.float32)
            # The only place that waits for the device.
            losses[order] = torch.cat(found).cpu().numpy()
            return np.add.reduceat(losses, starts) / self._counts[wanted[:, 1]].astype(np.float32)

        if self._question.method == "full":
            return ask_all(missing, len(self._identities), len(self._bank), ask)
        return race(missing, len(self._identities), self._question.stages, ask)

    def _of_parts(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluations of identities as those of their parts, int (B, 3), and where those of each identity begin."""
        counts = self._counts[wanted[:, 1]]
        starts = counts.cumsum() - counts
        rows = wanted.repeat(counts, axis=0)
        first = self._counts.cumsum() - self._counts
        rows[:, 1] = first[rows[:, 1]] + np.arange(len(rows)) - starts.repeat(counts)
        return rows, starts

    def _calls(self, rows: np.ndarray) -> list[np.ndarray]:
        """Numbers of the evaluations of each call of the UNet."""
        parts = np.unique(rows[:, 1])
        shared = [self._unets.shared(part) for part in parts.tolist()]
        size, calls = self._config.evaluations_per_call, []
        # The base first, then by identity, so that as few calls as may be put in a LoRA.
        for unet in sorted(set(shared), key=lambda one: (one != "", shared.index(one))):
            users = parts[[one == unet for one in shared]]
            group = np.flatnonzero(np.isin(rows[:, 1], users))
            if unet:
                group = group[rows[group, 1].argsort(kind="stable")]
            calls += [group[first : first + size] for first in range(0, len(group), size)]
        return calls
