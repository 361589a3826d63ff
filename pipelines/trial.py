"""One tiny run from end to end: what no look at a cluster can tell, the cluster tells itself."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from latte.errors import LatteError
from pipelines import operate, run_status
from pipelines.client import Client
from pipelines.cluster import Cluster
from pipelines.status import SUCCEEDED, Status

# Of its own, so that the newest run of the others is theirs.
EXPERIMENT = "latte-doctor"
POLL_S = 5.0
# An image of some gigabytes may have to be pulled first.
PATIENCE_S = 900.0


def run(client: Client, root: str, placed: Cluster, say: Callable[[str], None], patience_s: float = PATIENCE_S) -> str:
    """Start the pipeline `hello`, wait for its end, and delete it again if it went well; returns a line about it.

    Args:
        client: the connection, of the experiment of such runs.
        root: s3://bucket/prefix that steps write to.
        placed: with what they run.
        say: told what changes.
        patience_s: how long it may take; then it is stopped.

    Raises:
        UserError: the server refuses it.
        LatteError: it failed, or did not end in time; the line says at what and why, and the run is left to be seen.
    """
    title = f"hello {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    sent = client.start_hello(title, root, placed)
    say(f"run {sent.run_id}: {sent.url}")
    deadline = time.monotonic() + patience_s
    before: Status | None = None
    for status in run_status.watch(client, sent.run_id, POLL_S, say):
        for line in run_status.changes(before, status):
            say(line)
        before = status
        if not status.ended and time.monotonic() > deadline:
            waits = next((task for task in status.tasks if task.reason), None)
            what = f"{waits.name}: {waits.reason}" if waits else status.reason or "nothing says what it waits for"
            operate.stop(client, sent.run_id)
            raise LatteError(f"run {sent.run_id}: not ended after {patience_s:.0f} s, and stopped: {what}")
    if before is None or before.state != SUCCEEDED:
        raise LatteError(
            f"run {sent.run_id}: {before.failure if before else 'no status'}; latte-pipeline logs --experiment "
            f"{EXPERIMENT} {sent.run_id} tells more"
        )
    operate.delete(client, sent.run_id)
    tasks = ", ".join(f"{task.name} {task.state.lower()}" for task in before.tasks)
    return f"a run wrote, read, reported and was deleted again ({tasks})"
