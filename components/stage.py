"""Work that can be cut into parts, of encode and of sample: planned, done and merged by one task, or by several.

One task does all of it where the work is not fanned out, or where one Volcano Job shares the parts out to its workers.
Otherwise the task that plans leaves under the root what is to be done, and hands on the URI of that: a task of the loop
gets this and its range, and no settings (Decision 23).
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components import placement, runtime
from components import work as works
from components.work import Work
from latte import storage, uses
from latte.errors import LatteError
from latte.facts import PlanMetrics
from latte.storage import manifest


@dataclass(frozen=True)
class PartedStage:
    """A step whose module has the functions `plan`, `<step>_shards` and `merge`.

    Attributes:
        label: name of its tasks, "sample trained" for example.
        step: its name in `latte.steps.STEPS`.
        settings: keys of its config as the user gave them.
        wired: keys that the pipeline fills in.
        arguments: more arguments of `plan` and of `merge`.
    """

    label: str
    step: str
    settings: Mapping[str, Any]
    wired: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def whole(self, output: Any) -> str:
        """Plan, do and merge here; the parts in this process, or shared out to the workers of a Volcano Job.

        Args:
            output: KFP artifact of what is made.

        Returns:
            URI of the manifest of what is made.
        """
        planned = self._plan(None)
        size = PlanMetrics.of(planned)
        launch = runtime.guarded(self.label, placement.launch_of_this_step)
        workers = min(launch.volcano.nodes, size.shards_to_encode or size.batches) if launch else 0
        self._part(planned.file, f"*/{max(1, workers)}" if launch else "0/1")
        return self._merge(planned.file, output)

    def plan(self, output: Any) -> tuple[list[str], str]:
        """Plan for several tasks.

        Args:
            output: KFP artifact of the plan.

        Returns:
            The tasks, "0/2 URI" for the first of two, and the URI of what they and the merge have to do. One text has
            both, for KFP's runner for one machine gives a loop nothing but its item.
        """
        planned = self._plan(output)
        work = Work(self.label, self.step, self.settings, self.wired, "", {**self.arguments, "plan_uri": planned.file})
        uri = runtime.guarded(f"{self.label}: plan", lambda: _left(work))
        count = PlanMetrics.of(planned).num_tasks
        return [f"{task}/{count} {uri}" for task in range(count)], uri

    def _plan(self, output: Any) -> manifest.Manifest:
        name = f"{self.label}: plan"
        return runtime.run_step(
            name, self.step, self.settings, self.wired, "plan", self.arguments, output=output, here=True
        )

    def _part(self, plan_uri: str, task: str) -> int:
        name = f"{self.label}: shards {works.label_of(task)}"
        arguments = {"plan_uri": plan_uri, **works.share(task)}
        done = runtime.run_step(name, self.step, self.settings, self.wired, f"{self.step}_shards", arguments)
        return len(done.shards)

    def _merge(self, plan_uri: str, output: Any) -> str:
        name = f"{self.label}: merge"
        arguments = {**self.arguments, "plan_uri": plan_uri}
        made = runtime.run_step(
            name, self.step, self.settings, self.wired, "merge", arguments, output=output, here=True
        )
        return runtime.handed_on(name, str(self.wired["root"]), made)


def part(task: str) -> int:
    """One task's range of what a plan has left to do.

    Args:
        task: one of those that `PartedStage.plan` returned.

    Returns:
        Number of published objects that the task answers for.
    """
    number, _, uri = task.partition(" ")
    with _taken_up(uri, f"shards {works.label_of(number)}") as (stage, plan_uri):
        return stage._part(plan_uri, number)


def merge(uri: str, output: Any) -> str:
    """The merge of what a plan has left to do.

    Args:
        uri: of that.
        output: KFP artifact of what is made.

    Returns:
        URI of the manifest of what is made.
    """
    with _taken_up(uri, "merge") as (stage, plan_uri):
        return stage._merge(plan_uri, output)


@contextlib.contextmanager
def _taken_up(uri: str, task: str) -> Iterator[tuple[PartedStage, str]]:
    """The stage that a plan has left, and the plan's URI; in use as long as a `with` block lasts."""
    root = works.root_of(uri) or ""
    runtime.tried_again(task, root)
    with contextlib.ExitStack() as stack:

        def read() -> Work:
            stack.enter_context(uses.noted(root, uses.found_in(root, uri)))
            return works.read(uri)

        work = runtime.guarded(task, read)
        arguments = dict(work.arguments)
        plan_uri = str(arguments.pop("plan_uri"))
        yield PartedStage(work.task, work.step, work.settings, work.wired, arguments), plan_uri


def _left(work: Work) -> str:
    """The URI of work for other pods; the same work is not written twice."""
    root = str(work.wired["root"])
    folder = storage.join(root, "launched", manifest.fingerprint(work.task, work.arguments["plan_uri"])[:16])
    uses.note(root, uses.found_in(root, folder))
    portable = work.portable(folder)
    uri = storage.join(folder, manifest.fingerprint(asdict(portable))[:16], "work.json")
    with contextlib.suppress(LatteError):  # not there, or damaged
        if works.read(uri) == portable:
            return uri
    portable.write(uri)
    return uri
