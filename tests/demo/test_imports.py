"""A command with a bundled model imports what it needs, too."""

import pytest
from imported import LIBRARIES, imported_at_the_first_step, imported_by_info


@pytest.mark.parametrize("options", [[], ["demo-interpolation", "--json"]])
def test_info_of_a_bundled_model_reads_its_header_alone(options):
    assert imported_by_info(*options) & LIBRARIES <= {"numpy", "safetensors"}


def test_a_clip_begins_without_what_only_training_and_measuring_need(tmp_path):
    found = imported_at_the_first_step(tmp_path)
    assert {"torch", "tokenizers", "microcinema_core.demo.network", "microcinema_core.demo.warp"} <= found
    unwanted = {"transformers", "diffusers", "kornia", "av", "sympy", "torch._dynamo", "torch._inductor"}
    unwanted |= {f"microcinema_core.{part}" for part in ("training", "convert", "metrics")}
    unwanted |= {f"microcinema_core.demo.{part}" for part in ("recipes", "video", "text", "evaluate", "scenes")}
    assert not found & unwanted
