"""The logs of a Job's pods in the log of the step that waits for it, line by line as they are written."""

import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

from components.volcano.api import REFUSED_S, Api
from latte.errors import LatteError

_TAIL_LINES = 15
_FIRST_POLL_S, _POLL_S = 0.2, 2.0
# How long lines may still come in after the Job has ended.
_DRAIN_S = 15.0
_STARTED = ("Running", "Succeeded", "Failed")
# What every pod goes through.
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")


class Logs:
    """While a `with` block lasts, every pod's lines go to standard error, told apart where there are several pods.

    Attributes:
        tails: the last lines of each pod, by its name.
    """

    def __init__(self, api: Api, job: str, workers: int) -> None:
        """Follow the pods of this Job."""
        self._api, self._job, self._several = api, job, workers > 1
        self.tails: dict[str, deque[str]] = {}
        self._followers: dict[str, threading.Thread] = {}
        self._told: set[tuple[str, str]] = set()
        self._stop = threading.Event()
        self._finder = threading.Thread(target=self._find, name="find-pods", daemon=True)

    def __enter__(self) -> "Logs":
        self._finder.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if kind is not None:
            return  # no time: the threads end with the process
        deadline = time.monotonic() + _DRAIN_S
        self._finder.join(_DRAIN_S)
        for follower in list(self._followers.values()):
            follower.join(max(0.0, deadline - time.monotonic()))

    def _find(self) -> None:
        """Start a follower for every started pod; the pods of a restarted Job have the same names, but other uids."""
        pause = _FIRST_POLL_S
        while True:
            last = self._stop.wait(pause)
            pause = min(1.5 * pause, _POLL_S)
            try:
                pods = self._api.pods(self._job)
            except LatteError as error:
                self._give_up(error)
                return
            for pod in pods:
                uid = pod["metadata"]["uid"]
                self._tell_waiting(pod)
                if uid not in self._followers and pod.get("status", {}).get("phase") in _STARTED:
                    name = f"logs-{pod['metadata']['name']}"
                    self._followers[uid] = threading.Thread(target=self._follow, args=(pod,), name=name, daemon=True)
                    self._followers[uid].start()
            if last:
                return

    def _tell_waiting(self, pod: dict[str, Any]) -> None:
        """Say once of each reason why a pod does not start."""
        reason, message = waits_for(pod)
        key = (pod["metadata"]["uid"], reason)
        if reason and key not in self._told:
            self._told.add(key)
            line = ": ".join(part for part in (reason, " ".join(message.split())) if part)
            print(f"pod {pod['metadata']['name']} waits: {line}", file=sys.stderr, flush=True)

    def _follow(self, pod: dict[str, Any]) -> None:
        """Show a pod's log to its end; a connection that is cut is taken up after the last line that came."""
        name, uid, last = pod["metadata"]["name"], pod["metadata"]["uid"], ""
        tail = self.tails[name] = deque(maxlen=_TAIL_LINES)
        label = f"{name.removeprefix(self._job + '-')} | " if self._several else ""
        pause, answered = _FIRST_POLL_S, time.monotonic()
        while True:
            over = self._stop.is_set() or self._ended(name, uid)
            seen = last
            try:
                for stamped in self._api.log(name):
                    answered = time.monotonic()
                    stamp, _, line = stamped.partition(" ")
                    if not stamp[:1].isdigit():
                        continue  # the kubelet's own word, without a time, on why it ends the log
                    at = _sortable(stamp)
                    last = max(last, at)
                    if at > seen:
                        tail.append(line)
                        print(f"{label}{line}", file=sys.stderr, flush=True)
            except LatteError as error:
                # A server that is just starting refuses everybody.
                if not last or time.monotonic() - answered > REFUSED_S:
                    self._give_up(error)
                    return
            if over:
                return
            pause = _FIRST_POLL_S if last > seen else min(1.5 * pause, _POLL_S)
            self._stop.wait(pause)

    def _give_up(self, error: LatteError) -> None:
        """The Job goes on, and what it makes counts; its logs are only shown."""
        print(f"no logs of Volcano Job {self._job}: {error}", file=sys.stderr, flush=True)

    def _ended(self, name: str, uid: str) -> bool:
        """Whether no more lines can come."""
        try:
            now = self._api.pod(name)
        except LatteError:
            return True
        return now["metadata"]["uid"] != uid or now.get("status", {}).get("phase") in ("Succeeded", "Failed")


def waits_for(pod: dict[str, Any]) -> tuple[str, str]:
    """Kubernetes' word and message on why a pod does not start; two empty ones where nothing holds it up."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return "", ""
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason", ""), condition.get("message", "")
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting and waiting.get("reason") not in _ON_ITS_WAY:
            return waiting.get("reason", ""), waiting.get("message", "")
    return "", ""


def _sortable(stamp: str) -> str:
    """A time of the log as text that sorts: the kubelet leaves out the zeros at the end of a second's fraction."""
    second, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{second}.{fraction:0<9}"
