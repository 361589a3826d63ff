"""Score: distances between a set of generated videos and real ones."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(
    root: str,
    name: str,
    settings: dict,
    videos: dsl.Input[dsl.Artifact],
    real: dsl.Input[dsl.Dataset],
    detector: dsl.Input[dsl.Model],
    score: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
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
    """
    from components.runtime import run_step

    wired = {"root": root, "name": name, "videos": videos.path, "real": real.path, "detector": detector.path}
    run_step(f"score {name}", "score", settings, wired, output=score, metrics=metrics)
