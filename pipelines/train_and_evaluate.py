"""The DAG: convert, encode, train, sample, score, report.

    convert pretrained ────────────────────────────────────┐
    convert vae ────┬─► encode: plan ─► shards … ─► merge ─► train ─┬─► sample trained ───► score ─┬─► report
    convert i3d ─┐  │                                               └─► sample untrained ─► score ─┘
                 └──┴──────────────────────────────────────────────────────────────────────► score

"Untrained" is the model before the first update: fresh weights, or the pretrained ones where there are some.

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
        weights, i3d = parts.weights(root, vae, detector)
        latents = parts.encode_dataset(root, name, encode, weights, train, sample, score)
        start = parts.pretrained_weights(root, pretrained)
        training = train_step(root=root, name=name, settings=train, latents=latents, vae=weights, init_from=start)
        trained = parts.named(training, "train", "train")
        checkpoint = trained.outputs["checkpoint"]

        videos, scores = {}, {}
        for label, step in (("trained", parts.NEWEST), ("untrained", parts.START)):
            videos[label] = parts.generate(label, root, label, sample, step, checkpoint, weights)
            scores[label] = parts.measure(label, root, label, score, videos[label], latents, i3d)

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
        parts.named(page, "report")
