"""Ways in which generated video is worse than real video: what the demo's detector learns to tell apart.

Clips are (F, H, W, 3) uint8, latents (F, C, h, w) float32 before the autoencoder's scaling; each function draws how
strong it is from the generator that it is given.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

_BLOCK_SIDES = (8, 16, 32)


def blurred(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blurred over height and width, by 0.8 to 4 pixels."""
    sigma = random.uniform(0.8, 4.0)
    return _to_bytes(gaussian_filter(clip.astype(np.float32), (0, sigma, sigma, 0)))


def noisy(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """With noise of every pixel's own, its standard deviation 8 to 80 of 255."""
    return _to_bytes(clip + random.standard_normal(clip.shape, np.float32) * np.float32(random.uniform(8, 80)))


def shuffled(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The frames in another order."""
    return clip[random.permutation(len(clip))]


def frozen(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One frame all the time."""
    return np.repeat(clip[int(random.integers(len(clip)))][None], len(clip), axis=0)


def scrambled(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Squares of the frame at other places, the same in every frame."""
    frames, height, width, channels = clip.shape
    side = int(random.choice([side for side in _BLOCK_SIDES if side < min(height, width)]))
    rows, columns = height // side, width // side
    blocks = clip.reshape(frames, rows, side, columns, side, channels).transpose(1, 3, 0, 2, 4, 5)
    blocks = blocks.reshape(rows * columns, frames, side, side, channels)[random.permutation(rows * columns)]
    blocks = blocks.reshape(rows, columns, frames, side, side, channels).transpose(2, 0, 3, 1, 4, 5)
    return blocks.reshape(clip.shape)


def blended(clip: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Faded into a clip of another class."""
    share = np.float32(random.uniform(0.3, 0.7))
    return _to_bytes(clip * share + other * (1 - share))


def mushy(latents: np.ndarray, others: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Latents as of a model that has learned too little: a mean of several clips, smoothed, with noise.

    Args:
        latents: of the clip.
        others: (N, F, C, h, w), of other clips of its class.
        random: draws which of this is done, and how much.
    """
    mixed = latents
    if len(others) and random.random() < 0.7:
        shares = random.dirichlet(np.ones(len(others) + 1)).astype(np.float32)
        mixed = np.tensordot(shares, np.concatenate([latents[None], others]), axes=1)
    if random.random() < 0.7:
        across = random.uniform(0.4, 1.5)
        mixed = gaussian_filter(mixed, (random.uniform(0, 2), 0, across, across))
    level = np.float32(random.uniform(0.1, 1.2) * latents.std())
    return (mixed + level * random.standard_normal(latents.shape, np.float32)).astype(np.float32)


# What is done to the frames alone; "blended" needs another clip, "reconstructed" and "mushy" an autoencoder.
OF_FRAMES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blurred": blurred,
    "noisy": noisy,
    "shuffled": shuffled,
    "frozen": frozen,
    "scrambled": scrambled,
}
KINDS = ("real", "reconstructed", "mushy", "blended", *OF_FRAMES)


def _to_bytes(clip: np.ndarray) -> np.ndarray:
    return np.clip(np.round(clip), 0, 255).astype(np.uint8)
