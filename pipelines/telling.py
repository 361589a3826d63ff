"""The end of a run on this machine, told as the exit task tells it on a cluster (`latte.steps.tell`)."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latte import storage
from latte.errors import LatteError
from latte.steps import tell
from pipelines import settings

NOTICE = "notice.json"
# A store that is down is often what a run has failed by; its notice does not wait for it as long as a step does.
_STORE_WITHIN_S = "5"


@dataclass(frozen=True)
class Failure:
    """The first task that did not finish: its name, why, the exit code, and whether run.log has a traceback."""

    task: str
    message: str
    exit_code: int
    traceback: bool


def first_failure(events: Sequence[Mapping[str, Any]], log: Path) -> Failure | None:
    """The first task that did not finish, from what the tasks have told.

    KFP cannot be asked: it takes a container for a success that is gone before it looks.
    """
    finished = {event["task"] for event in events if event["event"] == "finished"}
    # A task that runs beside the one that failed is ended without a word, though it may have begun before.
    for event in events:
        if event["event"] == "failed" and event["task"] not in finished:
            traceback = bool(event.get("traceback"))
            return Failure(event["task"], str(event["message"]), int(event["exit_code"]), traceback)
    for event in events:
        if event["event"] == "started" and event["task"] not in finished:
            why = (
                "its process ended without a word, as one does that is killed, for example for want of memory; what "
                f"it wrote is in {log}"
            )
            return Failure(event["task"], why, LatteError.exit_code, False)
    return None


@dataclass
class Teller:
    """Notice of one run, told once.

    Attributes:
        config: its settings.
        run_dir: its folder; the notice is kept there.
        events: what its tasks have told, as it comes.
    """

    config: settings.AnyConfig
    run_dir: Path
    events: Sequence[Mapping[str, Any]] = ()
    _run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _is_told: bool = False

    @contextlib.contextmanager
    def telling(self, root: str | None = None) -> Iterator[None]:
        """Tell how a `with` block ends where it ends by an error or a stop.

        Args:
            root: where the run's data is, when it outlives the run; the notice is kept there, too.
        """
        try:
            yield
        except KeyboardInterrupt:
            self._tell(tell.STOPPED, "stopped by SIGTERM or Ctrl-C", root)
            raise
        except Exception as error:
            why = str(error) if isinstance(error, LatteError) else f"{type(error).__name__}: {error}"
            self._tell(tell.FAILED, why, root)
            raise

    def succeeded(self, root: str | None) -> None:
        """Tell that the run has come to its end."""
        self._tell(tell.SUCCEEDED, "", root)

    def _tell(self, state: str, error: str, root: str | None) -> None:
        if self._is_told:
            return
        self._is_told = True
        config = tell.TellConfig(
            **self.config.notify,
            root=root or self.run_dir.as_uri(),
            name=self.config.name,
            pipeline=self.config.pipeline,
            run=self._run_id,
            state=state,
        )
        failure = first_failure(self.events, self.run_dir / "run.log") if state == tell.FAILED else None
        results = {event["summary"]["kind"]: event["summary"] for event in self.events if event["event"] == "finished"}
        decision = results.get("promotion", {})
        outcome = "promoted" if decision.get("promoted") else "not promoted"
        told = tell.notice(
            config,
            step=failure.task if failure else "",
            error=failure.message if failure else error,
            report=str(results.get("report", {}).get("uri", "")),
            promotion=f"{outcome}: {decision['reason']}" if decision else "",
        )
        # No folder was to be had, or the disk is full: that is what the run itself tells.
        with contextlib.suppress(OSError, LatteError):
            storage.write_json(str(self.run_dir / NOTICE), told)
        with _patience():
            tell.deliver(config, told, to_root=root is not None)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    name = "LATTE_S3_RETRY_S"
    before = os.environ.get(name)
    os.environ[name] = _STORE_WITHIN_S
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
