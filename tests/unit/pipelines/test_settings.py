"""What a run's settings name on this machine, and what of it its containers see."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from latte.errors import UserError
from latte.kinds.vae import shapes_of
from latte.models.configs import AutoencoderKLConfig
from latte.planning import dry_run
from pipelines import containers, settings
from pipelines.cli import cli
from tests import small_vae, video_files
from tests.e2e.runs import REPOSITORY

VAE = {**small_vae.MODEL, "block_out_channels": (8, 8, 8, 8), "sample_size": 64}
SETTINGS: dict[str, Any] = {
    "name": "n",
    "detector": {"kind": "i3d", "source": "random"},
    "encode": {"image_size": 64},
    "train": {
        "model": {"patch_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_frames": 16},
        "frame_stride": 1,
    },
    "sample": {"num_videos": 48, "cfg_scale": 1.5},
    "score": {"protocol": {"num_clips": "auto", "clips_per_video": "auto", "frame_stride": 1}},
}


def test_local_folders_are_those_that_are_there_and_those_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips here").mkdir()
    for name in ("weights/vae.safetensors", "lists/a csv.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    values = {
        "name": "demo",
        "vae": {"kind": "vae", "source": "weights/vae.safetensors"},
        "detector": {"kind": "i3d", "source": "random"},
        "encode": {"dataset": {"videos": "clips here", "csv": (tmp_path / "lists" / "a csv.csv").as_uri()}},
        "train": {"init_from": "s3://bucket/vae.safetensors"},
        "sample": {"num_videos": 2048},
    }
    config = settings.check(settings.PipelineConfig, values, "test")
    assert settings.local_folders(config) == [tmp_path / name for name in ("clips here", "lists", "weights")]


def test_a_container_mounts_a_root_that_the_settings_name_once(tmp_path: Path) -> None:
    videos, root = tmp_path / "videos", tmp_path / "root"
    mounts = containers.runner(tmp_path, [videos, root], [root], {}).container_run_args["mounts"]
    of_settings = [mount for mount in mounts if mount["Target"].startswith(str(tmp_path))]
    assert [(mount["Target"], mount["ReadOnly"]) for mount in of_settings] == [(str(videos), True), (str(root), False)]


def test_a_file_of_protocol_fields_is_read_before_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "bad.yaml").write_text("seeed: 1")
    for name, words in (("none.yaml", "No such file"), ("bad.yaml", "unknown key seeed")):
        changes = [f"encode.dataset.videos={tmp_path}", f"score.protocol={tmp_path / name}"]
        with pytest.raises(UserError, match=f"pipeline.yaml: score.protocol: .*{name}: {words}"):
            settings.load("configs/demo/pipeline.yaml", changes)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 20 frames in no folders."""
    folder = tmp_path_factory.mktemp("flat")
    for number in range(3):
        clip = video_files.moving(20, 24, 32, number)
        video_files.write(folder / f"{number}.mp4", clip, options={"preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def path(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a run on them, with an autoencoder that was trained on 64 pixels and makes a latent of 8 x 8."""
    folder = tmp_path_factory.mktemp("settings")
    config = AutoencoderKLConfig.model_validate(VAE)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes_of(config).items()}
    safetensors.numpy.save_file(weights, folder / "vae.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_published()))
    vae = {"kind": "vae", "source": str(folder / "vae.safetensors")}
    encode = {**SETTINGS["encode"], "dataset": {"videos": str(flat)}}
    (folder / "run.yaml").write_text(json.dumps({**SETTINGS, "vae": vae, "encode": encode}))
    return folder / "run.yaml"


def check(path: Path, *changes: str, pipeline: str = "train_and_evaluate") -> tuple[int, list[str]]:
    """Exit code and lines of `latte-pipeline check`; `the autoencoder` in a change is its file."""
    given = [change.replace("the autoencoder", str(path.with_name("vae.safetensors"))) for change in changes]
    done = CliRunner().invoke(cli, ["check", "--pipeline", pipeline, "-c", str(path), *given])
    return done.exit_code, done.output.splitlines()


def test_check_says_what_is_there_and_what_will_follow_from_it(path: Path) -> None:
    assert check(path, "encode.image_size=128") == (
        0,
        [
            "dataset: 3 videos, no classes, 0 files that cannot be used",
            "train.model.condition: none, the dataset has no classes",
            "sample.cfg_scale 1.5 is left out: the model has no condition to guide by",
            "score.protocol.num_clips 3, by the 48 generated videos and the 3 of 3 real ones that have 16 frames",
            "encode.image_size=128: the autoencoder was trained on 64 pixels; it knows encode.image_size=64",
            f"{path}: train_and_evaluate can start",
        ],
    )


def test_a_check_with_a_plan_says_what_the_training_takes_also_where_none_can_be_made_for_ascend(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "reason_against", lambda: "gcc not found")
    code, lines = check(path, "--plan", "train.batch_size=6", "train.accumulation=2")
    assert code == 0
    assert lines[-1] == f"{path}: train_and_evaluate can start"
    at = next(number for number, line in enumerate(lines, 1) if line.endswith(": planned, nothing is trained"))
    assert lines[at + 1] == "  a step      6 clips a worker; accumulation 2, workers 1"
    assert lines[at + 3] == "  Ascend      not planned: gcc not found"
    assert lines[at + 4].startswith("  on a CPU    1.")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["vae.kind=i3d"], "vae.kind=i3d: not what vae needs; vae.kind=vae works"),
        (["detector.kind=latte", "detector.source=the autoencoder"], "detector.kind=latte: not what detector needs; "
         "detector.kind=i3d works"),
        (["train.dry_run=true"], "train.dry_run=true: a pipeline trains; `latte-pipeline check --plan` shows the plan"),
        (["encode.image_size=60"], "encode.image_size=60: not a multiple of 8, the autoencoder's downsampling; "
         "encode.image_size=64 works"),
        (["encode.image_size=72"], "encode.image_size=72: its latents of 9 x 9 cannot be cut into patches of "
         "train.model.patch_size=4; encode.image_size=64 works"),
        (["train.model.in_channels=3"], "train.model.in_channels=3: the autoencoder's latent channels: 4; "
         "train.model.in_channels=4 works"),
        (["train.frame_stride=2"], "train.frame_stride=2: a clip of 16 frames at stride 2 needs 31, the longest video "
         "has at most 20; train.frame_stride=1 works"),
        (["score.protocol=demo", "score.protocol.num_clips=20"], "score.protocol.num_clips=20: the 3 videos "
         "give 12 real clips (clips_per_video 4); score.protocol.num_clips=12 works, or "
         "score.protocol.clips_per_video=7 works"),
        (["score.protocol.num_clips=aut"], "score.protocol.num_clips: expected a whole number, or auto; 2048 is the "
         "default (got 'aut')"),
        (["sample.num_sampling_steps=0"], "sample.num_sampling_steps: the diffusion has 1 to 1000 steps; 1 works "
         "(got 0)"),
        (["sample.labels=[]"], "sample.labels: no classes in the list; leave labels out for all of them (got [])"),
        (["sample.labels=dataset"], "sample.labels=dataset and sample.latents (the manifest of that dataset) go "
         "together; give both or neither"),
        (["sample.labels=[a]"], "sample.labels: the dataset has no classes; leave it out"),
        (["sample.step=5"], "sample.step is filled in by the pipeline; leave it out"),
        (["sample.adapt=false"], "sample.adapt is filled in by the pipeline; leave it out"),
        (["report.output=x.html"], "report.output is filled in by the pipeline; leave it out"),
        (["train.init_from=nowhere.ckpt"], "train.init_from: nowhere.ckpt: no such file or folder"),
        (["train.batch_size=9", "train.accumulation=2"], "train: batch_size 9 is not divisible by workers 1 x "
         "accumulation 2; batch_size=8 works"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_check_refuses_in_one_line_with_exit_code_2(path: Path, changes: list[str], line: str) -> None:
    code, lines = check(path, *changes)
    assert (code, lines) == (2, [f"error: {path}: {line}"])


def test_only_averaged_weights_can_be_promoted(path: Path) -> None:
    code, lines = check(path, "sample.weights=model", pipeline="nightly_retrain")
    assert code == 2
    assert lines[0].endswith("sample.weights=model: only the averaged weights are promoted; sample.weights=ema works")


def test_weights_of_another_kind_are_told_by_their_file(path: Path) -> None:
    code, lines = check(path, "detector.source=the autoencoder")
    assert code == 2
    assert "detector: " in lines[0]
    assert "not weights of kind i3d: it holds weights of kind vae" in lines[0]


def test_what_a_protocol_named_by_its_preset_is_advised_can_be_set(path: Path) -> None:
    given = ["score.protocol=ucf101"]
    for _ in range(8):
        code, lines = check(path, *given)
        if code == 0:
            break
        given.append(lines[0].rpartition("; ")[2].split(" works")[0])
    assert code == 0
    assert given[1:] == ["sample.num_videos=2048", "score.protocol.num_real_clips=3", "score.protocol.frame_stride=1"]


def test_sections_that_are_empty_are_not_taken_for_steps_that_are_missing() -> None:
    values: dict[str, Any] = {
        "name": "n",
        "vae": {"kind": "vae", "source": "s3://b/vae.safetensors"},
        "detector": {"kind": "i3d", "source": "random"},
        "encode": {"dataset": {"videos": "s3://b/videos"}},
        "sample": {"num_videos": 2048},
    }
    given = settings.parameters(settings.check(settings.PipelineConfig, values, "test"), "file:///r")
    assert (given["train"], given["sample"], given["score"]) == (
        {"frame_stride": 3}, {"num_videos": 2048}, {"batch_size": 2},
    )  # fmt: skip


def test_the_sizes_of_an_autoencoder_are_told_by_its_file_alone(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "vae.safetensors"
    alone.hardlink_to(path.with_name("vae.safetensors"))
    keys = {"kind": "vae", "source": str(alone), "model": {"norm_num_groups": 4}}
    network = settings.network(keys)
    assert network is not None
    assert AutoencoderKLConfig(**network).downsampling == 8
    assert settings.network({**keys, "source": "s3://b/vae.safetensors"}) is None
