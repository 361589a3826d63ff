"""Every key of the settings that names a file or a folder is known as one."""

import re
from typing import Any

import pytest
import yaml

from latte.config import FileKey
from latte.errors import UserError
from latte.steps import config_class
from pipelines import places, settings
from tests.e2e.runs import REPOSITORY

# Where all is kept, and a folder of the machine that a step runs on.
OWN = {"root", "cache_dir"}
NAMES_A_PLACE = re.compile(r"\b(file|folder|manifests?|URI|path)\b")


def keys(cls: type, wired: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in cls.model_fields.items() if name not in {*OWN, *wired}]


@pytest.mark.parametrize("section", settings.SECTIONS)
def test_a_key_that_speaks_of_a_file_is_marked_as_a_place(section: str) -> None:
    step, wired = settings.SECTIONS[section]
    fields = keys(config_class(step), wired)
    if section == "encode":
        fields += keys(config_class(step).model_fields["dataset"].annotation)
    for name, each in fields:
        marked = any(isinstance(mark, FileKey) for mark in each.metadata)
        # Words about a file are not its name.
        about = name in ("page", "model", "layout", "labels")
        assert marked or about or not NAMES_A_PLACE.search(each.description), (section, name, each.description)


def test_places_of_settings_by_their_keys() -> None:
    values = {
        "name": "n",
        "vae": {"kind": "vae", "source": "weights/vae.safetensors"},
        "detector": {"kind": "i3d", "source": "random"},
        "encode": {
            "dataset": {"videos": "file:///v", "csv": "t.csv", "split": "s3://b/s.txt"},
            "text_encoder": "clip.json",
            "tokenizer": "vocab.json",
        },
        "train": {"init_from": "s3://b/weights.safetensors", "model": {"preset": "Latte-S/2", "condition": "text"}},
        "sample": {"captions": "c.txt", "text_encoder": "clip.json", "tokenizer": "vocab.json"},
        "score": {
            "protocol": {"preset": str(REPOSITORY / "configs/fvd/demo.yaml"), "num_clips": 48},
            "detectors": ["i.json", "s3://b/v.json"],
        },
    }
    found = settings.named(settings.check(settings.PipelineConfig, values, "test"))
    assert {each.key: each.kind for each in found} == {
        "vae.source": "weights",
        "encode.dataset.videos": "videos",
        "encode.dataset.csv": "file",
        "encode.dataset.split": "file",
        "encode.text_encoder": "manifest",
        "encode.tokenizer": "tokenizer",
        "train.init_from": "manifest",
        "sample.captions": "file",
        "sample.text_encoder": "manifest",
        "sample.tokenizer": "tokenizer",
        "score.protocol": "protocol",
        "score.detectors.0": "manifest",
        "score.detectors.1": "manifest",
    }
    assert [each.key for each in found if each.in_bucket] == [
        "encode.dataset.split", "train.init_from", "score.detectors.1",
    ]  # fmt: skip
    bulk = yaml.safe_load((REPOSITORY / "configs/demo/bulk_sample.yaml").read_text())
    named = settings.named(settings.check(settings.BulkConfig, {**bulk, "checkpoint": "runs/m.json"}, "test"))
    assert ("checkpoint", "manifest") in [(each.key, each.kind) for each in named]


def test_a_place_of_no_kind_that_is_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"encode\.dataset\.csv: http://host/t.csv: expected s3://bucket/key, file:///"):
        places.check_here(places.Named(("encode", "dataset", "csv"), "file", "http://host/t.csv"), "here")
