"""Inputs of the tell component as work of the step."""

import os
from typing import Any

from components.runtime import RUN_ENV, run_step


def tell(root: str, name: str, pipeline: str, settings: dict[str, Any], status: Any) -> None:
    """Tell how the run has ended; `status` is KFP's PipelineTaskFinalStatus."""
    wired = {"root": root, "name": name, "pipeline": pipeline, "run": os.environ.get(RUN_ENV, "")}
    run_step("tell", "tell", settings, {**wired, "state": status.state, "error": status.error_message or ""})
