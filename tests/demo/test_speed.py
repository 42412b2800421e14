"""A compiler and a CUDA graph can take a step of the bundled models' kind whole, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from demo_networks import PIXELS, demo_network
from networks import TINY
from steps import compiled_graphs, operations_elsewhere

CONFIGS = {
    "base": demo_network(TINY, scale_shift_norm=True, forward_warp=PIXELS, residual_std=0.5, amplitude_std=0.05),
    "interpolation": demo_network(
        replace(TINY, condition="ends", context_dim=None, scale_shift_norm=True), flow_warp=PIXELS, residual_std=0.2
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@every_config
def test_nothing_of_a_step_leaves_its_device(config):
    assert operations_elsewhere(config) == []


@every_config
def test_compiles_as_one_graph_that_all_steps_and_clips_share(config):
    assert compiled_graphs(config, "aot_eager", 2) == 1
