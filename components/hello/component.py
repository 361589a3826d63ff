"""Hello: the smallest task that needs all that a task needs; `latte-pipeline doctor --run` starts it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def hello(root: str, greeting: dsl.Output[dsl.Artifact], metrics: dsl.Output[dsl.Metrics]) -> None:
    """Write, read and delete a small object in the bucket.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        greeting: Manifest of what was done.
        metrics: Seconds that the bucket took.
    """
    from components.runtime import run_step

    run_step("hello", "hello", {}, {"root": root}, output=greeting, metrics=metrics)
