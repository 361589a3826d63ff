"""Files of this machine that settings name: uploaded once to a real store, found there by the steps; or refused."""

import csv
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from latte import config, networks, storage
from latte.data import catalog
from latte.errors import UserError
from latte.kinds import vae
from latte.models.configs import AutoencoderKLConfig
from latte.sampling.conditions import read_captions
from latte.steps import convert
from latte.storage import manifest
from pipelines import notebook, settings, uploads
from pipelines.client import Client
from tests import conftest, kfp_server, small_clip, small_vae, video_files
from tests.e2e.runs import REPOSITORY

MODEL = {**small_vae.MODEL, "sample_size": 64}


@pytest.fixture
def root(request: pytest.FixtureRequest) -> str:
    """A fresh prefix of SeaweedFS."""
    return conftest.in_store(request, "seaweedfs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: weights with their config.json, five clips in classes, a table, captions."""
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights"
    weights.mkdir()
    rng = np.random.default_rng(0)
    shapes = vae.shapes_of(AutoencoderKLConfig(**MODEL))
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, weights / "vae.safetensors")
    (weights / "config.json").write_text('{"scaling_factor": 0.5, "sample_size": 64, "norm_num_groups": 4}')
    for name in ("a/1.mp4", "a/2.mp4", "b c/3 #%?.mp4", "b c/deeper/4.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        video_files.write(path, video_files.moving(8, 16, 16, len(name)), options={"preset": "ultrafast"})
    (tmp_path / "clips" / "empty.mp4").touch()
    (tmp_path / "clips" / "notes.txt").write_text("no video")
    (tmp_path / "clips" / ".hidden").mkdir()
    shutil.copy(tmp_path / "clips/a/1.mp4", tmp_path / "clips/.hidden/x.mp4")
    shutil.copy(tmp_path / "clips/a/1.mp4", tmp_path / "clips/a/.y.mp4")
    with (tmp_path / "table.csv").open("w") as file:
        csv.writer(file).writerows([["path", "caption"], ["a/1.mp4", "one"], ["b c/3 #%?.mp4", "three"]])
    (tmp_path / "captions.txt").write_text("a\nb\n")
    (tmp_path / "protocol.yaml").write_text("num_clips: 48\nnum_real_clips: null\nclip_frames: 16\n")
    return tmp_path


def values_of(folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "n",
        "vae": {"kind": "vae", "source": "weights/vae.safetensors"},
        "detector": {"kind": "i3d", "source": "random"},
        "encode": {"dataset": {"videos": (folder / "clips").as_uri(), "labels": "none"}, "image_size": 64},
        "train": {"model": {"preset": "Latte-S/2"}},
        "sample": {"num_videos": 48},
        "score": {"protocol": "protocol.yaml"},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    return values


def planned(values: dict[str, Any]) -> uploads.UploadPlan:
    return uploads.plan(settings.check(settings.PipelineConfig, values, "params"), "params")


def test_all_is_uploaded_once_and_read_there_as_here(
    root: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = values_of(folder, encode__dataset={"videos": "clips", "csv": "table.csv"})
    sent = uploads.send(planned(values), root)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"uploads to {root}/uploads: 9 of 9 files, ")
    assert "upload: 100%" in told[-1]

    dataset = sent.encode["dataset"]
    assert dataset["videos"].startswith(f"{root}/uploads/") and dataset["videos"].endswith("/clips")
    names = {uri.removeprefix(dataset["videos"] + "/") for uri in storage.list_uris(dataset["videos"])}
    assert names == {"a/1.mp4", "a/2.mp4", "b c/3 #%?.mp4", "b c/deeper/4.mp4", "empty.mp4", "notes.txt"}
    # A CSV file may name a video of any ending; without one only videos go.
    assert sent.score == {"protocol": {"num_clips": 48, "clip_frames": 16}}

    # What steps make of it is keyed as what `run` makes of the files here.
    def scanned(values: dict[str, Any]) -> catalog.Catalog:
        return catalog.scan(config.build(catalog.DatasetConfig, {**values, "s3_digest": "sha256"}))

    assert scanned(dataset).digest == scanned(values["encode"]["dataset"]).digest
    here, there = (
        convert.run(config.build(convert.ConvertConfig, {**vae, "root": place, "name": "vae"}))
        for vae, place in ((values["vae"], (folder / "root").as_uri()), (sent.vae, root))
    )
    assert here.config["model"]["scaling_factor"] == 0.5
    assert here.fingerprint == there.fingerprint

    before = storage.list_objects(f"{root}/uploads")
    again = uploads.send(planned(values_of(folder, encode__dataset={"videos": "./clips/", "csv": "table.csv"})), root)
    assert again == sent
    assert storage.list_objects(f"{root}/uploads") == before
    assert "9 files, 0 bytes; all are there already" in capsys.readouterr().err
    # One more video is another set of files, but only it is sent; the others have the ETags that they had.
    (folder / "clips" / "a" / "9.mp4").write_bytes(b"new")
    (folder / "clips" / "a" / "2.mp4").rename(folder / "clips" / "a" / "big.mp4")
    more = uploads.send(planned(values), root)
    assert "1 of 10 files, 3 bytes; 6 more from earlier uploads" in capsys.readouterr().err
    old, new = (storage.list_objects(each.encode["dataset"]["videos"]) for each in (sent, more))
    assert {info.etag for info in old.values()} < {info.etag for info in new.values()}
    assert more.vae == sent.vae
    assert more.encode["dataset"]["videos"] != dataset["videos"]
    assert more.encode["dataset"]["csv"] == dataset["csv"]


def test_a_large_video_has_the_etag_of_an_upload_wherever_it_comes_from(
    root: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "clips" / "large.mp4").write_bytes(np.random.default_rng(0).bytes(19 << 20))
    sent = uploads.send(planned(values_of(folder)), root)
    (folder / "clips" / "more.mp4").write_bytes(b"new")
    more = uploads.send(planned(values_of(folder)), root)
    assert "1 of 9 files, 3 bytes; 6 more from earlier uploads" in capsys.readouterr().err
    old, new = (storage.stat(f"{each.encode['dataset']['videos']}/large.mp4") for each in (sent, more))
    assert (old.bytes, old.etag) == (new.bytes, new.etag) and old.etag.endswith('-3"')
    # A record that lies is not believed: the content is looked at, and sent.
    place = sent.encode["dataset"]["videos"].rpartition("/")[0]
    record = storage.read_json(f"{place}/latte-contents.json")["files"]
    storage.write_json(
        f"{place}/latte-contents.json", {"files": {**record, "a/1.mp4": storage.sha256_bytes(b"fresh")}}, root
    )
    (folder / "clips" / "fresh.mp4").write_bytes(b"fresh")
    last = uploads.send(planned(values_of(folder)), root)
    assert storage.read_bytes(f"{last.encode['dataset']['videos']}/fresh.mp4") == b"fresh"
    storage.write_bytes(f"{place}/latte-contents.json", b"no JSON")
    (folder / "clips" / "fresh.mp4").write_bytes(b"fresher")
    capsys.readouterr()
    assert uploads.send(planned(values_of(folder)), root).vae == sent.vae
    assert "it counts as not done" in capsys.readouterr().err


def test_an_upload_that_was_cut_off_goes_on(root: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = uploads.send(planned(values_of(folder)), root)
    storage.delete(f"{sent.encode['dataset']['videos']}/b c/deeper/4.mp4")
    capsys.readouterr()
    assert uploads.send(planned(values_of(folder)), root) == sent
    assert ": 1 of 7 files, " in capsys.readouterr().err


def test_text_encoder_tokenizer_and_captions(root: str, folder: Path) -> None:
    encoder, tokenizer = small_clip.publish(folder)
    keys = {"text_encoder": encoder, "tokenizer": tokenizer}
    values = values_of(folder, encode__dataset={"videos": "clips", "csv": "table.csv"})
    values["encode"] |= keys
    values["sample"] |= {**keys, "captions": "captions.txt"}
    values["train"]["model"]["condition"] = "text"
    values["score"]["detectors"] = [encoder]
    sent = uploads.send(planned(values), root)
    assert sent.sample["text_encoder"] == sent.encode["text_encoder"] == sent.score["detectors"][0]
    assert read_captions(sent.sample["captions"]) == ["a", "b"]
    here = networks.TextSource.checked(encoder, tokenizer)
    there = networks.TextSource.checked(sent.encode["text_encoder"], sent.encode["tokenizer"])
    assert storage.is_shared(there.weights.uri) and there.digest == here.digest
    made = [networks.embedder(source)(["a b"]) for source in (here, there)]
    assert np.array_equal(*made)
    moved = manifest.read(sent.encode["text_encoder"])
    assert moved.file == sent.encode["text_encoder"]


def test_the_newest_weights_of_a_checkpoint_go_with_its_manifest(root: str, folder: Path) -> None:
    place = (folder / "out/runs/n/0123456789abcdef").as_uri()
    shards = []
    for step in (10, 20):
        for role in ("model", "ema", "optimizer"):
            ref = storage.write_bytes(
                f"{place}/checkpoints/step-{step:08d}/{role}.safetensors", f"{role}{step}".encode()
            )
            shards.append(manifest.Shard(uri=ref.uri, bytes=ref.bytes, sha256=ref.sha256))
    made = manifest.Manifest(
        kind="checkpoint", name="n", uri=place, fingerprint="0123456789abcdef" * 4, shards=shards, metrics={"step": 20}
    )
    manifest.finish(made, (folder / "out").as_uri())
    sent = uploads.send(planned(values_of(folder, train__init_from="out/runs/n/0123456789abcdef")), root)
    moved = manifest.read(sent.train["init_from"], "checkpoint")
    assert [each.uri.rpartition("/uploads/")[2].split("/", 2)[2] for each in moved.shards] == [
        "step-00000020/model.safetensors", "step-00000020/ema.safetensors"
    ]  # fmt: skip
    assert storage.read_recorded(moved.shard("/ema.safetensors").uri, moved.shards[1].sha256) == b"ema20"
    assert moved.file == sent.train["init_from"]

    storage.write_bytes(f"{place}/checkpoints/step-00000020/ema.safetensors", b"ema21")
    with pytest.raises(UserError, match=r"train.init_from: .*ema.safetensors: damaged"):
        uploads.send(planned(values_of(folder, train__init_from="out/runs/n/0123456789abcdef")), root)


def test_frames_and_the_files_of_a_sharded_checkpoint(root: str, folder: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/z/1.png"):
        (folder / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "frames" / name).write_bytes(name.encode())
    whole = safetensors.numpy.load_file(folder / "weights/vae.safetensors")
    names = sorted(whole)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        safetensors.numpy.save_file({name: whole[name] for name in held}, folder / "weights" / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "weights/vae.safetensors.index.json").write_text(json.dumps(index))
    values = values_of(folder, vae__source="weights/vae.safetensors.index.json")
    values["encode"]["dataset"] = {"videos": "frames", "layout": "frames"}
    sent = uploads.send(planned(values), root)
    beside = {uri.rpartition("/")[2] for uri in storage.list_uris(sent.vae["source"].rpartition("/")[0])}
    assert beside == {*parts, "config.json", "vae.safetensors.index.json"}
    dataset = config.build(catalog.DatasetConfig, sent.encode["dataset"])
    assert [entry.id for entry in catalog.scan(dataset).entries] == ["x", "y/z"]


def test_what_is_nowhere_or_cannot_be_sent_is_refused_before_anything_is(
    root: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "pipe.csv")
    (folder / "bad.yaml").write_text("clip_frames: 8\n")
    (folder / "a\nb.txt").write_text("x")
    (folder / "none").mkdir()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(folder / "none" / "s.mp4"))
    outside = folder / "leads out"
    outside.mkdir()
    (outside / "x.mp4").symlink_to(folder / "clips/a/1.mp4")
    nothing = "neither on this machine nor in a bucket; name a file or folder that is here, or s3://bucket/key"
    latents = manifest.Manifest(kind="latents", name="n", uri=folder.as_uri(), fingerprint="f", shards=[
        manifest.Shard(uri=(folder / "table.csv").as_uri(), bytes=1, sha256="0")
    ])  # fmt: skip
    manifest.write(latents, folder / "latents.json")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vae__source": "/only/there/vae.pt"}, f"vae.source: /only/there/vae.pt: {nothing}"),
        ({"vae__source": "file:///only/there/vae.pt"}, f"vae.source: file:///only/there/vae.pt: {nothing}"),
        ({"vae__source": f"{root}/no.pt"}, f"vae.source: {root}/no.pt: nothing is there; upload it, or name a local"),
        ({"vae__source": "http://host/vae.pt"}, "vae.source: http://host/vae.pt: expected s3://bucket/key"),
        ({"vae__source": "weights"}, "vae.source: weights: a folder, expected a file"),
        ({"vae__target": "out.ckpt"}, "vae.target: out.ckpt: a step of a cluster cannot write there"),
        ({"train__init_from": "no.json"}, f"train.init_from: no.json: {nothing}"),
        ({"sample__latents": "latents.json", "sample__labels": "dataset"}, "its latents lie on this machine; copy the"),
        ({"train__init_from": "weights"}, "train.init_from: weights: no manifest.json in this folder"),
        ({"train__init_from": f"{root}/runs/n"}, f"train.init_from: {root}/runs/n: nothing is there"),
        ({"encode__dataset": {"videos": "gone"}}, f"encode.dataset.videos: gone: {nothing}"),
        ({"encode__dataset": {"videos": "weights"}}, "encode.dataset.videos: weights: no video (.avi, "),
        ({"encode__dataset": {"videos": "protocol.yaml"}}, "encode.dataset.videos: protocol.yaml: not a folder"),
        ({"encode__dataset": {"videos": f"{root}/v"}}, f"encode.dataset.videos: {root}/v: nothing is there"),
        ({"encode__dataset": {"videos": "leads out"}}, "'x.mp4': a link to a file outside of dataset.videos"),
        ({"encode__dataset": {"videos": "none"}}, "encode.dataset.videos: 's.mp4': not a regular file"),
        ({"encode__dataset": {"videos": "clips", "csv": "pipe.csv"}}, "dataset.csv: pipe.csv: not a regular file"),
        ({"encode__dataset": {"videos": "clips", "split": "a\nb.txt"}}, "its name has control characters"),
        ({"score__protocol": "bad.yaml"}, "score.protocol.clip_frames: Input should be greater"),
        ({"score__protocol": "no.yaml"}, "score.protocol: no.yaml: No such file or directory"),
    ]  # fmt: skip
    for changes, message in cases:
        with pytest.raises(UserError) as caught:
            planned(values_of(folder, **changes))
        assert str(caught.value).startswith("params: ") and message in str(caught.value), str(caught.value)
    assert storage.list_uris(root) == []
    assert capsys.readouterr().err == ""


def test_a_notebook_sends_what_it_would_run_here(
    root: str, folder: Path, server: kfp_server.KfpServer, client: Client, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(notebook, "POLL_S", 0.05)
    monkeypatch.chdir(REPOSITORY)
    changes = {"encode.dataset.videos": str(folder / "clips"), "train.steps": 20}
    params = notebook.parameters("train_and_evaluate", "configs/demo/pipeline.yaml", root, changes)
    assert params["vae"]["source"] == "configs/demo/autoencoder/diffusion_pytorch_model.safetensors"
    server.ends_at_once = True
    notebook.run("train_and_evaluate", params, client)
    (run,) = server.runs.values()
    sent = run["runtime_config"]["parameters"]
    assert all(storage.exists(sent[section]["source"]) for section in ("vae", "detector", "pretrained"))
    assert sent["encode"]["dataset"]["videos"].startswith(f"{root}/uploads/")
    assert "uploads to" in capsys.readouterr().out


def test_a_file_that_changes_while_it_is_sent_is_not_left_under_another_s_name(
    root: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned(values_of(folder))
    upload = storage.upload

    def late(path: Path, *rest: Any) -> storage.Ref:
        if path.name == "1.mp4":
            path.write_bytes(path.read_bytes() + b"more")
        return upload(path, *rest)

    monkeypatch.setattr(storage, "upload", late)
    with pytest.raises(UserError, match=r"1\.mp4: it changed while it was uploaded; run the same command again"):
        uploads.send(whole, root)
    assert not [uri for uri in storage.list_uris(root) if uri.endswith("/1.mp4")]


def test_a_bucket_is_not_looked_into_without_credentials(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    values = values_of(folder, vae__source="s3://b/vae.pt", encode__dataset={"videos": "s3://b/v"})
    assert planned(values).bundles == ()
    assert capsys.readouterr().err == "not looked at, for want of S3 credentials: s3://b/vae.pt, s3://b/v\n"
    with pytest.raises(UserError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        uploads.send(planned(values_of(folder)), "s3://b/root")
