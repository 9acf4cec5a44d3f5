"""Groups of many embeddings: `python -m tests.benchmarks.similar COUNT [CELLS]`.

COUNT vectors of 512 numbers whose variances fall as 1/i, with a mean that makes unrelated ones have a cosine of 0.5, as
those of CLIP do; a third are copies of others, at cosines of 0.93 to 0.99. They have no clusters, which real films do
have. The cells are as many as those of COUNT vectors, or CELLS, which tells what more vectors take in memory. Prints
which pairs are found by comparing a vector with few cells, CPU-seconds, and the peak of resident memory.
"""

import resource
import sys
import time

import numpy as np

from actors.curation.selecting import vectors as module
from actors.curation.selecting.vectors import Vectors, concepts, similar

WIDTH, COSINE = 512, 0.93


def drawn(count: int, random: np.random.Generator) -> np.ndarray:
    """Vectors float32 (count, WIDTH) of length 1."""
    scale = np.arange(1, WIDTH + 1) ** -0.5
    found = (scale * random.normal(size=(count, WIDTH))).astype(np.float32)
    found[:, 0] += np.sqrt((scale**2).sum())
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    """Print the figures."""
    count, random = int(sys.argv[1]) // 3 * 3, np.random.default_rng(0)
    module.EXACT = 0
    if len(sys.argv) > 2:
        module.CELL = count // int(sys.argv[2])
    with Vectors(count, WIDTH) as vectors:
        pairs = []
        # Copies are far from what they copy: the cells they lie in are found, not given.
        for first in range(0, count // 3, module.BLOCK):
            places = np.arange(first, min(first + module.BLOCK, count // 3))
            values = drawn(len(places), random)
            noise = random.normal(size=values.shape).astype(np.float32)
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            copies = values + random.uniform(0.14, 0.38, (len(places), 1)) * noise
            copies = (copies / np.linalg.norm(copies, axis=1, keepdims=True)).astype(np.float32)
            vectors.put(places, values.astype(np.float16))
            vectors.put(count // 3 + places, copies.astype(np.float16))
            vectors.put(2 * count // 3 + places, drawn(len(places), random).astype(np.float16))
            pairs.append((values * copies).sum(1) >= COSINE + 1e-3)
        close, started = np.concatenate(pairs), time.process_time()
        groups = similar(vectors, COSINE)
        spent = time.process_time() - started
        one, other = groups[: count // 3], groups[count // 3 : 2 * count // 3]
        found = ((one == other) & (one >= 0))[close].mean()
        print(
            f"{count} vectors, {count // module.CELL} cells: {spent:.0f} CPU-s, {found:.4f} of close pairs found",
            flush=True,
        )
        started = time.process_time()
        concepts(vectors, 100)
        print(f"100 concepts: {time.process_time() - started:.0f} CPU-s")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
