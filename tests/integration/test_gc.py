"""Removing what nobody needs: killed at any moment, beside jobs at work, over what the steps themselves have made."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latte import storage, uses
from latte.errors import StorageError
from latte.inventory import gc
from latte.inventory.gc import Keep
from latte.inventory.verify import verify
from latte.steps import call, sample
from latte.storage import manifest, registry, removal
from tests import nights
from tests.integration.test_sample_score import scoring
from tests.small_set import sampling
from tests.soak import scaled

KILLED = """
import os, sys, threading
from latte import storage, uses
from latte.inventory import gc
root, left = sys.argv[1], int(sys.argv[2])
uses.FRESH_S = gc.UNFINISHED_S = 0.0
store, lock, done = storage.store_of(root), threading.Lock(), 0
def counted(function):
    def called(*arguments):
        global done
        with lock:
            done += 1
            if done > left:
                os.kill(os.getpid(), 9)
        return function(*arguments)
    return called
store.delete, store.write, store.forget = map(counted, (store.delete, store.write, store.forget))
wanted = gc.Keep(newest=0, young_s=0.0)
gc.remove(root, wanted, gc.survey(root, wanted).going)
print(done)
"""


def removing(root: str, left: int) -> subprocess.CompletedProcess[str]:
    """Remove in another process, which is killed before it changes anything for the (left + 1)th time."""
    arguments = [sys.executable, "-c", KILLED, root, str(left)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def copied(source: str, target: str) -> None:
    if (folder := storage.path(target)) is not None:
        shutil.copytree(storage.local_path(source), folder)
        return
    for uri in storage.list_uris(source):
        storage.write_bytes(storage.join(target, uri.removeprefix(source + "/")), storage.read_bytes(uri))


@pytest.mark.soak
@pytest.mark.parametrize("root", ["file", "seaweedfs"], indirect=True)
def test_killed_at_any_moment_what_is_left_is_sound_and_the_next_removal_ends_the_same(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, _ = nights.old(tmp_path / "template", (5.0, 6.0, 4.0, 7.0))
    wanted = Keep(newest=0, young_s=0.0)
    kept = tuple(name for name in gc.survey(template, wanted).kept if not name.startswith("registry/"))
    copied(template, storage.join(root, "whole"))
    done = removing(storage.join(root, "whole"), sys.maxsize)
    assert done.returncode == 0, done.stderr
    operations, expected = int(done.stdout), seen(storage.join(root, "whole"))
    assert operations > 50
    # Nothing that was just written counts as young.
    monkeypatch.setattr(uses, "FRESH_S", 0.0)
    monkeypatch.setattr(gc, "UNFINISHED_S", 0.0)
    draw = np.random.default_rng(5)
    for number in range(scaled(60 if storage.path(root) is not None else 20)):
        place = storage.join(root, f"root-{number // 2}")
        if number % 2 == 0:
            copied(template, place)
        assert removing(place, int(draw.integers(0, operations * (0.5 if number % 2 == 0 else 0.4)))).returncode == -9
        check(place, kept)
        if number % 2:
            gc.remove(place, wanted, gc.survey(place, wanted).going)
            assert seen(place) == expected
            check(place, kept)


def seen(root: str) -> set[str]:
    return {uri.removeprefix(root + "/") for uri in storage.list_uris(root)}


def check(root: str, kept: tuple[str, ...]) -> None:
    """Nothing is damaged, what was to stay is whole, and so is all that the registry can go back to."""
    assert verify(root).damages == ()
    current, _ = registry.read_current(root, "sky")
    assert current is not None
    uris = [storage.join(root, name, manifest.NAME) for name in kept]
    for entry in (current, *registry.history(root, "sky")):
        uris += [entry.checkpoint, entry.videos, entry.score]
    for uri in uris:
        made = manifest.read(uri)
        assert manifest.are_whole(made.shards, made.uri), uri


def test_of_what_the_steps_made_a_score_keeps_all_that_it_was_made_from(world: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(storage.local_path(world.root), tmp_path / "root")
    root = (tmp_path / "root").as_uri()
    own = {key: getattr(world, key).replace(world.root, root) for key in ("checkpoint", "vae", "latents", "detector")}
    here = SimpleNamespace(**own)
    videos, other = (call("sample", sampling(here, root, num_videos=2, seed=seed)) for seed in (1, 2))
    protocol = {"num_clips": 2, "frame_stride": 1, "clips_per_video": None, "jackknife_groups": 2}
    scored = call("score", scoring(here, videos, root, protocol=protocol))
    assert not gc.survey(root, Keep(newest=0)).going, "all of it is young or in use"
    nights.age(root, 30)
    found = gc.survey(root, Keep(newest=0, names=("scores/score",)))
    assert [each.place for each in found.going] == [other.uri.removeprefix(root + "/")]
    kept = {name.split("/")[0]: why for name, why in found.kept.items()}
    assert set(kept) == {"scores", "features", "videos", "runs", "datasets", "weights"}
    gc.remove(root, Keep(newest=0, names=("scores/score",)), found.going)
    assert verify(root).damages == ()
    assert call("score", scoring(here, videos, root, protocol=protocol)) == scored
    assert call("sample", sampling(here, root, num_videos=2, seed=1)) == videos
    assert not gc.survey(root, Keep(newest=0)).going, "what was found done is in use again"


@pytest.mark.parametrize("moment", ["records", "clips"])
def test_a_job_that_takes_up_a_set_while_it_is_removed_notices(
    world: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    root = tmp_path.as_uri()
    config = sampling(world, root, num_videos=2)
    before = sample.run(config)
    nights.age(root, 30)
    said, delete = [], storage.delete

    def late(uri: str) -> None:
        # The manifest is gone; the records are, or are not yet.
        if not said and uri.endswith(".record.json" if moment == "records" else ".mkv"):
            monkeypatch.setattr(storage, "delete", delete)
            with pytest.raises(StorageError) as caught:
                sample.run(config)
            said.append(str(caught.value))
        delete(uri)

    found = gc.survey(root, Keep(newest=0))
    monkeypatch.setattr(gc, "_THREADS", 1)
    monkeypatch.setattr(storage, "delete", late)
    gc.remove(root, Keep(newest=0), found.going)
    (line,) = said
    assert line.startswith(f"{before.uri}: is being removed by `latte gc`; run again when that has ended")
    assert not storage.exists(before.file)
    assert not storage.exists(storage.join(before.uri, removal.MARK))
    assert verify_or_empty(root)
    again = sample.run(config)
    assert [item["sha256"] for item in manifest.items(again)] == [shard.sha256 for shard in before.shards[0:4:2]]
    assert verify(root).damages == ()


def verify_or_empty(root: str) -> bool:
    return not storage.is_prefix(root) or verify(root).damages == ()
