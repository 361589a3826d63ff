"""What a run's settings name on this machine, and what of it its containers see."""

from pathlib import Path

import pytest

from latte.errors import UserError
from pipelines import containers, settings
from tests.e2e.runs import REPOSITORY


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
        settings.load_remote("configs/demo/pipeline.yaml", changes)
