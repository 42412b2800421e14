"""Our text tower beside that of transformers."""

import torch
from independent.transformers_text import tower

from microcinema_core.model.text import TextEncoder


@torch.no_grad()
def assert_tower_is_that_of_transformers(text: TextEncoder) -> None:
    """Equal states of equal weights, for the empty prompt, a short one, and one that fills the tower."""
    theirs = tower(text.config)
    level = "text_model." * any(key.startswith("text_model.") for key in theirs.state_dict())  # below 5.6
    theirs.load_state_dict({level + key: value for key, value in text.transformer.state_dict().items()})
    ids = text.tokenizer(["", "the camera zooms in", " ".join(text.tokenizer.vocabulary)])
    states, expected = text(ids), theirs(ids).last_hidden_state
    assert (states - expected).norm() < 1e-6 * expected.norm()
