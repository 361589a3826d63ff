"""`latte <step> -c config.yaml key=value …`: every step of the pipeline as a command."""

from latte import interrupts  # isort: skip - before what takes seconds to import

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from latte import __version__, config_help, machine_errors
from latte.config import Config, load
from latte.errors import LatteError, UserError
from latte.kinds import KINDS
from latte.signals import handled_by, ignore
from latte.steps import STEPS, call, config_class, plan
from latte.storage import manifest
from latte.terminal import shown

KEEP = click.option(
    "--keep",
    "words",
    multiple=True,
    metavar="WHAT",
    help="What stays: a number (the newest of each name; 1 if not given), an age (12h, 14d, 4w), or a place's name "
    "(videos/trained, with or without its fingerprint). May be given several times.",
)
PAGE = click.option(
    "--page", type=click.Path(path_type=Path), default="curation.html", show_default=True, help="Page to write."
)
# command: keys of its config that are given as options, and what they do
FLAGS = {"promote": {"rollback": "Go back to the model that was promoted before; needs only root and name."}}


def guarded(function: Callable[[], Any]) -> Any:
    """Call it; a LatteError becomes one line on standard error and its exit code, Ctrl-C becomes 130.

    So does a full disk (`machine_errors`). Any other exception is a bug and keeps its traceback.
    """
    try:
        return function()
    except LatteError as error:
        click.echo(f"error: {shown(error)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(interrupts.EXIT_CODE)
    except Exception as error:
        if interrupts.came():
            sys.exit(interrupts.EXIT_CODE)
        of_the_machine = machine_errors.explained(error)
        if of_the_machine is None:
            raise
        click.echo(f"error: {shown(of_the_machine)}", err=True)
        sys.exit(of_the_machine.exit_code)


class _Steps(click.Group):
    """The commands below, and one for every step of the table that is not among them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*self.commands, *(name for name, step in STEPS.items() if step.help)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        step = STEPS.get(cmd_name)
        if cmd_name in self.commands or step is None or not step.help:
            return super().get_command(ctx, cmd_name)
        return _step_command(cmd_name, step.help)


@click.group(cls=_Steps, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="latte")
def cli() -> None:
    """Video diffusion with Latte on MindSpore, step by step.

    Each step reads a YAML config (-c), takes overrides as key=value, writes under its `root`
    (s3://bucket/prefix or the path of a folder) and prints the manifest of what it wrote. Where a step
    wants a manifest it takes the uri that another has printed, the manifest's own URI, or a path. Running
    a step again does only what is missing. S3 credentials come from the environment
    (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).

    `latte STEP --help` lists the keys of a step.
    """


@cli.command(help=STEPS["convert"].help)
@click.option("--kind", type=click.Choice(list(KINDS)), help="What the weights are of.")
@click.option("--source", help="Published file: .pt, .pth, .bin, .ckpt, .safetensors or its index.")
@click.option("--target", help="File to write; its ending, .ckpt or .safetensors, names the format.")
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="YAML config instead of the options.")
@click.option("--manifest", "output", type=click.Path(path_type=Path), help="Also write the manifest to this file.")
@click.argument("overrides", nargs=-1)
def convert(
    kind: str | None,
    source: str | None,
    target: str | None,
    path: Path | None,
    output: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Convert published weights, checked strictly, without running anything that the file holds."""
    from latte.steps import convert as step

    def go() -> None:
        if path is None and kind is None and not overrides:
            raise UserError("latte convert: give --kind, --source and --target, or a config with -c")
        options = {"kind": kind, "source": source, "target": target}
        # Quoted, so that a path with a colon or a hash sign is not taken for YAML.
        given = [f"{key}={json.dumps(v, ensure_ascii=False)}" for key, v in options.items() if v is not None]
        _finish(step.run(load(step.ConvertConfig, path, [*given, *overrides])), output)

    with handled_by(_stop), _hanging_up():
        guarded(go)


def _stop(number: int, frame: object) -> None:
    """End by an exception, so that what was half written is cleared away on the way out."""
    ignore()
    click.echo("interrupted; run the same command again to go on", err=True)
    sys.exit(128 + number)


@contextlib.contextmanager
def _hanging_up() -> Iterator[None]:
    """While it lasts, a terminal that closes stops the command as SIGTERM does, unless `nohup` is to prevent it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _finish(result: manifest.Manifest, output: Path | None) -> None:
    if output is not None:
        manifest.write(result, output)
    for key, value in result.summary().items():
        click.echo(f"{key:>14}  {shown(value)}")
    for row in manifest.reject_rows(result.rejects):
        click.echo(row)


def _step_command(name: str, text: str) -> click.Command:
    @click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="YAML config of the step.")
    @click.option("--manifest", "output", type=click.Path(path_type=Path), help="Also write the manifest to this file.")
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    def command(path: Path | None, output: Path | None, overrides: tuple[str, ...], **flags: bool) -> None:
        def go() -> None:
            given = [*overrides, *(f"{key}=true" for key, on in flags.items() if on)]
            config = load(config_class(name), path, given)
            if getattr(config, "dry_run", False):
                click.echo(plan(name, config))
            else:
                _finish(call(name, config), output)

        guarded(go)

    for key, what in FLAGS.get(name, {}).items():
        click.option(f"--{key}", key, is_flag=True, help=what)(command)
    return _StepCommand(name, callback=command, params=_params(command), help=text, short_help=text)


def inside(step: str) -> dict[str, type[Config]]:
    """The keys of settings that take a mapping: what they are of."""
    from latte.metrics.protocol import Protocol
    from latte.models.configs import LatteConfig

    known: dict[str, dict[str, type[Config]]] = {"train": {"model": LatteConfig}, "score": {"protocol": Protocol}}
    return known.get(step, {})


def _params(function: Any) -> list[click.Parameter]:
    return list(reversed(getattr(function, "__click_params__", [])))


class _StepCommand(click.Command):
    """A command whose help lists the keys of its config: nested ones, what they may be, defaults and explanations.

    It may have commands of its own (`latte score compare A B`), told by the first word after it.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command that the words ask for: this one or one of its own."""
        own = COMMANDS.get(self.name or "", {}).get(args[0] if args else "")
        if own is not None:
            return own.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Keys of the config"):
            formatter.write_dl(list(config_help.rows(config_class(self.name or ""), inside(self.name or ""))))
        own = COMMANDS.get(self.name or "", {})
        if own:
            with formatter.section("Commands"):
                formatter.write_dl([(f"{self.name} {key} A B", command.help or "") for key, command in own.items()])


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def _compare(first: str, second: str) -> None:
    """Compare two scores by their manifests; refused, with the reason, where protocol, detector or real side differ."""
    from latte.metrics.comparison import compare

    click.echo(guarded(lambda: compare(first, second)))


@cli.command()
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), help="YAML config of latte encode, or of a pipeline."
)
@PAGE
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def curate(path: Path | None, page: Path, overrides: tuple[str, ...]) -> None:
    """Show what the rules of `curate` would leave out of a dataset and change, with pictures, before it is encoded.

    Takes the config of `latte encode` (its keys: `latte encode --help`); no weights are needed. What is measured stays
    under the root, by content: other limits, one video more and the encoding itself measure only what is new.
    `latte-pipeline curate` takes the settings of a pipeline.
    """
    from latte.steps import curate as look

    guarded(lambda: click.echo(look.show(look.settings(path, overrides), page)))


@cli.command()
@click.argument("root")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(root: str, as_json: bool) -> None:
    """List what lies under ROOT: runs, sets, scores, reports, weights, datasets and what is promoted.

    ROOT is s3://bucket/prefix, file:///dir or the path of a folder. The store that a run of `latte-pipeline run` keeps
    for itself is looked into by `latte-pipeline ls`.
    """
    from latte import inventory
    from latte.inventory import tables

    guarded(lambda: tables.show_items(inventory.listing(root), as_json))


@cli.command()
@click.argument("what", metavar="ROOT-OR-URI")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(what: str, as_json: bool) -> None:
    """Show what one place holds and what it was made from; of a root, what lies under it.

    A place is named by its manifest or its folder, as a URI or a path; <root>/registry/<model> shows its promotions.
    """
    from latte.inventory import tables

    guarded(lambda: tables.show(what, as_json))


@cli.command()
@click.argument("root")
@click.option("--repair", is_flag=True, help="Remove what is damaged, so that the next run makes it again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(root: str, repair: bool, as_json: bool) -> None:
    """Read all that lies under ROOT and compare it with the SHA-256 that was recorded when it was written.

    Prints what is damaged and what would make it again; exit code 1 where something is damaged. With --repair it is
    removed, or put back where ROOT has another copy; exit code 1 where something is left that only a person can mend.
    Not while a step writes there.
    """
    from latte.inventory import tables
    from latte.inventory.verify import verify

    found = guarded(lambda: verify(root, repair))
    tables.show_damages(found, root, as_json)
    sys.exit(1 if found.left else 0)


@cli.command()
@click.argument("root")
@KEEP
@click.option("--yes", is_flag=True, help="Remove what the table shows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(root: str, words: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Show what of ROOT nothing needs any more: what, size, age, why it may go; with --yes, remove it.

    Promoted models, all that their history can go back to, what is written or read at present, what is younger than a
    day, what --keep names, and all that these were made from stay: of a score the set, of a set the checkpoint, of a
    checkpoint the latents, of all of them the weights. So does what has no manifest, for seven days. Decisions are
    never removed, and uploads/ only by `latte-pipeline gc --host`, which asks the cluster's schedules.
    """
    from latte.inventory import tables

    guarded(lambda: tables.show_housekeeping(root, words, yes, as_json))


# step: commands of its own
COMMANDS: dict[str, dict[str, click.Command]] = {"score": {"compare": _compare}}


def main() -> None:
    """Entry point of `latte`."""
    # MindSpore's own log lines would bury the one line that matters.
    os.environ.setdefault("GLOG_v", "3")
    interrupts.end_by_exception()
    cli()


if __name__ == "__main__":
    main()
