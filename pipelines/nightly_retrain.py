"""The DAG of every night: encode what is new, train on from the promoted model, promote if the score is better.

    promoted ─────────────┬─► train ─► sample ─► score ─► promote ─► report
    convert and encode ───┘                               (gate)

Two sets of videos are made and scored: of tonight's model, and of the promoted one, whose videos are those of the night
that promoted it and are not generated again. With `num_tasks` above 1, encode and sample are fanned out: plan ─►
shards … ─► merge. The gate moves the pointer once both are scored; a failure at any step before leaves the promoted
model as it was. The report comes last, since it tells what the gate decided; without it the decision stands.
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
        start = parts.named(promote_start(root=root, name=name), "promoted")
        made = parts.prepare(root, name, (vae, detector, pretrained), encode, train, sample, score)
        training = train_step(
            root=root,
            name=name,
            settings=train,
            latents=made["latents"],
            vae=made["vae"],
            init_from=start.output,
            pretrained=made["pretrained"],
        )
        checkpoint = parts.named(training, "train", "train").outputs["Output"]

        # One name for both: what "after" was last night is found under it as "before" tonight.
        sets = parts.generate_two(("after", "before"), root, (name, name), sample, checkpoint, made["vae"])
        # Both models are scored before one of them is promoted.
        scores = parts.measure_two(root, (name, name), score, sets, made["latents"], made["i3d"])
        gate = promote_step(
            root=root,
            name=name,
            settings=promote,
            checkpoint=checkpoint,
            score=scores[0],
            real=made["latents"],
            detector=made["i3d"],
        )
        decision = parts.named(gate, "promote")
        page = report_night(
            root=root,
            name=name,
            settings=report,
            vae=made["vae"],
            latents=made["latents"],
            checkpoint=checkpoint,
            after=sets[0],
            before=sets[1],
            after_score=scores[0],
            before_score=scores[1],
            promotion=decision.outputs["Output"],
        )
        parts.named(page, "report")
