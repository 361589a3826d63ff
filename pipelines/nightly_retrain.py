"""The DAG of every night: encode what is new, train on from the promoted model, promote if the score is better.

    convert pretrained ─► promoted ─────────────────────┐
    convert vae, i3d ─► encode: plan ─► shards … ─► merge ─► train ─┬─► sample after ──► score ─┬─► promote ─► report
                                                                    └─► sample before ─► score ─┘   (gate)

"Before" is the promoted model: its videos are those of the night that promoted it and are not generated again. The gate
moves the pointer once all is scored; a failure at any step before leaves the promoted model as it was. The report comes
last, since it tells what the gate decided; without it the decision stands.
"""

from kfp import dsl

from components.promote.component import promote as promote_step
from components.promote.component import promote_start
from components.report.component import report_night
from components.train.component import train as train_step
from pipelines import parts


@dsl.pipeline(
    name="latte-nightly-retrain",
    description="Encode new videos, train on from the promoted model, score, promote if better, report.",
)
def nightly_retrain(
    root: str,
    name: str,
    vae: dict,
    detector: dict,
    pretrained: dict,
    encode: dict,
    train: dict,
    sample: dict,
    score: dict,
    promote: dict,
    report: dict,
    notify: dict = {},  # noqa: B006
) -> None:
    """Each `dict` holds the keys of one step's config; see `latte STEP --help`.

    Args:
        root: Where everything is kept, s3://bucket/prefix or file:///dir.
        name: Name of the dataset, the training run, the videos, the scores, the report and the model in the registry.
        vae: Keys of ConvertConfig for the autoencoder.
        detector: Keys of ConvertConfig for the I3D that scores.
        pretrained: Keys of ConvertConfig for the Latte that training starts from; empty: fresh weights.
        encode: Keys of EncodeConfig.
        train: Keys of TrainConfig; its init_from counts only before the first promotion, without pretrained.
        sample: Keys of SampleConfig.
        score: Keys of ScoreConfig.
        promote: Keys of PromoteConfig: margin or tolerance, apart.
        report: Keys of ReportConfig.
        notify: Keys of TellConfig: webhook, when.
    """
    with parts.told("nightly_retrain", root, name, notify):
        given = parts.pretrained_weights(root, pretrained)
        start = parts.named(promote_start(root=root, name=name, pretrained=given), "promoted")
        weights, i3d = parts.weights(root, vae, detector)
        latents = parts.encode_dataset(root, name, encode, weights, train, sample, score)
        training = train_step(
            root=root, name=name, settings=train, latents=latents, vae=weights, init_from=start.output
        )
        checkpoint = parts.named(training, "train", "train").outputs["checkpoint"]

        videos, scores = {}, {}
        # One name for both: what "after" was last night is found under it as "before" tonight.
        for label, step in (("after", parts.NEWEST), ("before", parts.START)):
            videos[label] = parts.generate(label, root, name, sample, step, checkpoint, weights)
            scores[label] = parts.measure(label, root, name, score, videos[label], latents, i3d)

        gate = promote_step(
            root=root,
            name=name,
            settings=promote,
            checkpoint=checkpoint,
            score=scores["after"],
            real=latents,
            detector=i3d,
        )
        # Both models are scored before one of them is promoted.
        decision = parts.named(gate, "promote").after(scores["before"].task)
        page = report_night(
            root=root,
            name=name,
            settings=report,
            vae=weights,
            latents=latents,
            checkpoint=checkpoint,
            after=videos["after"],
            before=videos["before"],
            after_score=scores["after"],
            before_score=scores["before"],
            promotion=decision.outputs["promotion"],
        )
        parts.named(page, "report")
