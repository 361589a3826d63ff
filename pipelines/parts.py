"""Groups of tasks that the pipelines have in common, used inside a function decorated with `dsl.pipeline`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from components.convert.component import convert, convert_pretrained
from components.encode.component import encode_merge, encode_plan, encode_shards
from components.sample.component import sample_merge, sample_plan, sample_shards
from components.score.component import score as score_step
from components.tell.component import tell as tell_step
from pipelines.cluster import HEAVY, Cluster, dress, hand_webhook, try_again

# More at once only helps where there are more nodes than this; KFP gets slow far above it.
PARALLELISM = 8
# Which weights of a training run generate: those after the last update, or those before the first.
NEWEST, START = -1, 0
_here: ContextVar[bool] = ContextVar("here", default=False)
_cluster: ContextVar[Cluster] = ContextVar("cluster", default=Cluster())  # noqa: B039


@contextmanager
def on(cluster: Cluster) -> Iterator[None]:
    """While it lasts, the tasks of the pipelines that are made are written for this cluster."""
    token = _cluster.set(cluster)
    try:
        yield
    finally:
        _cluster.reset(token)


@contextmanager
def here() -> Iterator[None]:
    """While it lasts, pipelines are made for this machine: its runner tells of a run itself and tries nothing again."""
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


@contextmanager
def told(pipeline: str, root: str, name: str, notify: dict) -> Iterator[None]:
    """A `with` block of tasks whose end is told: KFP runs the task `tell` after them, however they have ended."""
    if _here.get():
        yield
        return
    task = named(tell_step(root=root, name=name, pipeline=pipeline, settings=notify), "tell")
    hand_webhook(task, _cluster.get())
    with dsl.ExitHandler(task, name=pipeline):
        yield


def launched() -> str:
    """The first step whose work a Volcano Job does on this cluster; "" where none's is."""
    cluster = _cluster.get()
    return next((step for step in HEAVY if cluster.of(step).volcano), "")


def named(task: dsl.PipelineTask, label: str, step: str | None = None) -> dsl.PipelineTask:
    """Give a task its name in the UI, the bucket's credentials and its place on the cluster, and no cache of KFP's.

    The cache looks at parameters and artifact ids, never at what is in the bucket; the steps themselves look there.

    Args:
        task: the task.
        label: its name.
        step: section of the cluster's settings for a task that computes; None for a light one.
    """
    dress(task, _cluster.get(), step)
    if not _here.get():
        try_again(task, _cluster.get().retry)
    return task.set_display_name(label).set_caching_options(False)


def weights(root: str, vae: dict, detector: dict) -> tuple[dsl.Model, dsl.Model]:
    """Convert the autoencoder and the I3D that scores; returns both manifests."""
    converted = named(convert(root=root, name="vae", settings=vae), "convert vae").outputs["weights"]
    i3d = named(convert(root=root, name="i3d", settings=detector), "convert i3d").outputs["weights"]
    return converted, i3d


def pretrained_weights(root: str, settings: dict) -> PipelineChannel:
    """Convert the Latte weights that training starts from; returns their manifest's URI, empty without settings."""
    return named(convert_pretrained(root=root, settings=settings), "convert pretrained").output


def encode_dataset(
    root: str, name: str, settings: dict, vae: dsl.Model, train: dict, sample: dict, score: dict
) -> dsl.Dataset:
    """Plan, shards side by side, merge; returns the manifest of the latents.

    What the later steps ask of the dataset, by their settings, is held against it at once; `train` may be empty.
    """
    asked = {"train": train, "sample": sample, "score": score}
    common = {"root": root, "name": name, "settings": settings, "vae": vae}
    plan = named(encode_plan(**common, **asked, together=_cluster.get().together("encode")), "encode: plan")
    common["plan"] = plan.outputs["plan"]
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = named(encode_shards(**common, task=task), "encode: shards", "encode")
    merged = named(encode_merge(**common, **asked, parts=dsl.Collected(part.output)), "encode: merge")
    return merged.outputs["latents"]


def generate(
    label: str, root: str, name: str, settings: dict, step: int, checkpoint: dsl.Model, vae: dsl.Model
) -> dsl.Artifact:
    """Plan, videos side by side, merge; returns the manifest of the set videos/<name>/; `label` is for the UI."""
    common = {"root": root, "name": name, "settings": settings, "step": step, "checkpoint": checkpoint, "vae": vae}
    plan = named(sample_plan(**common, together=_cluster.get().together("sample")), f"sample {label}: plan")
    common["plan"] = plan.outputs["plan"]
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = named(sample_shards(**common, task=task), f"sample {label}: shards", "sample")
    merged = named(sample_merge(**common, parts=dsl.Collected(part.output)), f"sample {label}: merge")
    return merged.outputs["videos"]


def measure(
    label: str, root: str, name: str, settings: dict, videos: dsl.Artifact, latents: dsl.Dataset, detector: dsl.Model
) -> dsl.Artifact:
    """Score a set of videos against the dataset; returns the manifest of the score scores/<name>/."""
    task = score_step(root=root, name=name, settings=settings, videos=videos, real=latents, detector=detector)
    return named(task, f"score {label}", "score").outputs["score"]
