"""The recipes of docs/architecture.md: a kind of model is a module and a line, and so is a step."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from components import work
from latte.cli import cli
from latte.errors import UserError
from latte.kinds import KINDS, detectors
from latte.kinds.kind import Scoring
from latte.metrics.detection import Detector
from latte.metrics.names import metric_of
from latte.metrics.protocol import Protocol
from latte.networks import network
from latte.steps import STEPS, Step, config_class
from latte.steps.convert import ConvertConfig, run
from latte.storage import manifest
from pipelines import compiled
from tests.examples import component, step
from tests.examples import kind as toy

WEIGHT, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1, -1])


@pytest.fixture
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, toy.KIND.name, toy.KIND)


def published(path: Path, **more: Any) -> str:
    save_file({"linear.weight": WEIGHT, "linear.bias": BIAS, **more}, path)
    return str(path)


def converted(tmp_path: Path, source: str, **settings: Any) -> manifest.Manifest:
    return run(ConvertConfig(kind="toy", source=source, root=tmp_path.as_uri(), name="toy", **settings))


@pytest.mark.usefixtures("toy_kind")
def test_a_kind_of_the_table_is_converted_and_its_network_computes(tmp_path: Path, capsys: Any) -> None:
    source = published(tmp_path / "a.safetensors", **{"head.weight": WEIGHT})
    made = converted(tmp_path, source, model={"scale": 2})
    assert made.counts == {"tensors": 2, "parameters": 8}
    assert made.config["kind"] == "toy"
    assert made.config["model"] == {"width": 3, "scale": 2.0}
    assert made.config["left_out"] == [["head.weight", "not part of the layer"]]
    assert "toy from safetensors" in capsys.readouterr().out
    assert converted(tmp_path, source, model={"scale": 2}) == made

    import mindspore as ms

    read = manifest.read_weights(made.uri, "toy", "toy")
    net = network("toy", read.config["model"], read.weights_file())
    x = np.float32([[1, 2, 3]])
    np.testing.assert_allclose(net(ms.Tensor(x)).asnumpy(), 2 * (x @ WEIGHT.T + BIAS))


@pytest.mark.usefixtures("toy_kind")
def test_a_kind_of_the_table_is_told_from_the_others(tmp_path: Path) -> None:
    source = published(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="not weights of kind clip: it holds weights of kind toy"):
        run(ConvertConfig(kind="clip", source=source, root=tmp_path.as_uri(), name="clip"))
    with pytest.raises(UserError, match="its tensors say width 3, the settings say 5"):
        converted(tmp_path, source, model={"width": 5})
    with pytest.raises(UserError, match="unknown key depth"):
        converted(tmp_path, source, model={"depth": 5})


def test_a_kind_of_the_table_may_be_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = Scoring(("frechet_toy",), lambda config, features, source, weights: f"frechet_toy_{features}", ())
    monkeypatch.setitem(KINDS, "toy", replace(toy.KIND, scoring=scoring))
    assert detectors() == ("i3d", "inception", "videomae", "toy")
    made = converted(tmp_path, published(tmp_path / "a.safetensors"))
    detector = Detector.of(manifest.read_weights(made.uri, detectors(), "detector"))
    assert (detector.network.width, detector.metric(Protocol())) == (3, "frechet_toy_logits")
    score = step.run(step.CountConfig(root=tmp_path.as_uri(), name="s"))
    assert metric_of(score.model_copy(update={"metrics": {"other": 1.0, "frechet_toy": 2.0}})) == "frechet_toy"
    with pytest.raises(UserError, match=r"vae .*: weights of toy, expected vae"):
        manifest.read_weights(made.uri, "vae", "vae")


def test_a_kind_that_the_table_has_not_is_no_kind() -> None:
    known = "'latte', 'vae', 'i3d', 'clip', 'latte_t2v', 't5', 'inception' or 'videomae'"
    with pytest.raises(ValueError, match=f"Input should be {known}"):
        ConvertConfig(kind="toy", source="a.pt", target="b.ckpt")


@pytest.fixture
def toy_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "count", Step("CountConfig", "Count the characters of a text.", ("count",)))
    # Where the modules of a real step lie.
    monkeypatch.setitem(sys.modules, "latte.steps.count", step)
    monkeypatch.setitem(sys.modules, "components.count.component", component)


def latte(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, arguments, terminal_width=120)


@pytest.mark.usefixtures("toy_step")
def test_a_step_of_the_table_is_a_command_with_its_keys(tmp_path: Path) -> None:
    assert "  Count the characters of a text." in latte("--help").output
    told = latte("count", "--help").output
    assert "Count the characters of a text." in told
    assert "the characters to count [default latte]" in told
    done = latte("count", f"root={tmp_path}", "name=c", "text=four")
    assert done.exit_code == 0, done.output
    assert "characters  4" in done.output
    assert latte("count", f"root={tmp_path}", "name=c", "letters=four").exit_code == 2


def test_a_step_that_the_table_has_not_is_no_command() -> None:
    assert latte("count", "--help").exit_code == 2


@pytest.mark.usefixtures("toy_step")
def test_a_step_of_the_table_takes_the_settings_of_a_pipeline(tmp_path: Path) -> None:
    wired = {"root": tmp_path.as_uri(), "name": "c"}
    assert config_class("count") is step.CountConfig
    with pytest.raises(UserError, match=r"count: unknown key letters \(known: name, root, text\)"):
        work.build_config("count", {"letters": "four"}, wired, "count")
    assert work.Work("count", "count", {"text": "four"}, wired).run().counts == {"characters": 4}


@pytest.mark.usefixtures("toy_step")
def test_a_step_of_the_table_has_its_component_compiled(tmp_path: Path) -> None:
    (written,) = compiled.write_components("count", tmp_path)
    assert written == tmp_path / "components/count/component.yaml"
    inputs = yaml.safe_load(written.read_text())["root"]["inputDefinitions"]["parameters"]
    assert set(inputs) == {"root", "name", "settings"}
