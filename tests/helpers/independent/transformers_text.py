"""CLIP's text tower as transformers has it, of any version that names its arguments so (4.37 to 5.24 seen)."""

from transformers import CLIPTextConfig, CLIPTextModel

from microcinema_core.config import TextConfig


def tower(config: TextConfig) -> CLIPTextModel:
    """With random weights; layers that are skipped at the end are not built."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=config.vocabulary_size, hidden_size=config.width, intermediate_size=4 * config.width,
        num_hidden_layers=config.layers - config.skip_last, num_attention_heads=config.heads,
        max_position_embeddings=config.max_tokens, hidden_act="gelu", projection_dim=config.width,
    )).eval()  # fmt: skip
