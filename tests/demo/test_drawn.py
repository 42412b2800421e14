"""The drawn scenes are a source of clips for the trainer."""

from dataclasses import replace

import pytest
import torch

from microcinema_core.config import BASE
from microcinema_core.demo.captions import all_words
from microcinema_core.demo.drawn import DrawnClips
from microcinema_core.demo.scenes import draw_clip
from microcinema_core.errors import MicroCinemaError

MODEL = replace(BASE, width=32, height=32)


def test_a_clip_is_the_scene_of_its_number_in_every_epoch():
    clips, scene = DrawnClips(10, MODEL), draw_clip(3, frames=9, size=32)
    for visit in (0, 5):
        clip = clips.read(3, visit)
        assert clip.caption == scene.caption
        torch.testing.assert_close(clip.pixels.float() / 255, scene.frames, rtol=0, atol=0.51 / 255)
    assert len(clips.buckets) == 10 and clips.sizes == [(32, 32)]


def test_the_vocabulary_holds_every_word_of_a_caption():
    clips = DrawnClips(10, MODEL)
    assert clips.captions() == [" ".join(all_words())]
    assert set(clips.read(0, 0).caption.split()) <= set(all_words())


def test_scenes_of_another_shape_are_refused():
    with pytest.raises(MicroCinemaError, match="data.scenes are square, the model's clips 64x32: give it equal sides"):
        DrawnClips(10, replace(MODEL, width=64))
