"""The tell step: how a run has ended, in one JSON line, to a webhook and under the root.

    notices/<run>/failed-<task>.json    the last word of a task that failed, left by its component
    notices/<run>/report.json, …        where what the run has made is
    notices/<run>/notice.json           what was told

What tells must not break what it tells of: a webhook that does not answer, or a store that is down, is one line.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from latte import __version__, storage
from latte.config import Config, Root
from latte.errors import LatteError, NotThereError
from latte.storage import manifest
from latte.storage.s3_client import is_loopback
from latte.terminal import shown

# A URL that holds a secret is given here; settings can be read by everybody who sees the run.
WEBHOOK_ENV = "LATTE_WEBHOOK"
FAILED, SUCCEEDED, STOPPED = "FAILED", "SUCCEEDED", "CANCELED"
_FAILURE = "failed-"
# Of what a run makes, what its notice names.
RESULTS = ("report", "promotion")
_LONGEST = 600
_UNTOLD = "no task has told why: its process was killed, or its pod was; latte-pipeline status tells more"
_UNTOLD_STOP = "no task had failed before; latte-pipeline status tells more"


class TellConfig(Config):
    """Settings of the step: where a run's end is told, and what of it."""

    root: Root = Field(description="where everything is kept: s3://bucket/prefix or file:///dir")
    name: str = Field(description="name of the run's settings")
    pipeline: str = Field(default="", description="name of the pipeline")
    run: str = Field(default="", description="id of the run")
    state: str = Field(default=FAILED, description="SUCCEEDED, FAILED or CANCELED")
    error: str = Field(default="", description="what the cluster says where no task has left a word")
    webhook: str | None = Field(
        default=None,
        description=f"http(s)://… that gets the line by POST; one that holds a secret belongs into {WEBHOOK_ENV}",
    )
    when: Literal["failure", "always"] = Field(
        default="failure", description="failure: the webhook hears of runs that failed or were stopped; always: of all"
    )
    within_s: float = Field(default=10.0, gt=0, le=120, description="seconds that the webhook has to answer")

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None:
            _checked(value, "webhook")
        return value


def run(config: TellConfig) -> manifest.Manifest:
    """Tell of a run from what its tasks have left under the root.

    Raises nothing for a webhook or a store that does not answer: it says so in a line on standard error.
    """
    started = time.monotonic()
    failures, made = _left(config.root, config.run)
    first = failures[0] if failures and config.state != SUCCEEDED else {}
    told = notice(
        config,
        step=str(first.get("task", "")),
        error=str(first.get("error", "")) or config.error,
        report=made.get("report", ""),
        promotion=made.get("promotion", ""),
    )
    heard = deliver(config, told)
    return manifest.Manifest(
        kind="notice",
        name=config.name,
        uri=folder(config.root, config.run),
        fingerprint=manifest.fingerprint("notice", told),
        metrics={"state": config.state, "webhook": heard, **{key: told[key] for key in ("step", "error") if told[key]}},
        seconds=time.monotonic() - started,
    )


def notice(config: TellConfig, step: str, error: str, report: str, promotion: str = "") -> dict[str, Any]:
    """Notice of the end: flat, one line of JSON.

    Args:
        config: of the run.
        step: the task that failed first; "" where none did, or nobody knows.
        error: in one line.
        report: URI of the report's folder; "" where there is none.
        promotion: the gate's decision in words.
    """
    failed = config.state != SUCCEEDED
    line = shown(" ".join(error.split()))[:_LONGEST] if failed else ""
    if failed and not line:
        line = _UNTOLD_STOP if config.state == STOPPED else _UNTOLD
    verb = {SUCCEEDED: "succeeded", STOPPED: "was stopped"}.get(config.state, "failed")
    text = f"{config.pipeline or 'run'} {config.name} {verb}"
    text += f" at {step}" if failed and step else ""
    text += f": {line}" if line else f": {promotion}" if promotion else ""
    return {
        "run": config.run,
        "name": config.name,
        "pipeline": config.pipeline,
        "state": config.state,
        "step": step if failed else "",
        "error": line,
        "report": report,
        "promotion": promotion,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": text,  # what chat programs show of a message
    }


def deliver(config: TellConfig, told: Mapping[str, Any], to_root: bool = True) -> str:
    """Write a notice under the root and post it; returns what became of the post, in a word or a line.

    What does not work is one line on standard error and changes nothing else.
    """
    if to_root:
        try:
            storage.write_json(storage.join(folder(config.root, config.run), "notice.json"), dict(told), config.root)
        except LatteError as error:
            _say(f"the notice of this run is not kept: {error}")
    url = config.webhook or os.environ.get(WEBHOOK_ENV) or ""
    if not url:
        return "none"
    if config.when == "failure" and config.state == SUCCEEDED:
        return "not asked for"
    try:
        _post(_checked(url.strip(), WEBHOOK_ENV), json.dumps(told, ensure_ascii=False) + "\n", config.within_s)
    except ValueError as error:
        _say(str(error))
        return str(error)
    return "told"


def leave_failure(root: str, run_id: str, key: str, task: str, error: str, exit_code: int) -> None:
    """Leave the last word of a task that failed, for `run` and for a later try of it.

    Args:
        root: of the run.
        run_id: its id.
        key: of the task among all of the run.
        task: its name for people.
        error: in one line.
        exit_code: that it leaves with.
    """
    word = {"task": task, "error": error, "exit_code": exit_code, "at": time.time()}
    storage.write_json(_failure_uri(root, run_id, key), word, root)


def failure(root: str, run_id: str, key: str) -> dict[str, Any] | None:
    """The last word of a task that failed in an earlier try; None where there is none that can be read."""
    return _read(_failure_uri(root, run_id, key))


def forget_failure(root: str, run_id: str, key: str) -> None:
    """Take back the last word of a task that went well after all."""
    uri = _failure_uri(root, run_id, key)
    if storage.exists(uri):
        storage.delete(uri)


def leave_result(root: str, run_id: str, made: manifest.Manifest) -> None:
    """Leave where a report is, or what the gate decided, for the run's notice."""
    if made.kind == "promotion":
        outcome = "promoted" if made.metrics.get("promoted") else "not promoted"
        value = f"{outcome}: {made.metrics.get('reason', '')}"
    else:
        value = made.uri
    storage.write_json(storage.join(folder(root, run_id), f"{made.kind}.json"), {made.kind: value}, root)


def folder(root: str, run_id: str) -> str:
    """Place of the notices of a run."""
    return storage.join(root, "notices", run_id or "local")


def _failure_uri(root: str, run_id: str, key: str) -> str:
    return storage.join(folder(root, run_id), f"{_FAILURE}{manifest.fingerprint(key)[:16]}.json")


def _left(root: str, run_id: str) -> tuple[Sequence[dict[str, Any]], dict[str, str]]:
    """Words that tasks have left: failures, the first one first, and what was made by kind."""
    try:
        uris = storage.list_uris(folder(root, run_id))
    except NotThereError:
        return [], {}
    except LatteError as error:
        _say(f"what the tasks have left cannot be read: {error}")
        return [], {}
    failures, made = [], {}
    for uri in uris:
        name = uri.rpartition("/")[2]
        value = _read(uri) or {}
        if name.startswith(_FAILURE) and value:
            failures.append(value)
        elif (kind := name.removesuffix(".json")) in RESULTS and kind in value:
            made[kind] = str(value[kind])
    return sorted(failures, key=lambda word: float(word.get("at", 0))), made


def _read(uri: str) -> dict[str, Any] | None:
    try:
        value = storage.read_json(uri)
    except LatteError:
        return None
    return value if isinstance(value, dict) else None


def _checked(url: str, key: str) -> str:
    """A URL that can be posted to; what is wrong with another one is told without it, for it may hold a secret.

    Raises:
        ValueError: another scheme, no host, or characters that no URL has.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii() and url.isprintable()
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or " " in url:
        raise ValueError(f"{key}: expected a URL, http://… or https://…")
    if parts.username or parts.password:
        raise ValueError(f"{key}: a user or password in the URL; webhooks take a URL alone")
    return url


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere arrives there as a GET without its line."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, line: str, within_s: float) -> None:
    """POST one line of JSON.

    Raises:
        ValueError: it was not taken; says of the URL its host alone, for the rest may be a secret.
    """
    where = f"webhook on {urlsplit(url).hostname}"
    headers = {"Content-Type": "application/json", "User-Agent": f"latte-pipelines/{__version__}"}
    request = urllib.request.Request(url, line.encode(), headers, method="POST")  # noqa: S310
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=within_s):
            pass
    except urllib.error.HTTPError as error:
        raise ValueError(f"{where}: not told of this run: it answered {error.code} {shown(error.reason)}") from None
    except urllib.error.URLError as error:
        raise ValueError(f"{where}: not told of this run: {shown(error.reason)}") from None
    # What answers need not speak HTTP.
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise ValueError(f"{where}: not told of this run: {why}") from None


def _say(line: str) -> None:
    print(shown(line), file=sys.stderr, flush=True)
