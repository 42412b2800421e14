"""What tests of the bundled models share: small models of their kind, and drawn scenes."""

from __future__ import annotations

import pytest
from demo_networks import tiny_demo_base

from microcinema_core.demo.config import DemoModelConfig
from microcinema_core.demo.scenes import Clip, draw_clip


@pytest.fixture(scope="session")
def demo_config() -> DemoModelConfig:
    return tiny_demo_base()


@pytest.fixture(scope="session")
def small_clips() -> list[Clip]:
    """The first 300 scenes, too small to see, for what their captions say."""
    return [draw_clip(seed, frames=1, size=12) for seed in range(300)]


@pytest.fixture(scope="session")
def captions(small_clips) -> list[str]:
    return [clip.caption for clip in small_clips]
