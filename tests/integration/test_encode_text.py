"""Captions embedded while a dataset is encoded, read back as training reads them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from latte import networks, storage
from latte.config import build
from latte.data import captions
from latte.data.latents import LatentClips
from latte.errors import LatteError, UserError
from latte.steps import encode
from latte.storage import manifest
from tests import small_clip, small_vae, video_files

CAPTIONS = ["a cat", "a dog, running", "a cat", "視 and ü"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    text_encoder, tokenizer = small_clip.publish(folder)
    return {"vae": small_vae.publish(folder.as_uri()), "text_encoder": text_encoder, "tokenizer": tokenizer}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(len(CAPTIONS) + 1):
        video_files.write(tmp_path / "videos" / f"{number}.mp4", video_files.moving(5 + number, seed=number))
    write_captions(tmp_path / "captions.csv", CAPTIONS)
    return tmp_path / "videos"


def write_captions(path: Path, lines: list[str]) -> None:
    path.write_text("path,caption\n" + "".join(f'{i}.mp4,"{line}"\n' for i, line in enumerate(lines)))


def config(root: str, weights: dict[str, str], videos: Path, **settings: object) -> encode.EncodeConfig:
    dataset = {"videos": str(videos), "csv": str(videos.with_name("captions.csv"))}
    values = {
        "root": root,
        "name": "captioned",
        "image_size": 32,
        "num_tasks": 2,
        "dataset": dataset,
        **weights,
        **settings,
    }
    return build(encode.EncodeConfig, {key: value for key, value in values.items() if value is not None}, "test")


def embeddings(weights: dict[str, str], texts: list[str]) -> np.ndarray:
    """What the sampler would take for these texts."""
    return networks.embedder(networks.TextSource.checked(weights["text_encoder"], weights["tokenizer"]))(texts)


def test_each_caption_is_embedded_once_as_the_sampler_does(
    root: str, weights: dict[str, str], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(root, weights, videos)
    done = encode.run(settings)
    assert (done.counts["videos"], done.counts["captions"]) == (4, 3)
    clips = LatentClips(done, tmp_path / "cache")
    assert [video.caption for video in clips.videos] == CAPTIONS
    for index, wanted in enumerate(embeddings(weights, CAPTIONS)):
        got = clips.text(index)
        assert (got.shape, got.dtype) == ((77, 768), np.float32)
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(clips.null_text(), embeddings(weights, [""])[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(clips.text(0), clips.text(2))
    assert np.abs(clips.text(0) - clips.text(1)).max() > 0.1
    by_ranges = LatentClips(done, tmp_path / "none", cache_bytes=0)
    np.testing.assert_array_equal(by_ranges.text(3), clips.text(3))
    mean, _ = clips.clip(3, 0, 1, 8)
    assert mean.shape == (8, 4, 16, 16)
    assert encode.run(settings) == done

    # Another caption is one more embedding; the videos and the other captions are left alone.
    before = set(storage.list_uris(root))
    write_captions(videos.with_name("captions.csv"), ["a new one", *CAPTIONS[1:]])
    embedded: list[str] = []
    fresh = captions.embed_all
    monkeypatch.setattr(captions, "embed_all", lambda *given: (embedded.extend(given[0][0].captions), fresh(*given)))
    more = encode.run(settings)
    assert embedded == ["a new one"]
    new = [uri for uri in set(storage.list_uris(root)) - before if uri.endswith(".safetensors")]
    assert ["/text/" in uri for uri in new] == [True]
    np.testing.assert_allclose(
        LatentClips(more, tmp_path / "cache").text(0), embeddings(weights, ["a new one"])[0], rtol=1e-3, atol=1e-4
    )


def test_the_tokenizer_is_read_once_a_command(
    weights: dict[str, str], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path.as_uri(), weights, videos)
    read, asked = storage.read_bytes, []
    monkeypatch.setattr(storage, "read_bytes", lambda uri, *given: (asked.append(str(uri)), read(uri, *given))[1])

    def times() -> int:
        count = sum(uri.endswith("vocab.json") for uri in asked)
        asked.clear()
        return count

    encode.run(settings)
    assert times() == 1
    text = {key: weights[key] for key in ("text_encoder", "tokenizer")}
    train = {"model": {"condition": "text", "num_frames": 8}, "frame_stride": 1}
    planned = encode.plan(settings, {"train": train, "sample": {**text, "captions": "c.txt"}})
    assert times() == 1
    encode.encode_shards(settings, planned.file, 0, 1)
    assert times() == 1
    encode.merge(settings, planned.file)
    assert times() == 1


def test_tasks_share_captions_and_a_lost_shard_is_made_again(
    weights: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    # More captions than a batch, so that there are several shards of them.
    names = [f"caption {number}" for number in range(20)]
    for number in range(1, 20):
        shutil.copy(videos / "0.mp4", videos / f"{number}.mp4")
    write_captions(videos.with_name("captions.csv"), names)
    root = tmp_path / "root"
    settings = config(root.as_uri(), weights, videos, dtype="float32")
    done = encode.run(settings)
    shards = [shard for shard in done.shards if "/text/" in shard.uri]
    assert [shard.items for shard in shards] == [16, 5]
    alone = {path: path.read_bytes() for path in root.rglob("*.safetensors")}
    clips = LatentClips(done, tmp_path / "cache")
    order = [names.index(str(video.caption)) for video in clips.videos]
    wanted = embeddings(weights, names)[order]
    np.testing.assert_allclose(np.stack([clips.text(index) for index in range(20)]), wanted, rtol=1e-5, atol=1e-5)

    planned = encode.plan(settings)
    uri = storage.join(planned.uri, "manifest.json")
    storage.delete(shards[1].uri)
    assert encode.encode_shards(settings, uri, 0, 2).counts["embedded_captions"] == 0
    with pytest.raises(LatteError, match="is not embedded yet; run again"):
        encode.merge(settings, uri)
    assert encode.encode_shards(settings, uri, 1, 2).counts["embedded_captions"] == 5
    assert encode.merge(settings, uri) == done
    assert {path: path.read_bytes() for path in root.rglob("*.safetensors")} == alone


def test_without_a_text_encoder_there_is_no_text(weights: dict[str, str], videos: Path, tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    plain = encode.run(config(root, weights, videos, text_encoder=None, tokenizer=None))
    clips = LatentClips(plain, tmp_path / "cache")
    assert clips.videos[0].caption == "a cat"
    for read in (lambda: clips.text(0), clips.null_text):
        with pytest.raises(UserError, match="no text embeddings; encode again with text_encoder and tokenizer"):
            read()
    # The text encoder adds to what is there.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("shards/*")}
    both = encode.run(config(root, weights, videos))
    assert both.uri == plain.uri
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("shards/*")} == times
    uri = storage.join(encode.plan(config(root, weights, videos)).uri, "manifest.json")
    with pytest.raises(UserError, match="made with other settings"):
        encode.merge(config(root, weights, videos, text_encoder=None, tokenizer=None), uri)


def test_what_cannot_embed_is_refused_before_work(weights: dict[str, str], videos: Path, tmp_path: Path) -> None:
    narrow, _ = small_clip.publish(tmp_path, "narrow", hidden_size=24, num_attention_heads=2)
    root = (tmp_path / "root").as_uri()
    cases = [
        ({"text_encoder": narrow}, r"embeddings \(77, 24\), the model takes \(77, 768\)"),
        ({"text_encoder": weights["vae"]}, "weights of vae, expected clip"),
        ({"tokenizer": str(tmp_path / "nowhere.json")}, r"tokenizer .*nowhere\.json: no such file"),
        ({"tokenizer": None}, "text_encoder and tokenizer go together"),
        ({"dataset": {"videos": str(videos)}}, "text_encoder: the dataset has no captions"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            encode.run(config(root, weights, videos, **changes))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "root").exists()
    assert manifest.read(narrow).config["model"]["hidden_size"] == 24
