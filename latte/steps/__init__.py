"""The steps of the pipeline: each a module here with a config class and `run(config) -> Manifest`.

`STEPS` is the one table of them: the command `latte <step>`, the sections of a pipeline's settings, the KFP components
and what these run are all made from it.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from latte import uses
from latte.config import Config
from latte.storage import manifest


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        config: name of its config class in the module `latte.steps.<step>`.
        help: one line for its command; empty where there is none.
        components: its components in `components/<step>/component.py` that are kept as YAML.
    """

    config: str
    help: str
    components: tuple[str, ...] = ()


STEPS = {
    "convert": Step(
        "ConvertConfig",
        "Convert published weights, checked strictly, without running anything that the file holds.",
        ("convert", "convert_all"),
    ),
    "encode": Step(
        "EncodeConfig",
        "Encode a dataset's videos into latents: plan, encode, merge.",
        ("convert_and_encode", "encode_plan", "encode_shards", "encode_merge"),
    ),
    "train": Step("TrainConfig", "Train or finetune a Latte on latents; goes on where it was stopped.", ("train",)),
    "sample": Step(
        "SampleConfig",
        "Generate a set of videos from a checkpoint.",
        ("sample", "sample_two", "sample_plan", "sample_shards", "sample_merge"),
    ),
    "score": Step("ScoreConfig", "Measure the Fréchet video distance of a set to real videos.", ("score", "score_two")),
    "promote": Step(
        "PromoteConfig",
        "Promote a checkpoint whose score passes the gate, or roll back.",
        ("promote", "promote_start", "promote_checkpoint"),
    ),
    "promoted": Step("PromotedConfig", ""),
    "report": Step(
        "ReportConfig",
        "Write one HTML page that shows a whole run, a night or a set of clips.",
        ("report", "report_night", "report_set"),
    ),
    "tell": Step("TellConfig", "", ("tell",)),
    "hello": Step("HelloConfig", "", ("hello",)),
}


def config_class(step: str) -> type[Config]:
    """The config class of a step; imports the step's module, not its networks."""
    found: type[Config] = getattr(importlib.import_module(f"latte.steps.{step}"), STEPS[step].config)
    return found


def plan(step: str, config: Config) -> str:
    """Needs of a step whose config says `dry_run`, in lines; nothing is done.

    Raises:
        LatteError: the settings are bad, or what they ask for does not fit.
    """
    lines: str = importlib.import_module(f"latte.steps.{step}").plan(config)
    return lines


def call(step: str, config: Config, function: str = "run", **arguments: Any) -> manifest.Manifest:
    """Call a function of a step's module; what it reads under its root, and what it returns, is noted as in use.

    Args:
        step: name in `STEPS`.
        config: of its config class.
        function: what to call.
        arguments: after the config.

    Raises:
        LatteError: as the step does, or something that it needs is being removed.
    """
    called = getattr(importlib.import_module(f"latte.steps.{step}"), function)
    root: str | None = getattr(config, "root", None)
    if root is None:
        alone: manifest.Manifest = called(config, **arguments)
        return alone
    with uses.noted(root, uses.found_in(root, config.model_dump(), arguments)):
        made: manifest.Manifest = called(config, **arguments)
    # What was found done may be old.
    uses.note(root, uses.found_in(root, made.uri))
    return made
