"""The distance and the resizing beside the package cd-fvd; I3D beside it is in test_i3d.py."""

import numpy as np
import pytest
import scipy.linalg

from latte.metrics import Moments, feature_distance, frechet_distance
from latte.metrics.protocol import prepare
from tests import peers

FEATURES = 400


def logits(seed: int, count: int, rank: int = FEATURES) -> np.ndarray:
    """Features (N, 400) float32 of the spread that class scores have; at most `rank` directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((rank, FEATURES)) * np.linspace(1.0, 0.05, rank)[:, None]
    return (rng.standard_normal((count, rank)) @ mixing * (1 + 0.2 * seed) + 0.1 * seed).astype(np.float32)


def by_cdfvd(first: np.ndarray, second: np.ndarray) -> float:
    import cdfvd_peer

    peer = cdfvd_peer.module()
    sides = [peer.FeatureStats(capture_mean_cov=True) for _ in range(2)]
    for side, rows in zip(sides, (first, second), strict=True):
        for part in np.array_split(rows, 7):
            side.append(part)
    # The method reads nothing of its object where both sides are given.
    return float(peer.cdfvd.compute_fvd_from_stats(None, *sides))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("count", "rank"), [(900, FEATURES), (120, FEATURES), (900, 150)], ids=["regular", "few clips", "flat features"]
)
def test_the_distance_is_that_of_cdfvd_and_of_scipy(count: int, rank: int) -> None:
    first, second = logits(1, count, rank), logits(2, count + 30, rank)
    ours = frechet_distance(*Moments.of(first).statistics(), *Moments.of(second).statistics())
    theirs = peers.one(f"cdfvd-distance-{count}-{rank}", lambda: np.array(by_cdfvd(first, second)))
    assert ours == pytest.approx(float(theirs.values[0]), rel=1e-6)
    assert feature_distance(first, second) == pytest.approx(ours, rel=1e-9)
    (mu1, sigma1), (mu2, sigma2) = (
        (rows.mean(axis=0), np.cov(rows, rowvar=False, bias=True))
        for rows in (first.astype(float), second.astype(float))
    )
    root = np.real(scipy.linalg.sqrtm(sigma1 @ sigma2))
    assert ours == pytest.approx(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * root), rel=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("size", [(64, 64), (256, 256), (120, 90)])
def test_frames_are_resized_as_cdfvd_resizes_them(size: tuple[int, int]) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, *size, 3), dtype=np.uint8)

    def ask() -> np.ndarray:
        import cdfvd_peer

        return cdfvd_peer.module().preprocess_i3d(clips).numpy()  # (N, 3, F, 224, 224)

    theirs = peers.one(f"cdfvd-resized-{size[0]}-{size[1]}", ask)
    ours = np.stack([prepare(clip) for clip in clips])
    assert np.abs(theirs.same_places(ours) - theirs.values).max() < 1e-4
