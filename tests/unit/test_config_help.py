"""Help that answers: nested keys, what they may be, and what was meant by a key that is not there."""

from typing import Any, Literal

import pytest
from click.testing import CliRunner
from pydantic import Field

from latte import config_help
from latte.cli import cli
from latte.config import Config, build, meant
from latte.errors import UserError
from pipelines import settings
from pipelines.cli import cli as pipeline_cli


class Inner(Config):
    depth: int = Field(default=2, gt=0, le=9, description="layers")
    kind: Literal["plain", "fancy"] | None = Field(default=None, description="of them")


class Outer(Config):
    name: str
    rate: float = Field(default=0.5, ge=0, lt=1, description="of all")
    on: bool = Field(default=False, description="or off")
    inner: Inner = Field(default_factory=Inner, description="a section")
    other: Inner = Field(default_factory=Inner, description="another")
    free: dict[str, Any] = Field(default_factory=lambda: {"preset": "S"}, description="keys of Inner")


def test_every_key_is_explained_with_what_it_may_be_and_its_default() -> None:
    assert list(config_help.rows(Outer, {"free": Inner}, but=("rate",))) == [
        ("name", "[required]"),
        ("on", "or off [true or false; default false]"),
        ("inner", "a section [its keys have defaults]"),
        ("inner.depth", "layers [above 0, at most 9; default 2]"),
        ("inner.kind", "of them [plain or fancy; default null]"),
        ("other", "another [keys as of inner]"),
        ("free", "keys of Inner [keys as of inner]"),
    ]
    assert dict(config_help.rows(Outer))["rate"] == "of all [at least 0, below 1; default 0.5]"
    assert dict(config_help.rows(Outer))["free"] == "keys of Inner [default {preset: S}]"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "a", "raet": 1}, r"unknown key raet \(did you mean rate\?\)"),
        ({"name": "a", "inner": {"dept": 1}}, r"unknown key inner\.dept \(did you mean inner\.depth\?\)"),
        ({"name": "a", "depth": 1}, r"unknown key depth \(did you mean inner\.depth or other\.depth\?\)"),
        ({"name": "a", "xyz": 1}, r"unknown key xyz \(known: free, inner, name, on, other, rate\)"),
        ({"name": "a", "inner": {"xyz": 1}}, r"unknown key inner\.xyz \(known: inner\.depth, inner\.kind\)"),
    ],
)
def test_an_unknown_key_says_what_was_meant(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(Outer, values)
    assert meant("a", []) == ""


def test_the_help_of_every_step_shows_nested_keys() -> None:
    def told(step: str) -> str:
        return " ".join(CliRunner().invoke(cli, [step, "--help"]).output.split())

    assert "at most so many videos, from the classes in turn [above 0; default null]" in told("encode")
    assert "dataset.layout" in told("encode")
    assert "[fp32, fp16 or bf16; default fp32]" in told("train")
    assert "model.condition what the video is to show [none, class or text; default none]" in told("train")
    assert "protocol.num_clips" in told("score")


@pytest.mark.parametrize("pipeline", sorted(settings.PIPELINES))
def test_the_keys_of_a_pipelines_settings_are_listed(pipeline: str) -> None:
    done = CliRunner().invoke(pipeline_cli, ["keys", "--pipeline", pipeline])
    assert done.exit_code == 0
    keys = {line.split("  ")[0] for line in done.output.splitlines()}
    assert {"name", "root", "sample", "sample.num_videos", "cluster.heavy.accelerator.count"} <= keys
    assert ("promote.margin" in keys) == (pipeline == "nightly_retrain")
    assert not {"sample.checkpoint", "sample.root", "sample.name", "cluster.train.cpu"} & keys
    one = CliRunner().invoke(pipeline_cli, ["keys", "--pipeline", pipeline, "sample"])
    assert all(line.startswith(("sample", " ")) for line in one.output.splitlines())
    slip = CliRunner().invoke(pipeline_cli, ["keys", "--pipeline", pipeline, "smaple"])
    assert (slip.exit_code, slip.output) == (2, f"error: smaple: no section of {pipeline} (did you mean sample?)\n")


def test_a_key_that_belongs_into_a_section_is_told_with_it() -> None:
    cls = settings.PIPELINES["train_and_evaluate"]
    with pytest.raises(UserError, match=r"unknown key steps \(did you mean train\.steps\?\)"):
        settings.check(cls, {"name": "a", "vae": {}, "detector": {}, "encode": {}, "steps": 3}, "mine.yaml")
    with pytest.raises(UserError, match=r"unknown key videos \(did you mean encode\.dataset\.videos\?\)"):
        settings.check(cls, {"name": "a", "vae": {}, "detector": {}, "encode": {}, "videos": "x"}, "mine.yaml")


@pytest.mark.parametrize("command", ["run", "check", "keys", "get"])
def test_examples_stand_on_lines_of_their_own(command: str) -> None:
    lines = CliRunner().invoke(pipeline_cli, [command, "--help"], terminal_width=60).output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    examples = lines[start + 1 :]
    assert examples
    assert all(line.strip().startswith("latte-pipeline ") for line in examples if line.strip())
