"""Placement of a step on a cluster: resources, accelerators, and whether in its own pod or a Volcano Job.

`pipelines.cluster` writes it onto the tasks of a pipeline; a step that launches a Volcano Job reads its own from the
environment (`LAUNCH_ENV`).
"""

import os
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from latte.config import Config
from latte.errors import UserError

# The task's placement, as JSON, where its work is handed to a Volcano Job.
LAUNCH_ENV = "LATTE_LAUNCH"
# On a cluster the steps reach the bucket with what this secret holds (manifests/); KFP hands on none of its own.
SECRET = "latte-s3"  # noqa: S105
SECRET_KEYS = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
# The names of the Job's pods and their numbers have three digits at most.
MAX_NODES = 999
_WEEK_S = 7 * 24 * 3600

Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"),
    Field(coerce_numbers_to_str=True),
]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]


class Toleration(Config):
    """A taint that a pod puts up with; the keys are those of Kubernetes."""

    key: str | None = Field(default=None, description="the taint's key; unset: every taint")
    operator: Literal["Equal", "Exists"] | None = Field(default=None, description="Equal compares the value")
    value: str | None = Field(default=None, description="the taint's value")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="of it")
    tolerationSeconds: int | None = Field(default=None, ge=0, description="how long, for NoExecute")  # noqa: N815


class Accelerator(Config):
    """Accelerators that a pod asks of a device plugin."""

    resource: str = Field(
        default="huawei.com/Ascend910",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="its name on this site: huawei.com/Ascend910, huawei.com/npu, huawei.com/Ascend910B4, …",
    )
    count: int = Field(default=1, gt=0, description="of them for each pod")


class Pod(Config):
    """A pod without accelerators."""

    cpu: Quantity | None = Field(default=None, description="cores that are requested, for example 500m or 8")
    memory: Quantity | None = Field(default=None, description="memory, requested and the most that is given: 64Gi")
    shm: Quantity | None = Field(default=None, description="size of /dev/shm, from the memory")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that a node must have")
    tolerations: list[Toleration] = Field(default_factory=list, description="taints that are put up with")
    labels: dict[str, str] = Field(default_factory=dict, description="of the pod, and of the Job that makes it")
    annotations: dict[str, str] = Field(default_factory=dict, description="of the pod, and of the Job that makes it")
    deadline_s: int | None = Field(
        default=None, gt=0, description="seconds until it is ended; unset: never, a Volcano Job after a week"
    )


class Volcano(Config):
    """A Volcano Job that does a step's work while the step's own pod, without accelerators, waits for it."""

    nodes: int = Field(
        default=1, gt=0, le=MAX_NODES, description="pods: nodes that train together, or workers that share the shards"
    )
    queue: Name = Field(default="default", description="Volcano's queue")
    scheduler: Name = Field(default="volcano", description="scheduler of the pods")
    priority_class: Name | None = Field(default=None, description="priority class of the Job")
    restarts: int = Field(
        default=2, ge=0, description="times that the Job starts anew after a pod failed or was evicted"
    )
    lease_s: int = Field(
        default=180, gt=0, description="seconds after which the Job ends itself when no step waits for it any more"
    )
    keep_s: int = Field(default=24 * 3600, ge=0, description="seconds that the ended Job and its logs are kept")
    groups: list[int] = Field(
        default_factory=list,
        description="supplemental groups of the pods, for device files; HwHiAiUser is usually 1000",
    )
    env_from_annotations: dict[str, str] = Field(
        default_factory=dict,
        description="variables whose values the scheduler leaves in the pod's annotations; MindCluster with Ascend "
        "Docker Runtime: {ASCEND_VISIBLE_DEVICES: huawei.com/Ascend910}",
    )


class HeavyPod(Pod):
    """The pod of a step that computes, or the pods of the Volcano Job that computes for it."""

    accelerator: Accelerator | None = Field(default=None, description="resource and count; unset: none")
    volcano: Volcano | None = Field(default=None, description="unset: the step's own pod does the work")


class Launch(Config):
    """All that a step needs to know to have its work done by a Volcano Job."""

    image: str
    secret: Name = SECRET
    addressing_style: Literal["path", "virtual"] | None = None
    image_pull_secrets: list[Name] = []
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    pod: Pod
    accelerator: Accelerator | None = None
    volcano: Volcano

    @property
    def deadline_s(self) -> int:
        """Seconds after which the Job is ended."""
        return self.pod.deadline_s or _WEEK_S


def launch_of_this_step() -> Launch | None:
    """Settings of a Volcano Job in the environment, or None where this process does the work itself.

    Raises:
        UserError: the variable holds no `Launch`; another version compiled the pipeline.
    """
    text = os.environ.get(LAUNCH_ENV)
    if not text:
        return None
    try:
        return Launch.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{LAUNCH_ENV}: {error.errors()[0]['msg']}; compile the pipeline with the version that is in the image"
        ) from None
