"""Whole pipelines by the name of a dataset, settings that include others, and what relative paths count from."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from latte.config import read_yaml
from latte.errors import UserError
from pipelines import presets, settings
from pipelines.cli import cli

REPOSITORY = Path(__file__).parents[3]
SOURCES = ["vae.source=s3://b/vae.safetensors", "detector.source=s3://b/i3d.pt", "encode.dataset.videos=s3://b/videos"]
# dataset: preset of its training
DATASETS = {"skytimelapse": "sky", "faceforensics": "ffs", "taichi-hd": "taichi", "ucf101": "ucf101"}


def sources(name: str) -> list[str]:
    return [*SOURCES, *(["encode.dataset.split=s3://b/split.txt"] if name == "ucf101" else [])]


@pytest.mark.parametrize("pipeline", ["train_and_evaluate", "nightly_retrain"])
@pytest.mark.parametrize("name", DATASETS)
def test_every_published_dataset_has_a_whole_pipeline_that_is_found_from_any_folder(
    name: str, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = settings.load(name, sources(name), pipeline)
    assert isinstance(made, settings.PipelineConfig)
    assert made.name == name
    train = read_yaml(presets.FOLDER / f"train/{DATASETS[name]}.yaml")
    assert made.train == {key: value for key, value in train.items() if key != "name"}
    assert made.sample["num_sampling_steps"] == 250
    assert not {"name", "checkpoint", "vae"} & set(made.sample)
    assert made.encode["min_frames"] == 46
    assert made.vae["kind"] == "vae"
    assert "target" not in made.vae
    assert made.score == {"protocol": name}
    assert all(type(value) is str for value in (made.name, made.vae["source"], made.encode["dataset"]["videos"]))


def test_presets_are_part_of_the_package_and_configs_leads_to_them() -> None:
    assert presets.names() == sorted(DATASETS)
    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in patterns["pipelines"] for path in (REPOSITORY / "pipelines").glob(pattern)}
    files = set(presets.FOLDER.rglob("*.yaml"))
    assert files
    assert files <= shipped
    for folder in {path.parent for path in files}:
        assert (REPOSITORY / "configs" / folder.name).resolve() == folder.resolve()


def test_a_slip_in_the_name_of_a_preset_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("skytimelaps", "no such file, and no preset of this name; there is skytimelapse"),
        ("models/sd-vae-ft-emma", "no preset of this name; there is models/sd-vae-ft-ema"),
        ("../presets/models/sd-vae-ft-ema", "no such file, and no preset"),
    ):
        with pytest.raises(UserError, match=words):
            settings.load(name)
    done = CliRunner().invoke(cli, ["check", "-c", "none.yaml"])
    assert (done.exit_code, done.output) == (2, "error: none.yaml: No such file or directory\n")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_included_is_changed_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "base/train.yaml", "name: not taken\nsteps: 5\nmodel: {preset: Latte-S/2, depth: 4}\n")
    mine = write(
        tmp_path / "mine.yaml",
        "include: skytimelapse\nname: mine\ntrain: {include: [train/ucf101, base/train.yaml], model: {depth: 6}}\n",
    )
    made = settings.load(mine, SOURCES)
    assert isinstance(made, settings.PipelineConfig)
    assert (made.name, made.score) == ("mine", {"protocol": "skytimelapse"})
    assert made.train["steps"] == 5
    assert made.train["model"]["preset"] == "Latte-S/2"
    assert made.train["model"]["depth"] == 6
    assert made.train["model"]["condition"] == "class"
    again = settings.load(mine, [*SOURCES, "vae={include: models/sd-vae-ft-mse, source: s3://b/mse.safetensors}"])
    assert again.vae["page"].endswith("sd-vae-ft-mse")
    assert again.vae["source"] == "s3://b/mse.safetensors"
    assert "target" not in again.vae


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("include: mine.yaml\n", r"mine\.yaml: includes itself, by way of mine\.yaml"),
        ("train: {include: other.yaml}\n", r"other\.yaml: No such file"),
        ("train: {include: trian/sky}\n", r"trian/sky: no such file, and no preset of this name; there is train/sky"),
        ("train: {include: {a: 1}}\n", r"include: expected a file or a preset's name, found \{'a': 1\}"),
    ],
)
def test_what_cannot_be_included_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        settings.load(write(tmp_path / "mine.yaml", text))
    assert "\n" not in str(caught.value)


def test_relative_paths_count_from_the_settings_file_then_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    protocol = "num_clips: 2\njackknife_groups: 2\n"
    write(there / "sets/protocol.yaml", protocol)
    write(there / "base/common.yaml", "encode: {dataset: {csv: labels.csv}}\n")
    for folder in (here, there):
        write(folder / "videos/a.mp4", "a video")
    write(there / "base/labels.csv", "path,label\na.mp4,b\n")
    write(here / "downloads/only-here.txt", "a.mp4\n")
    mine = write(
        there / "mine.yaml",
        "include: base/common.yaml\nname: a\nvae: {kind: vae, source: s3://b/v.safetensors}\n"
        "detector: {kind: i3d, source: s3://b/i.pt}\n"
        "encode: {dataset: {videos: videos, split: downloads/only-here.txt}}\n"
        "score: {protocol: {preset: sets/protocol.yaml}}\n",
    )
    monkeypatch.chdir(here)
    made = settings.load(mine)
    assert made.encode["dataset"] == {
        "videos": str(there / "videos"),
        "csv": str(there / "base/labels.csv"),
        "split": "downloads/only-here.txt",
    }
    assert made.score["protocol"] == {"preset": str(there / "sets/protocol.yaml")}
    assert settings.load(mine, ["encode.dataset.videos=videos"]).encode["dataset"]["videos"] == "videos"
    monkeypatch.chdir(there)
    with pytest.raises(UserError, match=r"encode\.dataset\.split: downloads/only-here\.txt: no such file or folder"):
        settings.load("mine.yaml")
