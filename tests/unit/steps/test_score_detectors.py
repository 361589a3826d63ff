"""Scores by several detectors: a value each, compared metric by metric."""

from pathlib import Path

import numpy as np
import pytest

from latte import storage
from latte.errors import UserError
from latte.facts import ScoreFacts, ScoreMetrics
from latte.metrics import comparison, score_sides
from latte.metrics import protocol as protocols
from latte.metrics.detection import Detect, Detector, publish
from latte.metrics.names import metric_of, values_of
from latte.metrics.protocol import Protocol
from latte.steps import promote, score
from latte.storage import manifest
from tests.unit.steps.test_score import OTHER, PROTOCOL, config, dataset, detector, finish, video_set, work


def keep_features(
    root: Path,
    settings: score.ScoreConfig,
    weights: str,
    seed: int,
    width: int,
    per_clip: int,
    roles: tuple[str, ...] = ("real", "generated"),
) -> None:
    """Keep features of these sides by a detector, whose weights cannot be read."""
    protocol = protocols.resolve(settings.protocol)
    known = Detector.of(manifest.read(weights))
    detect = Detect(known, known.protocol(settings.protocol, protocol, weights))
    for side in (
        score_sides.real(settings.real, manifest.read(settings.real), protocol),
        score_sides.generated(settings.videos, manifest.read(settings.videos), protocol),
    ):
        if side.role not in roles:
            continue
        place = detect.place(side, work(root))
        rows = np.random.default_rng([seed, len(side.role)]).standard_normal((4 * per_clip, width))
        shard = publish(rows, storage.join(place.uri, "features-00000.safetensors"), 4)
        features = manifest.Manifest(kind="features", name="f", uri=place.uri, fingerprint=place.fingerprint)
        manifest.finish(features.model_copy(update={"shards": [shard]}))


def test_several_detectors_give_a_value_each_with_its_interval_and_digest(tmp_path: Path) -> None:
    first, second = detector(tmp_path), detector(tmp_path, random=False)
    videos, real = video_set(tmp_path, 4), dataset(tmp_path, [40] * 4)
    alone = config(tmp_path, videos, real, first, jackknife_groups=2)
    keep_features(tmp_path, alone, first, 1, 3, 1)
    both = alone.model_copy(update={"detectors": [second]})
    done, one = score.run(both), score.run(alone)
    named = ["frechet_random_i3d", "kernel_random_i3d", f"frechet_i3d_{OTHER}", f"kernel_i3d_{OTHER}"]
    assert set(ScoreMetrics.of(done).values) == set(named)
    assert set(ScoreMetrics.of(one).values) == set(named[:2])
    assert done.metrics["frechet_random_i3d"] == one.metrics["frechet_random_i3d"]
    assert comparison.distance(done)[0] == metric_of(done) == named[0]
    for name, value in values_of(done).items():
        assert value.detector == manifest.read(first).weights_file().sha256
        assert (value.kind, value.clips, value.protocol_digest) == ("i3d", 4, Protocol(**both.protocol).digest)
        assert value.interval_low is not None
        assert value.interval_high is not None
        assert value.interval_low <= value.value <= value.interval_high, name
    assert any(note.startswith(f"{named[2]}: the detector is not from the published file") for note in notes(done))
    assert score.run(both).model_dump() == done.model_dump()
    with pytest.raises(UserError, match=r"detectors: .* gives frechet_random_i3d, as another one of them does"):
        score.run(alone.model_copy(update={"detectors": [first]}))
    with pytest.raises(UserError, match=r"detectors .*: weights of vae"):
        score.run(alone.model_copy(update={"detectors": [detector(tmp_path, "vae")]}))


def notes(done: manifest.Manifest) -> list[str]:
    return list(ScoreFacts.of(done).notes)


def test_scores_are_compared_metric_by_metric(tmp_path: Path) -> None:
    first, second = detector(tmp_path), detector(tmp_path, random=False)
    real = dataset(tmp_path, [40] * 4)
    done = []
    for count, more in ((4, [second]), (5, [second]), (4, [])):
        settings = config(tmp_path, video_set(tmp_path, count), real, first, jackknife_groups=2)
        keep_features(tmp_path, settings, first, count, 3, 1)
        done.append(score.run(settings.model_copy(update={"detectors": more})))
    uris = [storage.join(each.uri, "manifest.json") for each in done]
    assert sorted(line.split()[0] for line in comparison.compare(*uris[:2]).splitlines()[::5]) == sorted(
        values_of(done[0])
    )
    told = comparison.compare(uris[1], uris[2])
    assert told.count("A - B") == 2
    assert f"kernel_i3d_{OTHER}: only A has it" in told.splitlines()
    changed = done[0].metrics["values"]["kernel_random_i3d"] | {"detector": "e" * 64}
    values = {**done[0].metrics["values"], "kernel_random_i3d": changed}
    manifest.finish(done[0].model_copy(update={"metrics": {**done[0].metrics, "values": values}}))
    told = comparison.compare(*uris[:2])
    assert told.count("A - B") == 3
    assert "kernel_random_i3d cannot be compared: detector eeeeeeeeeeee… and " in told


def test_a_promoted_set_is_scored_again_as_the_metric_that_is_named_was(tmp_path: Path) -> None:
    first, second = detector(tmp_path, data=b"nor this"), detector(tmp_path, random=False)
    settings = {"jackknife_groups": 2, "detectors": {"i3d": {"features": "pool"}}}
    metric = f"frechet_i3d_pool_{OTHER}"
    sets, candidates = [], []
    for label, count, lengths in (("a", 4, [40] * 4), ("b", 5, [40] * 5)):
        checkpoint, ema = trained(tmp_path, label)
        videos = video_set(tmp_path, count)
        sets.append(videos)
        made = manifest.read(videos)
        manifest.finish(made.model_copy(update={"inputs": {"weights": ema}}))
        given = config(tmp_path, videos, dataset(tmp_path, lengths), first, **settings)
        for seed, weights in ((7, first), (count, second)):
            keep_features(tmp_path, given, weights, seed, 3, 1)
        candidates.append((checkpoint, score.run(given.model_copy(update={"detectors": [second]}))))
    # Against the second night's real clips, by the second detector alone: as the promoted set's score was made.
    before = given.model_copy(update={"videos": sets[0]})
    keep_features(tmp_path, before, second, 4, 3, 1, roles=("generated",))
    for number, (checkpoint, scored) in enumerate(candidates):
        asked = promote.PromoteConfig(
            root=tmp_path.as_uri(), name="m", checkpoint=checkpoint, score=scored.file, metric=metric, detector=first,
            tolerance=1e6,
        )  # fmt: skip
        if number:
            with pytest.raises(UserError, match=rf"detector .*: not the one of the scores by {metric}"):
                promote.run(asked)
        decided = promote.run(asked.model_copy(update={"detectors": [second]}))
    again = decided.metrics["promoted_value"]
    assert again not in (None, *(values_of(scored)[metric].value for _, scored in candidates))
    assert decided.metrics["value"] == values_of(candidates[1][1])[metric].value


def trained(root: Path, label: str) -> tuple[str, str]:
    """Manifest of a checkpoint, and the SHA-256 of its averaged weights."""
    uri = (root / "runs" / label).as_uri()
    shard = manifest.publish_shard(label.encode(), f"{uri}/checkpoints/step-00000006/ema.safetensors")
    config, metrics = {"model": {}}, {"step": 6, "metrics_uri": "none"}
    return finish(root, f"runs/{label}", "checkpoint", shards=[shard], config=config, metrics=metrics), shard.sha256


def test_a_detector_may_have_fields_of_the_protocol_of_its_own(tmp_path: Path) -> None:
    weights = Detector.of(manifest.read(detector(tmp_path)))
    given = {**PROTOCOL, "detectors": {"i3d": {"features": "pool"}}}
    own = weights.protocol(given, protocols.resolve(given), "d")
    assert own == Protocol(**PROTOCOL, features="pool")
    assert protocols.resolve(given) == Protocol(**PROTOCOL)
    for wrong, words in (
        ({"i3d": {"num_clips": 3}}, r"protocol\.detectors\.i3d\.num_clips: all detectors see the same clips"),
        ({"vae": {}}, r"protocol\.detectors: no detector 'vae' \(known: i3d"),
        ({"i3d": {"features": "all"}}, r"protocol\.detectors\.i3d\.features"),
        ({"i3d": 3}, "expected a section"),
    ):
        with pytest.raises(UserError, match=words):
            protocols.resolve({"detectors": wrong})
