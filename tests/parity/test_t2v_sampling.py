"""From captions' tokens to latents beside diffusers: the schedules of DDIM, and LattePipeline on random weights."""

import mindspore as ms
import numpy as np
import pytest

from latte import device
from latte.diffusion import Diffusion
from latte.diffusion.schedule import make_schedule
from latte.kinds.scheduler import PublishedScheduler
from latte.models.latte_t2v import LatteT2V
from latte.models.t2v_configs import LatteT2VConfig, T5Config
from latte.models.t5 import EncoderInPieces
from latte.texts import CaptionStates
from tests import peers, published

SCHEDULER = PublishedScheduler(steps_offset=1)
SCHEDULERS = {
    "leading": SCHEDULER,
    "trailing": PublishedScheduler(timestep_spacing="trailing", set_alpha_to_one=False),
    "linspace": PublishedScheduler(timestep_spacing="linspace", beta_schedule="scaled_linear", beta_start=8.5e-4),
    "cosine": PublishedScheduler(beta_schedule="squaredcos_cap_v2", set_alpha_to_one=False),
}
STEPS, SCALE = 8, 7.5
LENGTHS = (5, 120, 1)
MODEL = LatteT2VConfig(**published.T2V)
TEXT = T5Config(**published.T5)


@pytest.fixture(scope="module", autouse=True)
def _device():
    device.setup(seed=0)


def published_scheduler(config):
    from diffusers import DDIMScheduler

    return DDIMScheduler(**config.model_dump(), clip_sample=False)


@pytest.mark.peers
@pytest.mark.parametrize("count", [50, 7])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_published_steps_are_taken_and_lead_to_the_published_noise(name, count):
    config = SCHEDULERS[name]
    start = np.random.default_rng(0).standard_normal((1, 1, 1, 2, 2)).astype(np.float32)

    def model(x, t):
        return 0.3 * x + 0.001 * t

    def ask():
        import torch

        scheduler = published_scheduler(config)
        scheduler.set_timesteps(count)
        x = torch.from_numpy(start)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x).prev_sample
        return {"steps": scheduler.timesteps.numpy(), "x": x.numpy()}

    theirs = peers.answer(f"ddim-{name}-{count}", ask)
    schedule = make_schedule(config.noise_schedule, count, published=config)
    np.testing.assert_array_equal(schedule.timesteps[::-1], theirs["steps"].values)
    found = Diffusion(count, config.noise_schedule, config).sample(
        lambda x, t: ms.Tensor(model(x.asnumpy(), np.float32(t.asnumpy()[0]))), start
    )
    np.testing.assert_allclose(theirs["x"].same_places(found), theirs["x"].values, atol=1e-5, rtol=1e-5)


def inputs():
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, TEXT.vocab_size, (4, 120))
    mask = (np.arange(120) < np.array([*LENGTHS, 1])[:, None]).astype(np.float32)
    tokens = np.where(mask > 0, tokens, 0)
    tokens[3, 0] = 1  # of the empty caption the end is left
    shape = (3, MODEL.num_frames, MODEL.in_channels, MODEL.sample_size, MODEL.sample_size)
    return tokens, mask, rng.standard_normal(shape).astype(np.float32)


def made_weights():
    video = peers.shapes("convert-t2v-shapes", lambda: published.published_t2v().state_dict())
    text = peers.shapes("convert-t5-shapes", lambda: published.published_t5().state_dict())
    text.pop("encoder.embed_tokens.weight", None)  # the other table once more
    return peers.weights(video, seed=0), peers.weights(text, seed=1)


def ask_pipeline(frames, guidance):
    """The pipeline, one caption at a time: only so the published code cuts a caption where it ends."""
    import torch
    from diffusers import LattePipeline

    video, text = made_weights()
    tokens, mask, noise = inputs()
    encoder, net = published.published_t5().eval(), published.published_t2v().eval()
    encoder.load_state_dict({name: torch.from_numpy(value) for name, value in text.items()}, strict=False)
    encoder.encoder.embed_tokens.weight.data.copy_(encoder.shared.weight)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in video.items()})
    pipe = LattePipeline(None, None, published.published_vae(), net, published_scheduler(SCHEDULER))
    pipe.set_progress_bar_config(disable=True)
    made = []
    with torch.no_grad():
        states = encoder(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state
        for i, length in enumerate(LENGTHS):
            latents = torch.from_numpy(noise[i : i + 1, :frames].transpose(0, 2, 1, 3, 4).copy())  # (1, C, F, h, w)
            done = pipe(
                prompt_embeds=states[i : i + 1, :length], negative_prompt_embeds=states[3:, :length],
                negative_prompt=None, latents=latents, num_inference_steps=STEPS, guidance_scale=guidance,
                video_length=frames, output_type="latent", mask_feature=False, height=8, width=8,
            ).frames  # fmt: skip
            made.append(done.numpy().transpose(0, 2, 1, 3, 4))
    return np.concatenate(made)


@pytest.fixture(scope="module")
def ours():
    video, text = made_weights()
    tokens, mask, noise = inputs()
    states = EncoderInPieces(TEXT, lambda name: text[name].copy()).encode(tokens, mask)
    kept = CaptionStates(TEXT.d_model)
    for i, length in enumerate(LENGTHS):
        kept.add(str(i), states[i, :length])
    net = LatteT2V(MODEL)
    for name, param in net.parameters_and_names():
        param.set_data(ms.Tensor(video[name]))
    diffusion = Diffusion(STEPS, published=SCHEDULER)

    def sample(rows, frames=MODEL.num_frames, guidance=SCALE):
        rows_text, rows_mask = kept.batch([str(row) for row in rows])
        return diffusion.sample(
            net, noise[rows, :frames], cfg_scale=guidance, all_channels=True, text=rows_text, text_mask=rows_mask,
            null_text=states[3],
        )  # fmt: skip

    return sample


@pytest.mark.peers
@pytest.mark.parametrize(("frames", "guidance"), [(2, SCALE), (1, 1.0)])
def test_a_batch_of_three_gives_what_the_published_pipeline_gives_for_each(ours, frames, guidance):
    expected = peers.one(f"t2v-pipeline-{frames}-{guidance}", lambda: ask_pipeline(frames, guidance))
    assert expected.values.std() > 0.5
    found = expected.same_places(ours([0, 1, 2], frames, guidance))
    # Untrained weights predict no noise that is there, so latents become large.
    np.testing.assert_allclose(found, expected.values, atol=1e-5 * expected.largest, rtol=0)


def test_a_video_does_not_depend_on_its_neighbours(ours):
    together = ours([0, 1, 2])
    near = {"atol": 1e-5 * np.abs(together).max(), "rtol": 0}
    for i in range(3):
        np.testing.assert_allclose(ours([i])[0], together[i], **near)
    # In the same place of a batch of the same size to the bit, whatever is beside it.
    np.testing.assert_array_equal(ours([0, 2, 1])[0], together[0])


def test_captions_of_other_shapes_are_refused():
    net = LatteT2V(MODEL)
    noise, text = np.zeros((2, 2, 4, 4, 4), np.float32), np.zeros((2, 120, 24), np.float32)
    mask = np.ones((2, 120), np.float32)
    for given, words in (
        ({"text": text[:, :7], "text_mask": mask[:, :7]}, r"text has shape \(2, 7, 24\)"),
        ({"text": text}, r"text_mask has shape \(0,\)"),
        ({"text": text, "text_mask": mask[:1]}, r"text_mask has shape \(1, 120\)"),
        ({"text": text, "text_mask": mask, "cfg_scale": 7.5}, "needs null_text"),
        ({"text": text, "text_mask": mask, "cfg_scale": 7.5, "null_text": text[0, :3]}, "null_text has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            Diffusion(2).sample(net, noise, **given)
