"""The DAG: convert, encode, train, sample, score, report.

    convert vae ────┬─► encode: plan ─► shards … ─► merge ─► train ─┬─► sample trained ───► score ─┬─► report
    convert i3d ─┐  │                                               └─► sample untrained ─► score ─┘
                 └──┴──────────────────────────────────────────────────────────────────────► score

What KFP carries between the steps are small manifests; latents, checkpoints and videos go straight to the root.
"""

from kfp import dsl

from components.convert.component import convert
from components.encode.component import encode_merge, encode_plan, encode_shards
from components.report.component import report as report_step
from components.sample.component import sample_merge, sample_plan, sample_shards
from components.score.component import score as score_step
from components.train.component import train as train_step

# More at once only helps where there are more nodes than this; KFP gets slow far above it.
PARALLELISM = 8
NEWEST, UNTRAINED = -1, 0


def _generate(
    label: str,
    root: str,
    settings: dict,
    step: int,
    checkpoint: dsl.Model,
    vae: dsl.Model,
) -> dsl.Artifact:
    common = {"root": root, "name": label, "settings": settings, "step": step, "checkpoint": checkpoint, "vae": vae}
    plan = _named(sample_plan(**common), f"sample {label}: plan")
    common["plan"] = plan.outputs["plan"]
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = sample_shards(**common, task=task)
        _named(part, f"sample {label}: shards")
    merged = _named(sample_merge(**common, parts=dsl.Collected(part.output)), f"sample {label}: merge")
    return merged.outputs["videos"]


def _named(task: dsl.PipelineTask, label: str) -> dsl.PipelineTask:
    # KFP's cache looks at parameters and artifact ids, never at what is in the bucket; the steps themselves look there.
    return task.set_display_name(label).set_caching_options(False)


@dsl.pipeline(
    name="latte-train-and-evaluate",
    description="Encode a dataset, train a Latte on it, generate videos before and after, score both and report.",
)
def train_and_evaluate(
    root: str,
    name: str,
    vae: dict,
    detector: dict,
    encode: dict,
    train: dict,
    sample: dict,
    score: dict,
    report: dict,
) -> None:
    """Each `dict` holds the keys of one step's config; see `latte STEP --help`.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset, the training run, the scores and the report.
        vae: Keys of ConvertConfig for the autoencoder.
        detector: Keys of ConvertConfig for the I3D that scores.
        encode: Keys of EncodeConfig.
        train: Keys of TrainConfig.
        sample: Keys of SampleConfig.
        score: Keys of ScoreConfig.
        report: Keys of ReportConfig.
    """
    weights = _named(convert(root=root, name="vae", settings=vae), "convert vae").outputs["weights"]
    i3d = _named(convert(root=root, name="i3d", settings=detector), "convert i3d").outputs["weights"]

    common = {"root": root, "name": name, "settings": encode, "vae": weights}
    plan = _named(encode_plan(**common), "encode: plan")
    common["plan"] = plan.outputs["plan"]
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=PARALLELISM) as task:
        part = _named(encode_shards(**common, task=task), "encode: shards")
    merged = _named(encode_merge(**common, parts=dsl.Collected(part.output)), "encode: merge")
    latents = merged.outputs["latents"]

    trained = _named(train_step(root=root, name=name, settings=train, latents=latents), "train")
    checkpoint = trained.outputs["checkpoint"]

    videos, scores = {}, {}
    for label, step in (("trained", NEWEST), ("untrained", UNTRAINED)):
        videos[label] = _generate(label, root, sample, step, checkpoint, weights)
        scored = score_step(root=root, name=label, settings=score, videos=videos[label], real=latents, detector=i3d)
        scores[label] = _named(scored, f"score {label}").outputs["score"]

    page = report_step(
        root=root,
        name=name,
        settings=report,
        vae=weights,
        latents=latents,
        checkpoint=checkpoint,
        trained=videos["trained"],
        untrained=videos["untrained"],
        trained_score=scores["trained"],
        untrained_score=scores["untrained"],
    )
    _named(page, "report")
