"""Parameters that a pipeline is sent with, checked and with all that they name in the bucket; its title."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latte import storage
from latte.errors import UserError
from pipelines import settings, uploads
from pipelines.cluster import Cluster


def planned(pipeline: str, params: Mapping[str, Any]) -> tuple[uploads.UploadPlan, str]:
    """Uploads that the bucket needs for these parameters, and the root in it.

    Raises:
        UserError: a parameter is unknown, missing or bad, or names what is nowhere.
    """
    if pipeline not in settings.PIPELINES:
        raise UserError(f"pipeline {pipeline}: no such pipeline (known: {', '.join(settings.PIPELINES)})")
    checked = settings.check(settings.PIPELINES[pipeline], params, "params")
    if checked.root is None:
        raise UserError("params.root: missing; a cluster needs a place in a bucket: s3://bucket/prefix")
    root = in_bucket(checked.root, "params.root")
    return uploads.plan(checked, "params"), root


def in_bucket(root: str, key: str) -> str:
    """A root that a cluster can see.

    Raises:
        UserError: it lies on this machine.
    """
    if not storage.is_shared(root):
        raise UserError(f"{key}: {root}: a cluster needs a place in a bucket: s3://bucket/prefix")
    return root


@dataclass(frozen=True)
class PipelineForm:
    """All that a pipeline's settings say of how it is compiled: with what its steps run, and which are fanned out."""

    cluster: Cluster
    fanned_out: frozenset[str] = frozenset()


def sent(plan: uploads.UploadPlan, root: str) -> tuple[dict[str, Any], PipelineForm]:
    """The arguments of the pipeline once all that they name is in the bucket, and how it is compiled."""
    checked = uploads.send(plan, root)
    return settings.parameters(checked, root), PipelineForm(checked.cluster, settings.fanned_out(checked))


def request(pipeline_id: str, version_id: str, params: dict[str, Any], placed: Cluster) -> dict[str, Any]:
    """The fields that the requests for a run and for a recurring run have in common."""
    import kfp_server_api

    return {
        "pipeline_version_reference": kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        ),
        "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=params, pipeline_root=placed.pipeline_root),
    }


def title(name: str | None, pipeline: str, of: str) -> str:
    """Title of a run or a schedule.

    Args:
        name: the user's; None for the pipeline's and the settings' name.
        pipeline: its name.
        of: name in the settings.

    Raises:
        UserError: it cannot stand in a line of a UI.
    """
    text = name or f"{pipeline} {of}"
    settings.refuse_placeholders("--name", text)
    if not text.isprintable():
        raise UserError(f"--name {text!r}: a name is one line of text, without control characters")
    return text


def plain(value: Any) -> Any:
    """As it comes back from the API: numbers of one kind, no tuples."""
    return json.loads(json.dumps(value), parse_int=float)


def facts(schedule: Any) -> tuple[str, str, str, str, Any, Any]:
    """Facts that make a recurring run another.

    They are version, cron ("" of one of no use), account, root, parameters, and what plugins are told.
    """
    version = getattr(schedule.pipeline_version_reference, "pipeline_version_id", None) or ""
    timing = getattr(schedule.trigger, "cron_schedule", None)
    runtime = getattr(schedule.runtime_config, "parameters", None) or {}
    artifacts = getattr(schedule.runtime_config, "pipeline_root", None) or ""
    enabled = str(schedule.mode) == "ENABLE" and bool(schedule.no_catchup) and str(schedule.max_concurrency) == "1"
    account = schedule.service_account or ""
    return (
        version,
        timing.cron if timing and enabled else "",
        account,
        artifacts,
        plain(runtime),
        schedule.plugins_input or {},
    )
