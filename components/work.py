"""Work of a component, said once and run anywhere: in the component's own process or in the pods of a Volcano Job."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from latte import storage
from latte.config import Config, build
from latte.errors import UserError
from latte.steps import call, config_class
from latte.storage import manifest


@dataclass(frozen=True)
class Work:
    """One call of one function of a step.

    Attributes:
        task: the task's name in messages and in the time table, for example "sample (untrained)".
        step: name in `latte.steps.STEPS`.
        settings: the pipeline's parameter for this step, as the user wrote it.
        wired: keys that the pipeline fills in (root, name, manifests); `settings` must not set them.
        function: what to call in the step's module: `function(config, **arguments) -> Manifest`.
        arguments: further arguments; a `task` of None says that the tasks are shared out to whoever takes part.
    """

    task: str
    step: str
    settings: Mapping[str, Any]
    wired: Mapping[str, Any]
    function: str = "run"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether several workers do a part each, rather than all of them the same thing together."""
        return "task" in self.arguments and self.arguments["task"] is None

    def config(self) -> Config:
        """The step's config; see `build_config`."""
        return build_config(self.step, self.settings, self.wired, self.task)

    def run(self, worker: int = 0, workers: int = 1) -> manifest.Manifest:
        """Do it, or as worker `worker` of `workers` its part of it.

        Raises:
            LatteError: as the step does.
        """
        config = self.config()
        arguments = dict(self.arguments)
        if self.shared:
            arguments |= {"task": worker, "num_tasks": workers}
        return call(self.step, config, self.function, **arguments)

    def portable(self, folder: str) -> "Work":
        """The same work for another machine: files of this pod that the pipeline wired in lie under `folder` then.

        Raises:
            StorageError: the store does not answer.
        """
        return replace(
            self,
            wired={key: _published(value, folder) for key, value in self.wired.items()},
            arguments={key: _published(value, folder) for key, value in self.arguments.items()},
        )

    def write(self, uri: str) -> None:
        """Store it as JSON, under `launched/` of its root."""
        storage.write_json(uri, asdict(self), root_of(uri))


def read(uri: str) -> Work:
    """The work that `Work.write` stored.

    Raises:
        UserError: there is none, or another version wrote it.
    """
    value = storage.read_json(uri)
    try:
        return Work(**value)
    except TypeError:
        raise UserError(
            f"{uri}: no work of this version; the image and the pipeline are of different versions"
        ) from None


def root_of(uri: str) -> str | None:
    """The root of a run by the URI of what a launched step keeps there, `<root>/launched/…`."""
    return uri.rpartition("/launched/")[0] or None


def share(task: str) -> dict[str, int | None]:
    """Arguments of a step from a task's name: "0/2" is the first of two, "*/2" all of two for whoever takes part."""
    number, _, count = task.partition("/")
    return {"task": None if number == "*" else int(number), "num_tasks": int(count)}


def label_of(task: str) -> str:
    """The same for people, who count from one: "1 of 2", "all of 2"."""
    number, _, count = task.partition("/")
    return f"{'all' if number == '*' else int(number) + 1} of {count}"


def build_config(
    step: str,
    settings: Mapping[str, Any],
    wired: Mapping[str, Any],
    source: str,
    prefix: str = "",
) -> Config:
    """The step's config from the user's settings and the pipeline's own keys; `prefix` of keys is for errors.

    Raises:
        UserError: the settings set a key of the pipeline's, or a key is unknown or bad.
    """
    own = sorted(set(settings) & set(wired))
    if own:
        raise UserError(f"{source}: {prefix}{own[0]} is filled in by the pipeline; leave it out")
    return build(config_class(step), {**settings, **wired}, source, prefix)


def _published(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [_published(each, folder) for each in value]
    # KFP hands manifests over as files of the pod; whatever else is wired is a name, a number or a URI.
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    content = storage.read_json(value)
    uri = storage.join(folder, "inputs", f"{manifest.fingerprint(content)[:16]}.json")
    storage.write_json(uri, content, root_of(folder))
    return uri
