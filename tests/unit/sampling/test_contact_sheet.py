"""The picture of a set: every video has its place."""

import io

import numpy as np
import pytest
from PIL import Image

from latte.sampling import contact_sheet


def videos(count: int, size: tuple[int, int], num_frames: int = 16) -> list[np.ndarray]:
    return [np.full((num_frames, *size, 3), 10 + number, np.uint8) for number in range(count)]


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_video_is_in_its_place() -> None:
    sheet = opened(contact_sheet.draw(videos(6, (8, 10))))
    assert sheet.shape == (2 * 8 + 4, 4 * 40 + 3 * 4, 3)
    for number in range(6):
        row, column = divmod(number, 4)
        strip = sheet[row * 12 : row * 12 + 8, column * 44 : column * 44 + 40]
        assert (strip == 10 + number).all()
    assert (sheet[12:, 2 * 44 :] == 255).all()


def test_frames_are_spread_over_the_video_and_large_ones_made_small() -> None:
    video = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.full((16, 200, 100, 3), 10, np.uint8)
    sheet = opened(contact_sheet.draw([video]))
    assert sheet.shape == (96, 4 * 48, 3)
    assert sheet[50, ::48, 0].tolist() == [0, 50, 100, 150]
    assert contact_sheet.draw([video]) == contact_sheet.draw([video.copy()])
    assert opened(contact_sheet.draw(videos(1, (8, 8), 1))).shape == (8, 8, 3)


@pytest.mark.parametrize("given", [[], videos(65, (2, 2)), [*videos(1, (2, 2)), *videos(1, (4, 4))]])
def test_what_does_not_fit_on_a_sheet_is_refused(given: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64 of one shape"):
        contact_sheet.draw(given)


def test_each_video_has_its_number_and_class_above_it() -> None:
    items = [
        {"index": 0, "label": 2, "class": "Skiing"},
        {"index": 1, "label": 2},
        {"index": 2, "label": None},
        {"index": 3, "label": None, "caption": "a dog runs"},
    ]
    titles = [contact_sheet.title(item) for item in items]
    assert titles == ["#0  Skiing (2)", "#1  class 2", "#2", "#3  a dog runs"], "a set of a version before has no names"
    sheet = opened(contact_sheet.draw(videos(4, (8, 40)), titles))
    assert sheet.shape == (15 + 8, 4 * 160 + 3 * 4, 3)
    for number in range(4):
        strip = sheet[:, number * 164 : number * 164 + 160]
        assert (strip[15:] == 10 + number).all()
        assert strip[:15].min() < 128
        assert (sheet[:15, number * 164 + 160 : (number + 1) * 164] == 255).all()
    assert (opened(contact_sheet.draw(videos(2, (8, 40)), ["x" * 500, "短い"]))[:15, 160:164] == 255).all()
    with pytest.raises(ValueError, match="1 titles of 2 videos"):
        contact_sheet.draw(videos(2, (8, 8)), ["one"])
