"""`latte-pipeline curate`: what the curation of a run's settings would do to its dataset, before the run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from latte import config
from latte.cli import PAGE, guarded
from pipelines.compiled import PIPELINES

if TYPE_CHECKING:
    from latte.data.config import EncodeConfig
    from pipelines.settings import AnyConfig

_EXAMPLE = """\b
Example:
  latte-pipeline curate -c mine.yaml encode.curate.black={} encode.curate.sharpness.min_variance=40
"""


@click.command(epilog=_EXAMPLE)
@click.option(
    "--pipeline", type=click.Choice(PIPELINES), default=PIPELINES[0], show_default=True, help="Which pipeline."
)
@click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML settings of the run, or a preset's name: skytimelapse, ucf101, …",
)
@click.option("--root", help="s3://bucket/prefix or file:///dir of the run; otherwise runs/<name>/curation.")
@PAGE
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def curate(pipeline: str, path: Path, root: str | None, page: Path, overrides: tuple[str, ...]) -> None:
    """Show what the rules of `encode.curate` would leave out and change, with pictures, before a run.

    What is measured stays under the root, by content: other limits, one video more and the run itself measure only
    what is new. A run with a store of its own measures once more.
    """
    from latte.steps import curate as look
    from pipelines import settings

    def go() -> None:
        given = settings.load(path, overrides, pipeline)
        click.echo(look.show(encode_config(given, root, str(path)), page))

    guarded(go)


def encode_config(given: "AnyConfig", root: str | None, source: str) -> "EncodeConfig":
    """Settings of the encoding that a run would start with, but for the weights, which nothing asks for.

    Args:
        given: settings of a pipeline.
        root: of the run; None: that of the settings, or the run's folder.
        source: where the settings come from, for errors.

    Raises:
        UserError: a key is unknown, missing or has a bad value.
    """
    from latte.data.config import EncodeConfig
    from pipelines.settings import BulkConfig

    name = given.dataset if isinstance(given, BulkConfig) else given.name
    place = root or given.root or str(Path("runs") / given.name / "curation")
    wired = {"root": place, "name": name, "vae": "not asked for"}
    return config.build(EncodeConfig, {**given.encode, **wired}, source, prefix="encode.")
