"""Count: the characters of a text."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def count(root: str, name: str, settings: dict, counted: dsl.Output[dsl.Artifact]) -> None:
    """Count the characters of a text.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the count.
        settings: Keys of CountConfig: text.
        counted: Manifest of the count.
    """
    from components.runtime import run_step

    run_step("count", "count", settings, {"root": root, "name": name}, output=counted)
