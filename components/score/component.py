"""Score: distances between a set of generated videos and real ones."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(
    root: str,
    name: str,
    settings: dict,
    videos: str,
    real: str,
    detector: str,
    score: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Measure the Fréchet video distance of a video set; named "fvd" only with published detector weights.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the score; it goes to scores/<name>/.
        settings: Keys of latte.steps.score.ScoreConfig: protocol, …
        videos: Manifest of the generated video set.
        real: Manifest of the encoded dataset; it names the real videos.
        detector: Manifest of the detector's weights.
        score: Manifest of the score with its whole protocol.
        metrics: The distance and its interval.

    Returns:
        URI of the manifest of the score, for the tasks after it.
    """
    from components.score.wiring import measure

    return measure(root, name, settings, videos, real, detector, score, metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score_two(
    root: str,
    name: str,
    other_name: str,
    settings: dict,
    videos: str,
    other_videos: str,
    real: str,
    detector: str,
    score: dsl.Output[dsl.Artifact],
    other_score: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Scores", [("of", str), ("of_other", str)]):  # type: ignore[valid-type]
    """Measure the Fréchet video distances of two video sets, one after the other, to the same real clips.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the score of the model in question; it goes to scores/<name>/.
        other_name: Name of the score of the model that it is compared with.
        settings: Keys of latte.steps.score.ScoreConfig: protocol, …
        videos: Manifest of the set of the model in question.
        other_videos: Manifest of the other one's.
        real: Manifest of the encoded dataset; it names the real videos.
        detector: Manifest of the detector's weights.
        score: Manifest of the score with its whole protocol.
        other_score: The same of the other model.
        metrics: The distance and its interval, and with "other_" before their names the other model's.

    Returns:
        URIs of the manifests of both scores, for the tasks after it.
    """
    from components.score.wiring import OtherMetrics, measure

    return (
        measure(root, name, settings, videos, real, detector, score, metrics),
        measure(root, other_name, settings, other_videos, real, detector, other_score, OtherMetrics(metrics)),
    )
