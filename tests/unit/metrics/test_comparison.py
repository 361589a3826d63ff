"""`latte score compare A B`: a table for scores that can be compared, the reason for those that cannot."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from latte.cli import cli
from latte.metrics.protocol import Protocol
from latte.storage import manifest


def score(
    root: Path,
    name: str,
    value: float,
    metric: str = "fvd",
    detector: str = "d" * 64,
    real: str = "r" * 64,
    **fields: Any,
) -> str:
    protocol = Protocol(**fields)
    done = manifest.finish(
        manifest.Manifest(
            kind="score",
            name=name,
            uri=(root / name).as_uri(),
            fingerprint=name,
            inputs={"detector": detector, "real": real, "videos": name},
            config={"protocol": protocol.model_dump(), "protocol_digest": protocol.digest},
            metrics={
                metric: value,
                "interval_low": value - 5,
                "interval_high": value + 5,
                "unbiased_estimate": value - 20,
                "clips": 2048,
            },
        )
    )
    return f"{done.uri}/manifest.json"


def compare(*words: str) -> Result:
    return CliRunner().invoke(cli, ["score", "compare", *words])


def test_scores_of_one_protocol_are_shown_side_by_side(tmp_path: Path) -> None:
    done = compare(score(tmp_path, "new", 61.25), score(tmp_path, "old", 80.5))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["fvd", "A", "B", "A", "both:"]
    assert lines[1].split()[1:] == ["61.25", "56.25", "to", "66.25", "41.25", "new"]
    assert lines[3].split()[:4] == ["A", "-", "B", "-19.25"]
    assert "apart" in lines[3]
    assert "overlap" in compare(score(tmp_path, "new", 61.25), score(tmp_path, "near", 62)).stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_stride": 6, "seed": 1}, ["protocol.frame_stride 3 and 6", "protocol.seed 0 and 1"]),
        ({"detector": "e" * 64}, ["detector dddddddddddd… and eeeeeeeeeeee…"]),
        ({"real": "s" * 64, "num_clips": 64}, ["protocol.num_clips 2048 and 64", "real side rrrrrrrrrrrr… and ssss"]),
        ({"metric": "frechet_random_i3d"}, ["metric fvd and frechet_random_i3d"]),
    ],
)
def test_scores_of_different_making_are_refused_with_every_difference(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused = compare(score(tmp_path, "a", 60.0), score(tmp_path, "b", 60.0, **changes))
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    for word in words:
        assert word in refused.stderr


def test_what_is_no_score_is_refused(tmp_path: Path) -> None:
    first = score(tmp_path, "a", 60.0)
    assert "no such object" in compare(first, str(tmp_path / "nothing.json")).stderr
    other = manifest.finish(manifest.Manifest(kind="report", name="r", uri=(tmp_path / "r").as_uri(), fingerprint="r"))
    refused = compare(first, f"{other.uri}/manifest.json")
    assert (refused.exit_code, refused.stderr.count("expected score")) == (2, 1)
    assert compare(first).exit_code == 2


def test_the_step_itself_still_takes_its_config(tmp_path: Path) -> None:
    refused = CliRunner().invoke(cli, ["score", f"root={tmp_path.as_uri()}", "name=s"])
    assert refused.exit_code == 2
    assert "missing key videos" in refused.stderr
    shown = CliRunner().invoke(cli, ["score", "--help"])
    assert shown.exit_code == 0
    assert "score compare A B" in shown.stdout
    assert "clips_per_shard" in shown.stdout
