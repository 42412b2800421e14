"""How far a model's motion is trusted in quiet places, and how the frames of a clip come to tell it."""

import pytest
import torch
from tiny import tiny_between

from microcinema_core.trust import ACROSS_ONE, MEMORY, PART, Trust, part_of
from microcinema_core.windows import Windows, each_once


def test_the_model_is_trusted_before_the_first_frame():
    assert Trust().share == 1


@pytest.mark.parametrize(
    ("products", "share"),
    [((2.0, 2.0), 1), ((3.0, 2.0), 1), ((1.5, 2.0), 1 - 0.25 * ACROSS_ONE), ((0.0, 2.0), 0), ((-1.0, 2.0), 0)],
)
def test_the_share_is_that_of_least_squares_and_what_misses_counts_more(products, share):
    assert Trust().after(torch.tensor(products)) == pytest.approx(share)


def test_frames_in_which_model_and_blend_agree_tell_nothing():
    trust = Trust()
    assert trust.after(torch.zeros(2)) == 1
    trust.after(torch.tensor([1.8, 2.0]))
    assert trust.after(torch.zeros(2)) == pytest.approx(1 - 0.1 * ACROSS_ONE)


def test_later_frames_count_more():
    trust = Trust()
    trust.after(torch.tensor([1.0, 1.0]))
    ratio = (0.8 + MEMORY) / (1 + MEMORY)
    assert trust.after(torch.tensor([0.8, 1.0])) == pytest.approx(1 - ACROSS_ONE * (1 - ratio))


def test_parts_come_from_all_over_a_frame():
    places = torch.stack(torch.meshgrid(torch.arange(200), torch.arange(300), indexing="ij"))
    parts = [part_of(places, number) for number in range(5)]
    assert all(part.shape == (2, PART, PART) for part in parts)
    corners = {tuple(part[:, 0, 0].tolist()) for part in parts}
    down, right = 200 - PART, 300 - PART
    assert corners == {(0, 0), (down, right), (0, right), (down, 0), (down // 2, right // 2)}
    assert torch.equal(part_of(places, 5), parts[0])


def test_a_small_frame_is_its_own_part():
    frame = torch.rand(3, 40, PART)
    assert torch.equal(part_of(frame, 3), frame)


class Recorder:
    """Inserts the first end frame three times; frame number n agrees with the model by 1 − n/100."""

    def __init__(self):
        self.shares, self.compared = [], []

    def between(self, ends, seeds, steps, progress, shares):
        self.shares += shares.tolist()
        return ends[:, :1].expand(-1, 3, -1, -1, -1)

    def compare(self, triples):
        numbers = triples[:, 1, 0, 0, 0]
        self.compared += numbers.tolist()
        return torch.stack([1 - numbers / 100, torch.ones_like(numbers)], 1)


@pytest.fixture(scope="module")
def config():
    return tiny_between()


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 9])
def test_a_window_gets_the_share_of_the_frames_up_to_its_second(config, at_once):
    frames = torch.arange(7.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    recorder, trust = Recorder(), Trust()
    windows = Windows(config, recorder, steps=1)
    windows.at_once = at_once
    assert len(list(windows.interpolated(frames, 7, 1, seed=0))) == 25
    assert recorder.compared == [1, 2, 3, 4, 5], "each frame with two neighbours once"
    expected = [trust.after(torch.tensor([1 - number / 100, 1])) for number in range(1, 6)]
    assert recorder.shares == pytest.approx([*expected, expected[-1]])


def test_frames_of_a_second_pass_are_not_compared(config):
    frames = torch.arange(3.0).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    recorder = Recorder()
    assert len(list(Windows(config, recorder, steps=1).interpolated(frames, 3, 2, seed=0))) == 33
    assert recorder.compared == [1] and len(recorder.shares) == 2 + 8
    assert recorder.shares.count(1) == 8


def test_the_frame_between_two_windows_is_encoded_once():
    frames, counts = torch.rand(5, 3, 8, 8), []

    def encode(pictures):
        counts.append(len(pictures))
        return 2 * pictures

    neighbours = torch.stack((frames[:-1], frames[1:]), 1)
    assert torch.equal(each_once(encode, neighbours), 2 * neighbours)
    apart = neighbours[[0, 2]]
    assert torch.equal(each_once(encode, apart), 2 * apart)
    assert torch.equal(each_once(encode, neighbours[:1]), 2 * neighbours[:1])
    assert counts == [5, 4, 2]
