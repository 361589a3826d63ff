"""The section `cluster` of a pipeline's settings: with what each step runs, written onto the tasks when it is compiled.

`light` holds for the steps that plan, merge, convert, report and promote, and for those that wait for a Volcano Job;
`heavy` for those that compute; `encode`, `train`, `sample` and `score` each change some of its keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from components.placement import LAUNCH_ENV, SECRET, SECRET_KEYS, HeavyPod, Launch, Name, Pod
from components.tries import NODE_ENV, RETRY_ENV, RUN_ENV, Retry
from latte.config import Config, build
from latte.errors import UserError
from latte.steps.tell import WEBHOOK_ENV
from latte.storage.s3_client import ADDRESSING
from pipelines import presets

# What a pod is told of itself: KFP's label with the run's id, Argo's annotation with the name of its node.
_RUN_FIELD = "metadata.labels['pipeline/runid']"
_NODE_FIELD = "metadata.annotations['workflows.argoproj.io/node-name']"
# Argo counts this from the start of the first try, and begins none after it: KFP's own hour would leave every longer
# step without a second one.
_TRIED_AGAIN_WITHIN = f"{30 * 24 * 3600}s"
# The steps that compute.
HEAVY = ("encode", "train", "sample", "score")
# Those whose work may be cut into parts for several tasks.
FANNED_OUT = ("encode", "sample")
# One process of these uses one accelerator; train has as many processes as it has accelerators.
_SINGLE = ("encode", "sample", "score")


class Cluster(Config):
    """With what the steps of a pipeline run on a cluster; a run on one machine takes no notice of it."""

    secret: Name = Field(default=SECRET, description="secret with the bucket's credentials (manifests/)")
    addressing_style: Literal["path", "virtual"] | None = Field(
        default=None, description="virtual: the store wants buckets as names of hosts, bucket.s3.example.com"
    )
    image_pull_secrets: list[Name] = Field(default_factory=list, description="secrets of the image's registry")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="unset: Kubernetes' own rule"
    )
    pipeline_root: Annotated[str, StringConstraints(pattern=r"^(s3|minio|gs)://.+$")] | None = Field(
        default=None, description="where KFP keeps its own small artifacts of the run; unset: where it keeps all"
    )
    webhook_secret: Name | None = Field(
        default=None, description=f"secret whose key {WEBHOOK_ENV} is the URL that hears of runs; see notify.webhook"
    )
    retry: Retry = Field(default_factory=Retry, description="how often what failed is tried again")
    light: Pod = Field(default_factory=Pod, description="steps without accelerators")
    heavy: HeavyPod = Field(default_factory=HeavyPod, description="steps that compute; the next four change keys of it")
    encode: HeavyPod = Field(default_factory=HeavyPod, description="encoding shards")
    train: HeavyPod = Field(default_factory=HeavyPod, description="training")
    sample: HeavyPod = Field(default_factory=HeavyPod, description="generating shards")
    score: HeavyPod = Field(default_factory=HeavyPod, description="scoring")

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        """The keys of `heavy` under those of each step."""
        if not isinstance(values, dict) or not isinstance(values.get("heavy"), dict):
            return values
        try:
            HeavyPod.model_validate(values["heavy"])
        except ValidationError:
            return values  # told once, for `heavy` itself
        steps = {step: _over(values["heavy"], values.get(step, {})) for step in HEAVY}
        return {**values, **steps}

    @model_validator(mode="after")
    def _counts(self) -> "Cluster":
        for step in _SINGLE:
            accelerator = self.of(step).accelerator
            if accelerator and accelerator.count != 1:
                raise ValueError(
                    f"{step}.accelerator.count={accelerator.count}: a worker of {step} uses one; set it to 1"
                    + ("" if step == "score" else f" and {step}.volcano.nodes to the number of workers")
                )
        if self.score.volcano and self.score.volcano.nodes != 1:
            raise ValueError(f"score.volcano.nodes={self.score.volcano.nodes}: scoring is done by one pod; set it to 1")
        return self

    def of(self, step: str) -> HeavyPod:
        """The pod of a step that computes."""
        pod: HeavyPod = getattr(self, step)
        return pod

    def together(self, step: str) -> int:
        """Workers of the one Volcano Job that shares the shards of a step; 0 where KFP's own tasks do."""
        volcano = self.of(step).volcano
        return volcano.nodes if volcano else 0


def load(path: Path | None) -> Cluster:
    """The section `cluster` of a settings file, or that of no file: the defaults.

    Raises:
        UserError: the file is missing or no YAML, or a key of the section is unknown or bad.
    """
    values = presets.resolved(presets.read(path), lambda _: ()) if path is not None else {}
    return build(Cluster, values.get("cluster") or {}, f"{path}: cluster")


def check_workers(cluster: Cluster, workers: int, source: str) -> None:
    """Whether the processes that train fit the pods and accelerators that they get.

    Raises:
        UserError: they do not; says which number to change.
    """
    pod = cluster.train
    nodes = pod.volcano.nodes if pod.volcano else 1
    if workers % nodes:
        raise UserError(
            f"{source}: train.workers={workers}: not divisible by cluster.train.volcano.nodes={nodes}; "
            f"set it to a multiple of {nodes}"
        )
    if pod.accelerator and workers != nodes * pod.accelerator.count:
        count = pod.accelerator.count
        raise UserError(
            f"{source}: train.workers={workers}: cluster.train has {nodes} x {count} {pod.accelerator.resource}; "
            f"set train.workers={nodes * count}"
        )


def dress(task: Any, cluster: Cluster, step: str | None) -> None:
    """Write onto a KFP task where it runs and with what.

    Args:
        task: the `dsl.PipelineTask`.
        cluster: the settings.
        step: one of HEAVY where the task computes; None for a light one.
    """
    from kfp import kubernetes

    # Not before: whoever compiles may still say which image.
    from components.image import IMAGE

    heavy = cluster.of(step) if step else None
    kubernetes.use_secret_as_env(task, secret_name=cluster.secret, secret_key_to_env={key: key for key in SECRET_KEYS})
    if cluster.addressing_style:
        task.set_env_variable(ADDRESSING, cluster.addressing_style)
    kubernetes.set_security_context(task, run_as_non_root=True)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, cluster.image_pull_secrets)
    if cluster.image_pull_policy:
        kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    if heavy and heavy.volcano:
        launch = Launch(
            image=IMAGE,
            secret=cluster.secret,
            addressing_style=cluster.addressing_style,
            image_pull_secrets=cluster.image_pull_secrets,
            image_pull_policy=cluster.image_pull_policy,
            pod=Pod(**heavy.model_dump(include=set(Pod.model_fields))),
            accelerator=heavy.accelerator,
            volcano=heavy.volcano,
        )
        task.set_env_variable(LAUNCH_ENV, launch.model_dump_json(exclude_none=True))
        _dress_pod(task, cluster.light)
        return
    _dress_pod(task, heavy or cluster.light)
    if heavy and heavy.accelerator:
        task.set_accelerator_type(heavy.accelerator.resource).set_accelerator_limit(heavy.accelerator.count)


def try_again(task: Any, retry: Retry) -> None:
    """Write onto a KFP task how often it is tried: in its pod by its component, in new pods by KFP where KFP does.

    Args:
        task: the `dsl.PipelineTask`.
        retry: the settings.
    """
    from kfp import kubernetes

    # What is set, and no defaults: the pod is told in each of its nodes. {} is a word, too.
    task.set_env_variable(RETRY_ENV, retry.model_dump_json(exclude_defaults=True))
    kubernetes.use_field_path_as_env(task, RUN_ENV, _RUN_FIELD)
    kubernetes.use_field_path_as_env(task, NODE_ENV, _NODE_FIELD)
    if retry.pods:
        task.set_retry(retry.pods, f"{retry.wait_s}s", retry.factor, _TRIED_AGAIN_WITHIN)


def hand_webhook(task: Any, cluster: Cluster) -> None:
    """Give the task that tells of a run the webhook's URL, where a secret holds it."""
    from kfp import kubernetes

    if cluster.webhook_secret:
        kubernetes.use_secret_as_env(task, cluster.webhook_secret, {WEBHOOK_ENV: WEBHOOK_ENV})


def _dress_pod(task: Any, pod: Pod) -> None:
    from kfp import kubernetes

    if pod.cpu:
        task.set_cpu_request(pod.cpu)
    if pod.memory:
        task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm)  # noqa: S108
    if pod.node_selector:
        kubernetes.add_node_selector_json(task, dict(pod.node_selector))
    if pod.tolerations:
        kubernetes.add_toleration_json(task, [each.model_dump(exclude_none=True) for each in pod.tolerations])
    for key, value in pod.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in pod.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if pod.deadline_s:
        kubernetes.set_timeout(task, pod.deadline_s)


def _over(below: Mapping[str, Any], above: Any) -> Any:
    """`above` with the keys of `below` that it lacks, section by section."""
    if not isinstance(above, dict):
        return above
    filled = {**below, **above}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            filled[key] = _over(below[key], value)
    return filled
