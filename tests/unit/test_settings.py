"""What a run's settings name on this machine."""

from pathlib import Path

import pytest

from pipelines import settings


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
    }
    config = settings.check(settings.PipelineConfig, values, "test")
    assert settings.local_folders(config) == [tmp_path / name for name in ("clips here", "lists", "weights")]
