"""Groups of tasks that the pipelines have in common, used inside a function decorated with `dsl.pipeline`."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from components.convert.component import convert_all
from components.encode.component import convert_and_encode, encode_merge, encode_plan, encode_shards
from components.sample.component import sample, sample_merge, sample_plan, sample_shards, sample_two
from components.score.component import score as score_step
from components.score.component import score_two
from components.tell.component import tell as tell_step
from pipelines.cluster import FANNED_OUT, HEAVY, Cluster, dress, hand_webhook, try_again

# More at once only helps where there are more nodes than this; KFP gets slow far above it.
PARALLELISM = 8
# Which weights of a training run generate: those after the last update, or those before the first.
NEWEST, START = -1, 0
_here: ContextVar[bool] = ContextVar("here", default=False)
_cluster: ContextVar[Cluster] = ContextVar("cluster", default=Cluster())  # noqa: B039
_fanned_out: ContextVar[Collection[str]] = ContextVar("fanned_out", default=FANNED_OUT)


@contextmanager
def on(cluster: Cluster, fanned_out: Collection[str] = FANNED_OUT) -> Iterator[None]:
    """While it lasts, the tasks of the pipelines that are made are written for this cluster.

    Args:
        cluster: the cluster's settings.
        fanned_out: steps whose work several tasks share; the other ones do it in a single one.
    """
    tokens = _cluster.set(cluster), _fanned_out.set(fanned_out)
    try:
        yield
    finally:
        _cluster.reset(tokens[0])
        _fanned_out.reset(tokens[1])


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


def prepare(
    root: str,
    name: str,
    weights: tuple[dict, dict, dict],
    settings: dict,
    train: dict,
    sample: dict,
    score: dict,
) -> dict[str, PipelineChannel]:
    """Convert the weights and encode the dataset, in one task, or the shards side by side.

    What the later steps ask of the dataset, by their settings, is held against it at once.

    Args:
        root: of the run.
        name: of the dataset.
        weights: settings of the autoencoder, the detector and the Latte that training starts from, which may be empty.
        settings: of encoding.
        train: of training; empty where nothing is trained.
        sample: of the sets.
        score: of scoring.

    Returns:
        URIs of the manifests: "vae", "i3d", "pretrained" (empty without settings) and "latents".
    """
    vae, detector, pretrained = weights
    given = {"root": root, "vae": vae, "detector": detector, "pretrained": pretrained}
    asked = {"train": train, "sample": sample, "score": score}
    if _in_one_task("encode"):
        whole = convert_and_encode(**given, name=name, encode=settings, **asked)
        outputs = dict(named(whole, "convert and encode", "encode").outputs)
        return {**outputs, "latents": outputs["of_latents"]}
    converted = dict(named(convert_all(**given), "convert").outputs)
    planning = encode_plan(root=root, name=name, settings=settings, vae=converted["vae"], **asked)
    plan = named(planning, "encode: plan")
    # KFP's runner for one machine finds the items of a loop under this name alone.
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = named(encode_shards(task=task), "encode: shards", "encode")
    merged = named(encode_merge(work=plan.outputs["work"], parts=dsl.Collected(part.output)), "encode: merge")
    return {**converted, "latents": merged.outputs["Output"]}


def generate(
    label: str, root: str, name: str, settings: dict, step: int, checkpoint: PipelineChannel, vae: PipelineChannel
) -> PipelineChannel:
    """Plan, videos, merge, in one task or side by side; returns the manifest of the set videos/<name>/.

    `label` is for the UI.
    """
    common = {"root": root, "name": name, "settings": settings, "step": step, "checkpoint": checkpoint, "vae": vae}
    if _in_one_task("sample"):
        whole = sample(**common)
        return named(whole, f"sample {label}", "sample").outputs["Output"]
    plan = named(sample_plan(**common), f"sample {label}: plan")
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = named(sample_shards(task=task), f"sample {label}: shards", "sample")
    merged = named(sample_merge(work=plan.outputs["work"], parts=dsl.Collected(part.output)), f"sample {label}: merge")
    return merged.outputs["Output"]


def generate_two(
    labels: tuple[str, str],
    root: str,
    names: tuple[str, str],
    settings: dict,
    checkpoint: PipelineChannel,
    vae: PipelineChannel,
) -> tuple[PipelineChannel, PipelineChannel]:
    """The sets by the newest weights of a training run and by its first ones, in one task or side by side."""
    if _in_one_task("sample"):
        both = sample_two(
            root=root,
            name=names[0],
            other_name=names[1],
            settings=settings,
            checkpoint=checkpoint,
            vae=vae,
        )
        outputs = named(both, "sample", "sample").outputs
        return outputs["of"], outputs["of_other"]
    first, second = (
        generate(label, root, name, settings, step, checkpoint, vae)
        for label, name, step in zip(labels, names, (NEWEST, START), strict=True)
    )
    return first, second


def measure(
    label: str,
    root: str,
    name: str,
    settings: dict,
    videos: PipelineChannel,
    latents: PipelineChannel,
    detector: PipelineChannel,
) -> PipelineChannel:
    """Score a set of videos against the dataset; returns the manifest of the score scores/<name>/."""
    task = score_step(root=root, name=name, settings=settings, videos=videos, real=latents, detector=detector)
    return named(task, f"score {label}", "score").outputs["Output"]


def measure_two(
    root: str,
    names: tuple[str, str],
    settings: dict,
    videos: tuple[PipelineChannel, PipelineChannel],
    latents: PipelineChannel,
    detector: PipelineChannel,
) -> tuple[PipelineChannel, PipelineChannel]:
    """Score two sets of videos in one task; returns the manifests of the scores, under these names."""
    task = score_two(
        root=root,
        name=names[0],
        other_name=names[1],
        settings=settings,
        videos=videos[0],
        other_videos=videos[1],
        real=latents,
        detector=detector,
    )
    outputs = named(task, "score", "score").outputs
    return outputs["of"], outputs["of_other"]


def _in_one_task(step: str) -> bool:
    return step not in _fanned_out.get() or bool(_cluster.get().together(step))
