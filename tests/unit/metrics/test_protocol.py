"""The FVD protocol: presets, the choice of real clips, and frames as the detector sees them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latte.errors import UserError
from latte.metrics.protocol import PRESETS, Protocol, choose_real_clips, prepare, resolve
from tests import peers

videos_strategy = st.lists(st.integers(1, 120), min_size=1, max_size=30).map(
    lambda lengths: [(f"video-{i}", frames) for i, frames in enumerate(lengths)]
)


def test_every_preset_can_be_resolved():
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    assert {"demo", "faceforensics", "latte-2048", "skytimelapse", "taichi-hd", "ucf101"} <= set(names)
    strides = {name: resolve(name).frame_stride for name in names}
    assert strides["taichi-hd"] == 6
    assert strides["skytimelapse"] == 3


def test_a_file_a_preset_and_its_fields_mean_the_same(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((PRESETS / "demo.yaml").read_text() + "seed: 5\n")
    assert resolve(str(path)) == resolve({"preset": "demo", "seed": 5})
    assert resolve(str(path)).digest == resolve({"preset": "demo", "seed": 5}).digest
    assert resolve("demo").digest != resolve(str(path)).digest


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no-such", "no preset 'no-such' .*skytimelapse"),
        ("../fvd/demo", "no preset"),
        ("/nowhere/p.yaml", "No such file"),
        ({"num_clip": 3}, "unknown key num_clip"),
        ({"num_clips": 1}, "num_clips"),
        ({"start": "first", "clips_per_video": None}, "clips_per_video"),
    ],
)
def test_bad_protocols_are_refused_in_one_line(value, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve(value)
    assert "\n" not in str(caught.value)


@given(videos_strategy, st.integers(0, 5), st.integers(1, 4), st.sampled_from([None, 1, 3]), st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_chosen_clips_lie_inside_their_videos(videos, seed, stride, per_video, count):
    protocol = Protocol(num_clips=count, frame_stride=stride, clips_per_video=per_video, seed=seed)
    clips = choose_real_clips(videos, protocol)
    usable = [i for i, (_, frames) in enumerate(videos) if frames >= 16 * stride]
    assert len(clips) == (0 if not usable else count if per_video is None else min(count, per_video * len(usable)))
    uses = np.bincount([clip.video for clip in clips], minlength=len(videos))
    for clip in clips:
        assert clip.start_frame >= 0
        assert clip.start_frame + 15 * stride < videos[clip.video][1]
    if clips:
        assert uses[usable].max() - uses[usable].min() <= 1


@given(videos_strategy, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_choice_does_not_depend_on_the_order_of_the_videos(videos, random):
    protocol = Protocol(num_clips=10, frame_stride=1, clips_per_video=None)
    shuffled = videos.copy()
    random.shuffle(shuffled)
    named = [(videos[clip.video][0], clip.start_frame) for clip in choose_real_clips(videos, protocol)]
    assert named == [(shuffled[clip.video][0], clip.start_frame) for clip in choose_real_clips(shuffled, protocol)]


def test_the_choice_follows_the_seed():
    videos = [(f"v{i}", 200) for i in range(20)]
    choices = [tuple(choose_real_clips(videos, Protocol(num_clips=8, seed=seed))) for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]


@pytest.mark.peers
@pytest.mark.parametrize("size", [(64, 64), (256, 256), (90, 120), (224, 224), (1, 7)])
def test_frames_are_resized_as_the_published_scorers_do(size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)

    def ask():
        import torch

        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
        return (2.0 * resized / 255.0 - 1).permute(1, 0, 2, 3).numpy()

    expected = peers.one(f"interpolate-{size[0]}-{size[1]}", ask)
    ours = prepare(frames)
    assert ours.dtype == np.float32
    assert ours.shape == (3, 3, 224, 224)
    np.testing.assert_allclose(expected.same_places(ours), expected.values, atol=3e-4)
