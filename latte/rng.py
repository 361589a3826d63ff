"""One random stream per item: who draws, in which order and how often does not change what is drawn."""

import hashlib

import numpy as np


def stream(seed: int, purpose: str, *index: int | str) -> np.random.Generator:
    """A generator that depends on (seed, purpose, index) alone: never on rank, shard count or arrival order.

    Philox (Salmon et al. 2011, a counter-based generator) keyed by the first 128 bits of the SHA-256 of the parts, so
    that neighbouring items have unrelated streams.

    Args:
        seed: the seed of the run.
        purpose: what is drawn, for example "noise" or "clip start"; streams of different purposes are independent.
        index: which item, and whatever else tells this draw from the others, for example a step.
    """
    parts = "\x1f".join([str(int(seed)), purpose, *map(str, index)])
    key = np.frombuffer(hashlib.sha256(parts.encode()).digest()[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
