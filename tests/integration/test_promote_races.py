"""Promotions killed at any moment and promotions at once, in a folder and in a real S3 store."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latte import storage
from latte.steps.promote import PromoteConfig, run
from latte.storage import manifest, registry
from tests.soak import scaled
from tests.unit.steps.promotions import make

REPOSITORY = Path(__file__).parents[2]
# Promotes ever better candidates, with a rollback now and then, until it is killed.
PROMOTER = """
import itertools, sys
from latte.steps.promote import PromoteConfig, run
from tests.unit.steps.promotions import make
root, first = sys.argv[1], int(sys.argv[2])
for number in itertools.count(first):
    made = make(root, f"v{number}", 1000.0 / (1 + number))
    print(number, flush=True)
    run(PromoteConfig(root=root, name="m", checkpoint=made.checkpoint, score=made.score))
    if number % 5 == 4:
        run(PromoteConfig(root=root, name="m", rollback=True))
"""


@pytest.fixture
def root(registry_root: str) -> str:
    """Only where promotion works."""
    return registry_root


def check_registry(root: str) -> list[registry.HistoryEntry]:
    """The pointer is whole, its weights are there, and the entries from 1 on are all there."""
    current, _ = registry.read_current(root, "m")
    if current is None:
        return []
    kept = manifest.read(current.checkpoint, "checkpoint")
    data = storage.read_bytes(kept.shard("/ema.safetensors").uri)
    assert storage.sha256_bytes(data) == current.weights_sha256
    entries = [*registry.history(root, "m"), current]
    assert [entry.number for entry in entries] == list(range(1, current.number + 1))
    return entries


@pytest.mark.soak
def test_killed_at_any_moment_the_pointer_is_whole(root: str) -> None:
    rand = random.Random(7)
    first = 0
    for _ in range(scaled(60)):
        process = subprocess.Popen(
            [sys.executable, "-c", PROMOTER, root, str(first)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(rand.uniform(0.0, 0.4))
        process.kill()
        lines = process.communicate()[0].split()
        first = int(lines[-1] if lines else first) + 1
        check_registry(root)
    # Whoever comes next is not kept out by a lock or a half-done promotion.
    made = make(root, "last", 0.0)
    assert run(
        PromoteConfig(root=root, name="m", checkpoint=made.checkpoint, score=made.score)
    ).metrics["promoted"]  # fmt: skip
    assert check_registry(root)[-1].weights_sha256 == made.sha256


def test_many_at_once_end_with_the_best_and_lose_none(root: str) -> None:
    values = random.Random(3).sample(range(1, 100), 8)
    made = {value: make(root, f"v{value}", float(value)) for value in values}
    errors: list[BaseException] = []
    together = threading.Barrier(len(values))

    def promote(value: int) -> None:
        try:
            together.wait(30)
            run(PromoteConfig(root=root, name="m", checkpoint=made[value].checkpoint, score=made[value].score))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=promote, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    entries = check_registry(root)
    reached = [entry.value for entry in entries]
    assert reached[-1] == min(values)
    # Each was better than the very one that it replaced.
    assert reached == sorted(reached, reverse=True)
    assert [entry.replaces for entry in entries] == [None, *range(1, len(entries))]


@pytest.mark.parametrize("etag", [None, '"0123456789abcdef0123456789abcdef"'])
def test_a_stale_writer_is_refused(root: str, etag: str | None) -> None:
    made = make(root, "a", 1.0)
    run(PromoteConfig(root=root, name="m", checkpoint=made.checkpoint, score=made.score))
    entry, _ = registry.read_current(root, "m")
    assert entry is not None
    assert registry.replace(root, entry, entry, etag) is None
    assert registry.read_current(root, "m")[0] == entry
