"""How a run and its tasks are getting on, on a cluster or on this machine."""

from dataclasses import dataclass

ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


@dataclass(frozen=True)
class Task:
    """One task of a run: its name, its state, the pods that worked on it, and its error."""

    name: str
    state: str
    seconds: float | None
    pods: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Status:
    """A run, its state (PENDING, RUNNING, SUCCEEDED, FAILED, …) and its tasks in the order in which they started."""

    run_id: str
    name: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED
