"""The autoencoder is SD's, key for key."""

import torch

from microcinema_core.config import AutoencoderConfig
from microcinema_core.model.autoencoder import Autoencoder


def test_names_and_shapes_are_those_of_sd():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig())
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.block.1.conv2.bias": (512,),
        "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.mid.attn_1.norm.weight": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.1.block.2.norm2.bias": (256,),
        "decoder.up.3.block.2.conv1.weight": (512, 512, 3, 3),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "encoder.down.3.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert len(shapes) == 248


def test_latents_are_scaled_posterior_means(tiny_model, tiny_config):
    model, pictures = tiny_model.autoencoder, torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    mean, log_variance = model.moments(pictures)
    assert mean.shape == log_variance.shape == (2, 4, 8, 12)
    assert torch.equal(model.encode(pictures), mean * tiny_config.autoencoder.scale)
    assert model.decode(model.encode(pictures)).shape == pictures.shape
