"""MLflow for the runs of a pipeline: on a cluster through Kubeflow Pipelines' own plugin, on one machine by hand."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, TextIO

from pydantic import Field

from latte import tracking
from latte.config import Config

# Kubeflow Pipelines' name of its plugin.
PLUGIN = "mlflow"


class MlflowConfig(Config):
    """Tracking of runs by MLflow; address and secrets are in the environment alone."""

    experiment: str = Field(
        min_length=1,
        max_length=250,
        description=f"experiment of MLflow; on one machine {tracking.URI_ENV} names the server",
    )


def plugins_input(mlflow: MlflowConfig | None) -> dict[str, Any] | None:
    """The part of a request that Kubeflow Pipelines hands to its plugins (from 2.17 on); None: as the server has it."""
    return {PLUGIN: {"experiment_name": mlflow.experiment}} if mlflow is not None else None


@contextlib.contextmanager
def of_run(mlflow: MlflowConfig | None, pipeline: str, name: str, terminal: TextIO | io.TextIOBase) -> Iterator[None]:
    """While a `with` block lasts, tasks of this machine find the run of MLflow that theirs go below.

    Args:
        mlflow: the settings; None tracks nothing.
        pipeline: its name.
        name: of the run.
        terminal: where a line about it goes.
    """
    if mlflow is None:
        yield
        return
    if not os.environ.get(tracking.URI_ENV):
        print(f"mlflow: {tracking.URI_ENV} is not set; this run is not tracked", file=terminal, flush=True)
        yield
        return
    made = tracking.begin(mlflow.experiment, f"{pipeline} {name}", {"latte.pipeline": pipeline})
    if made is None:
        yield
        return
    print(f"MLflow: {made.page}", file=terminal, flush=True)
    os.environ[tracking.PARENT_ENV] = f"{made.run_id}/{made.experiment_id}"
    try:
        yield
    except BaseException as error:
        made.end(tracking.KILLED if isinstance(error, KeyboardInterrupt) else tracking.FAILED)
        raise
    finally:
        del os.environ[tracking.PARENT_ENV]
    made.end()


def variables() -> dict[str, str]:
    """Variables of MLflow that a container needs as a process has them."""
    return {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_") or key == tracking.PARENT_ENV}
