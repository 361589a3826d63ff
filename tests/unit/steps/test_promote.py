"""The gate: what passes, what does not, what cannot be compared; rollback; stores without conditional writes."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latte import storage
from latte.config import build
from latte.errors import StorageError, UserError
from latte.steps import promoted
from latte.steps.promote import PromoteConfig, run
from latte.storage import manifest, registry
from tests.fault_proxy import flipped
from tests.unit.steps.promotions import Candidate, make


@pytest.fixture
def root(registry_root: str) -> str:
    """Only where promotion works."""
    return registry_root


def promote(root: str, candidate: Candidate, **settings: object) -> manifest.Manifest:
    config = {"root": root, "name": "m", "checkpoint": candidate.checkpoint, "score": candidate.score, **settings}
    return run(build(PromoteConfig, config, "test"))


def rollback(root: str) -> manifest.Manifest:
    return run(PromoteConfig(root=root, name="m", rollback=True))


def current(root: str) -> registry.HistoryEntry:
    entry, _ = registry.read_current(root, "m")
    assert entry is not None
    return entry


def test_first_better_equal_worse(root: str) -> None:
    first, better, equal, worse = (make(root, name, v) for name, v in [("a", 10), ("b", 9), ("c", 9), ("d", 9.5)])
    assert promote(root, first).metrics["promoted"] == 1
    passed = promote(root, better)
    assert passed.metrics["promoted"] == 1
    for refused in (equal, worse):
        decided = promote(root, refused)
        assert decided.metrics["promoted"] == 0
        assert "above the limit 9 " in decided.metrics["reason"]
    entry = current(root)
    assert (entry.number, entry.value, entry.weights_sha256, entry.replaces) == (2, 9.0, better.sha256, 1)
    assert [past.weights_sha256 for past in registry.history(root, "m")] == [first.sha256]
    assert promote(root, better) == passed, "tried again, the gate says what it has said"
    again = promote(root, better, margin=0.5)
    assert again.metrics["promoted"] == 1
    assert "already" in again.metrics["reason"]
    assert current(root) == entry
    assert not [uri for uri in storage.list_uris(root) if "/probe-" in uri]


@pytest.mark.parametrize(
    ("settings", "value", "passes"),
    [
        ({"margin": 0.1}, 9.0, True),
        ({"margin": 0.1}, 9.01, False),
        ({"tolerance": 0.05}, 10.5, True),
        ({"tolerance": 0.05}, 10.51, False),
        ({}, math.nan, False),
    ],
)
def test_margin_and_tolerance(tmp_path: Path, settings: dict, value: float, passes: bool) -> None:
    root = tmp_path.as_uri()
    promote(root, make(root, "a", 10.0))
    assert promote(root, make(root, "b", value), **settings).metrics["promoted"] == int(passes)


@pytest.mark.parametrize(
    ("value", "width", "settings", "passes", "intervals"),
    [
        (9.0, 0.4, {}, True, "below"),
        (9.0, 0.4, {"apart": True}, True, "below"),
        (9.0, 0.6, {}, True, "overlap"),
        (9.0, 0.6, {"apart": True}, False, "overlap"),
        (8.0, 1.0, {"apart": True, "margin": 0.1}, True, "below"),
        (9.4, 0.0, {"apart": True, "margin": 0.1}, False, "below"),
        (12.0, 1.0, {"tolerance": 0.5}, True, "above"),
        (9.0, math.nan, {}, False, None),
    ],
)
def test_the_gate_looks_at_the_intervals(
    tmp_path: Path, value: float, width: float, settings: dict, passes: bool, intervals: str | None
) -> None:
    root = tmp_path.as_uri()
    promote(root, make(root, "a", 10.0, width=0.5))
    decided = promote(root, make(root, "b", value, width=width), **settings)
    assert (decided.metrics["promoted"], decided.metrics.get("intervals")) == (int(passes), intervals)
    if intervals == "overlap":
        assert "the intervals overlap: the choice of the clips may explain the difference" in decided.metrics["reason"]


def test_the_gate_compares_the_metric_that_is_named(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    promote(root, make(root, "a", 10.0, values={"fvd": 10.0, "fid": 30.0, "kid": -0.2}))
    by_fid = make(root, "b", 11.0, values={"fvd": 11.0, "fid": 29.0, "kid": -0.3})
    assert promote(root, by_fid).metrics["promoted"] == 0
    with pytest.raises(UserError, match=r"metric=clipsim: score .* has fvd, fid, kid"):
        promote(root, by_fid, metric="clipsim")
    passed = promote(root, by_fid, metric="fid")
    assert (passed.metrics["promoted"], passed.metrics["value"], passed.metrics["promoted_value"]) == (1, 29.0, 30.0)
    entry = current(root)
    assert (entry.metric, entry.detector_sha256, entry.protocol_digest) == ("fid", "detector-1 fid", "protocol-1 fid")
    # Better than -0.3 by a tenth is -0.33, not -0.27.
    for value, passes in ((-0.32, 0), (-0.34, 1)):
        candidate = make(root, f"kid {value}", 9.0, values={"fvd": 9.0, "kid": value})
        assert promote(root, candidate, metric="kid", margin=0.1).metrics["promoted"] == passes
    storage.delete(current(root).score)
    with pytest.raises(UserError, match="metric fvd, but the promoted model of m was scored with kid"):
        promote(root, make(root, "new", 1.0))
    with pytest.raises(UserError, match="rollback takes no metric"):
        build(PromoteConfig, {"root": root, "name": "m", "rollback": True, "metric": "kid"}, "test")


def test_entries_without_intervals_are_of_versions_before(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    promote(root, make(root, "a", 10.0))
    pointer = storage.join(root, "registry/m/current.json")
    entry = current(root).model_dump(exclude={"interval_low", "interval_high", "nonce"})
    storage.write_bytes(pointer, json.dumps(entry).encode())
    better = make(root, "b", 1.0)
    assert promote(root, better, apart=True).metrics["intervals"] == "unknown"
    assert promote(root, better).metrics["promoted"] == 1
    assert rollback(root).metrics["value"] == 10.0


def test_a_pointer_that_is_gone_is_not_the_first_promotion(root: str) -> None:
    made = [make(root, f"v{value}", float(value)) for value in (500, 400, 900)]
    for candidate in made[:2]:
        promote(root, candidate)
    storage.delete(storage.join(root, "registry/m/current.json"))
    written = {uri: storage.read_bytes(uri) for uri in storage.list_uris(storage.join(root, "registry"))}
    line = r"current\.json: gone, but there is a history.*latte verify .* --repair`, or copy .*/00000001\.json to it"
    for act in (
        lambda: promote(root, made[2]),
        lambda: rollback(root),
        lambda: promoted.look_up(promoted.PromotedConfig(root=root, name="m")),
    ):
        with pytest.raises(UserError, match=line) as refused:
            act()
        assert "\n" not in str(refused.value)
    assert {uri: storage.read_bytes(uri) for uri in storage.list_uris(storage.join(root, "registry"))} == written


def test_another_entry_in_the_history_is_never_overwritten(root: str) -> None:
    made = [make(root, f"v{value}", float(value)) for value in (500, 400, 300)]
    for candidate in made[:2]:
        promote(root, candidate)
    first, second = (storage.join(root, f"registry/m/history/0000000{number}.json") for number in (1, 2))
    other = current(root).model_copy(update={"value": 1.0}).model_dump()
    storage.write_json(second, other, root)
    with pytest.raises(UserError, match=r"00000002\.json: another entry 2 than the pointer's; nothing is overwritten"):
        promote(root, made[2])
    assert (current(root).value, storage.read_json(second)) == (400.0, other)
    storage.delete(second)
    assert promote(root, made[2]).metrics["number"] == 3
    assert storage.exists(first)


def test_damaged_weights_are_not_rolled_back_to(root: str) -> None:
    made = [make(root, f"v{value}", float(value)) for value in (500, 400)]
    promote(root, made[0])
    weights = manifest.read(current(root).checkpoint).shards[0]
    promote(root, made[1])
    before = current(root)
    whole = storage.read_bytes(weights.uri)
    storage.write_bytes(weights.uri, flipped(whole))
    with pytest.raises(StorageError, match=r"damaged: .*; the weights of entry 1 cannot be gone back to: .*verify"):
        rollback(root)
    storage.delete(weights.uri)
    with pytest.raises(StorageError, match=r"no such object; the weights of entry 1 cannot be gone back to"):
        rollback(root)
    assert current(root) == before
    # Promoted again, they are copied anew.
    storage.write_bytes(weights.uri, flipped(whole))
    checkpoint = manifest.read(made[0].checkpoint)
    registry.keep_checkpoint(root, "m", checkpoint, checkpoint.shard("/ema.safetensors"))
    assert storage.read_bytes(weights.uri) == whole
    assert rollback(root).metrics["value"] == 500.0


def test_the_promoted_weights_outlive_the_run_that_made_them(root: str) -> None:
    candidate = make(root, "a", 10)
    promote(root, candidate)
    for uri in storage.list_uris(storage.join(root, "runs")):
        storage.delete(uri)
    kept = manifest.read(current(root).checkpoint, "checkpoint")
    shard = kept.shard(f"step-{kept.metrics['step']:08d}/ema.safetensors")
    assert storage.sha256_bytes(storage.read_bytes(shard.uri)) == candidate.sha256


def test_weights_that_a_killed_promotion_has_kept_are_not_written_again(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    candidate = make(root, "a", 10)
    promote(root, candidate)
    kept = manifest.read(current(root).checkpoint, "checkpoint")
    weights = storage.local_path(kept.shards[0].uri)
    written = weights.stat().st_mtime_ns
    storage.delete(storage.join(kept.uri, "manifest.json"))
    checkpoint = manifest.read(candidate.checkpoint, "checkpoint")
    again = registry.keep_checkpoint(root, "m", checkpoint, checkpoint.shard("step-00000006/ema.safetensors"))
    assert again == kept
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "other"}, "protocol other, but the promoted model of m was scored with protocol-1"),
        ({"detector": "other"}, "detector other"),
        ({"real": "real-2"}, "give detector=MANIFEST"),
        ({"role": "model"}, "weights=ema"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    root = tmp_path.as_uri()
    promote(root, make(root, "a", 10.0))
    before = current(root)
    with pytest.raises(UserError, match=message):
        promote(root, make(root, "b", 1.0, **settings))
    assert current(root) == before


def test_a_score_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    one, other = make(root, "a", 1.0), make(root, "b", 2.0)
    with pytest.raises(UserError, match="not generated by"):
        promote(root, Candidate(one.checkpoint, other.score, ""))


def test_rollback_goes_one_back_each_time_and_bars_what_it_took_away(root: str) -> None:
    made = [make(root, f"v{number}", 10.0 - number) for number in range(3)]
    for candidate in made:
        promote(root, candidate)
    assert rollback(root).metrics["promoted"] == 1
    assert (current(root).weights_sha256, current(root).number) == (made[1].sha256, 4)
    refused = promote(root, made[2])
    assert refused.metrics["promoted"] == 0
    assert "rolled back (entry 3)" in refused.metrics["reason"]
    rollback(root)
    assert current(root).weights_sha256 == made[0].sha256
    with pytest.raises(UserError, match="none before it"):
        rollback(root)
    assert [entry.number for entry in registry.history(root, "m")] == [1, 2, 3, 4]


def test_the_command_and_its_mistakes(tmp_path: Path) -> None:
    root = (tmp_path / "root").as_uri()
    first, second = make(root, "a", 2.0), make(root, "b", 1.0)

    def latte(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "latte.cli", "promote", f"root={root}", "name=m", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    empty = latte("--rollback")
    assert (empty.returncode, len(empty.stderr.splitlines())) == (2, 1)
    assert "nothing is promoted" in empty.stderr
    for candidate in (first, second):
        done = latte(f"checkpoint={candidate.checkpoint}", f"score={candidate.score}")
        assert done.returncode == 0, done.stderr
    assert latte("--rollback").returncode == 0
    assert current(root).weights_sha256 == first.sha256
    assert "rollback takes no score" in latte("--rollback", f"score={first.score}").stderr
    assert "margin or tolerance" in latte("checkpoint=x", "score=y", "margin=0.1", "tolerance=0.1").stderr


class LaxStore(BaseHTTPRequestHandler):
    """An S3 store that ignores If-None-Match and If-Match, or (strict) answers 501 to If-Match, as Swift does."""

    objects: dict[str, bytes] = {}
    refuses = False
    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", for which boto3 waits a second

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuses and self.headers["If-Match"]:
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            return
        if not (self.refuses and self.headers["If-None-Match"] and self.path in self.objects):
            self.objects[self.path] = data
            self._answer(200)
        else:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        self._answer(404 if found is None else 200, found or b"")

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Last-Modified", self.date_time_string())
        self.send_header("ETag", f'"{storage.sha256_bytes(body)[:32]}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(params=[False, True], ids=["ignores", "refuses"])
def lax_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = type("Handler", (LaxStore,), {"objects": {}, "refuses": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "lax")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "lax")
    yield "s3://bucket/root"
    server.shutdown()
    server.server_close()


def test_a_store_without_conditional_writes_is_refused_in_one_line(lax_root: str) -> None:
    candidate = make(lax_root, "a", 1.0)
    with pytest.raises(UserError, match=r"does not keep the conditions of a write \(If-None-Match, If-Match\)"):
        promote(lax_root, candidate)
    assert registry.read_current(lax_root, "m") == (None, None)


@pytest.mark.parametrize("s3_root", ["swift"], indirect=True)
def test_swift_which_has_no_if_match_is_refused_in_one_line(s3_root: str) -> None:
    command = [sys.executable, "-m", "latte.cli", "promote", f"root={s3_root}", "name=m"]
    candidate = make(s3_root, "a", 1.0)
    command += [f"checkpoint={candidate.checkpoint}", f"score={candidate.score}"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "does not keep the conditions of a write" in refused.stderr
    assert not storage.list_uris(storage.join(s3_root, "registry"))
