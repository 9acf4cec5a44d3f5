"""How certain answers of diffusion are, judged by the other images of a run.

A paired test over the noise of one image tells whether a network predicts better under one identity than under another.
That is not whether the image shows this character: a network may be better under one identity on every image, and any
two identities differ more on some images than on others. So the lead of an answer is compared with leads that no
character explains:

centred   the losses of each identity, relative to those of the image, less what is typical of the identity over all
          images: an identity that is better on every image has no lead
lead      how far the answer stands apart from the next best identity, so centred
reference how far the worst identity stands apart from the next worst, in each of the other images

Without knowledge of characters the best identity of an image stands apart as the worst does. Then a share p of the
answers have a lead that is exceeded by a share p of the references. This p is a rank: the noise of single images and
the spread between images are both in the reference, and neither is assumed to be normal. It assumes that differences
which no character explains are as often in favour of an identity as against it.
"""

import warnings
from collections.abc import Sequence

import numpy as np

MIN_IMAGES = 20
"""Images below which no certainty is stated: p is never below 1 / images."""
MIN_IDENTITIES = 3
"""Identities of an image below which none is stated: of two, one leads by as much as the other is behind."""
CERTAIN = 0.05
"""The greatest p of an answer that counts as certain."""
_POLISHES = 10


def calibrated(losses: np.ndarray, best: Sequence[int]) -> np.ndarray:
    """The p of each answer, float64 (N,); NaN where none can be stated.

    Args:
        losses: float (N, K), of K identities on N images, all over the same pairs of timestep and noise; NaN where an
            identity was not evaluated.
        best: the number of the identity that is the answer, for each image.
    """
    asked = np.isfinite(losses)
    # An identity on a few images only has nothing typical that could be taken off.
    rows = np.flatnonzero(~(asked & (asked.sum(0) < MIN_IMAGES)).any(axis=1) & (asked.sum(axis=1) >= MIN_IDENTITIES))
    p = np.full(len(losses), np.nan)
    if len(rows) < MIN_IMAGES:
        return p
    centred, answers = _centred(losses[rows]), np.asarray(best)[rows]
    ranked = np.sort(np.where(np.isnan(centred), -np.inf, centred), axis=1)
    behind = ranked[:, -1] - ranked[:, -2]
    each = np.arange(len(rows))
    others = np.where(np.isnan(centred), np.inf, centred)
    own = others[each, answers]
    others[each, answers] = np.inf
    leads = others.min(axis=1) - own
    exceeding = (behind >= leads[:, None]).sum(axis=1) - (behind >= leads)
    p[rows] = np.where(leads > 0, (1 + exceeding) / len(rows), 1)
    return p


def _centred(losses: np.ndarray) -> np.ndarray:
    """Losses less the mean of the image and what is typical of the identity: the median, so that the images which show
    its character, while they are less than half, hardly count."""
    with warnings.catch_warnings():
        # A column without a single value, of an identity that only other images were evaluated for.
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        centred = losses - np.nanmean(losses, axis=1, keepdims=True)
        for _ in range(_POLISHES):
            centred = centred - np.nanmedian(centred, axis=0)
            centred = centred - np.nanmean(centred, axis=1, keepdims=True)
    return centred


def in_words(p: np.ndarray) -> list[str]:
    """For each answer: certain, not certain, or why no certainty is stated."""
    unknown = f"not stated: it takes {MIN_IMAGES} images, and {MIN_IDENTITIES} identities"
    return [unknown if np.isnan(one) else "certain" if one <= CERTAIN else "not certain" for one in p]
