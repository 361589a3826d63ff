"""The DAG: convert, encode, train, sample, score, report.

    convert and encode ─► train ─► sample ─► score ─► report

Two sets of videos are made and scored: of the trained model and of the untrained one, which is that before the first
update: fresh weights, or the pretrained ones where there are some. With `num_tasks` above 1, encode and sample are
fanned out: plan ─► shards … ─► merge.

What KFP carries between the steps are small manifests; latents, checkpoints and videos go straight to the root.
"""

from kfp import dsl

from components.report.component import report as report_step
from components.train.component import train as train_step
from pipelines import parts


@dsl.pipeline(
    name="latte-train-and-evaluate",
    description="Encode a dataset, train a Latte on it, generate videos before and after, score both and report.",
)
def train_and_evaluate(
    root: str,
    name: str,
    vae: dict,
    detector: dict,
    pretrained: dict,
    encode: dict,
    train: dict,
    sample: dict,
    score: dict,
    report: dict,
    notify: dict = {},  # noqa: B006
) -> None:
    """Each `dict` holds the keys of one step's config; see `latte STEP --help`.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset, the training run, the scores and the report.
        vae: Keys of ConvertConfig for the autoencoder.
        detector: Keys of ConvertConfig for the I3D that scores.
        pretrained: Keys of ConvertConfig for the Latte that training starts from; empty: fresh weights.
        encode: Keys of EncodeConfig.
        train: Keys of TrainConfig.
        sample: Keys of SampleConfig.
        score: Keys of ScoreConfig.
        report: Keys of ReportConfig.
        notify: Keys of TellConfig: webhook, when.
    """
    with parts.told("train_and_evaluate", root, name, notify):
        made = parts.prepare(root, name, (vae, detector, pretrained), encode, train, sample, score)
        training = train_step(
            root=root,
            name=name,
            settings=train,
            latents=made["latents"],
            vae=made["vae"],
            pretrained=made["pretrained"],
        )
        checkpoint = parts.named(training, "train", "train").outputs["Output"]

        names = ("trained", "untrained")
        sets = parts.generate_two(names, root, names, sample, checkpoint, made["vae"])
        scores = parts.measure_two(root, names, score, sets, made["latents"], made["i3d"])
        page = report_step(
            root=root,
            name=name,
            settings=report,
            vae=made["vae"],
            latents=made["latents"],
            checkpoint=checkpoint,
            trained=sets[0],
            untrained=sets[1],
            trained_score=scores[0],
            untrained_score=scores[1],
        )
        parts.named(page, "report")
