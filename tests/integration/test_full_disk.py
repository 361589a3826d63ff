"""A disk for temporary files that is full: what needs one says so in one line, and soon."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import small_vae, video_files


@pytest.mark.parametrize("s3_root", ["seaweedfs"], indirect=True)
def test_encode_names_the_folder_and_the_variable(s3_root: str, tmp_path: Path, small_disk: Path) -> None:
    vae = small_vae.publish(s3_root)
    video_files.write(tmp_path / "videos" / "a.mp4", video_files.moving(40, 64, 64))
    # Not quite full: Python passes over a folder for temporary files in which none can be made.
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    keys = {"root": s3_root, "name": "full", "vae": vae, "image_size": 64, "dataset.videos": tmp_path / "videos"}
    done = subprocess.run(
        [Path(sys.executable).parent / "latte", "encode", *(f"{key}={value}" for key, value in keys.items())],
        env={**os.environ, "TMPDIR": str(small_disk)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{small_disk}" in line
    assert "no space left on the disk" in line
    assert "TMPDIR" in line
