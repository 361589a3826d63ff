"""The DAG of an evaluation set: many videos from the promoted checkpoint, or from one that is named, and their score.

    checkpoint ───────────────────────┬─► sample ─► score ─► report
    convert and encode (found done) ──┘

With `num_tasks` above 1, encode and sample are fanned out: plan ─► shards … ─► merge. The set grows in place: a larger
`num_videos` generates only the new ones.
"""

from kfp import dsl

from components.promote.component import promote_checkpoint
from components.report.component import report_set
from pipelines import parts


@dsl.pipeline(
    name="latte-bulk-sample",
    description="Generate a set of videos from the promoted checkpoint or from one that is named, score it and report.",
)
def bulk_sample(
    root: str,
    name: str,
    model: str,
    dataset: str,
    vae: dict,
    detector: dict,
    encode: dict,
    sample: dict,
    score: dict,
    checkpoint: str = "",
    report: dict = {},  # noqa: B006
    notify: dict = {},  # noqa: B006
) -> None:
    """Each `dict` holds the keys of one step's config; see `latte STEP --help`.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the video set, of its score and of the report.
        model: Name of the model in the registry.
        dataset: Name of the dataset that the score is against.
        vae: Keys of ConvertConfig for the autoencoder.
        detector: Keys of ConvertConfig for the I3D that scores.
        encode: Keys of EncodeConfig of the dataset that the score is against.
        sample: Keys of SampleConfig.
        score: Keys of ScoreConfig.
        checkpoint: Manifest of a checkpoint or of converted Latte weights; empty for the promoted one.
        report: Keys of ReportConfig.
        notify: Keys of TellConfig: webhook, when.
    """
    with parts.told("bulk_sample", root, name, notify):
        chosen = parts.named(promote_checkpoint(root=root, name=model, uri=checkpoint), "checkpoint")
        made = parts.prepare(root, dataset, (vae, detector, {}), encode, {}, sample, score)
        videos = parts.generate("bulk", root, name, sample, parts.NEWEST, chosen.outputs["Output"], made["vae"])
        measured = parts.measure("bulk", root, name, score, videos, made["latents"], made["i3d"])
        page = report_set(
            root=root,
            name=name,
            settings=report,
            vae=made["vae"],
            latents=made["latents"],
            checkpoint=chosen.outputs["Output"],
            videos=videos,
            score=measured,
        )
        parts.named(page, "report")
