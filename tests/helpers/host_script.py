"""Run by the host's own Python (test_host_native.py): what a server on the CPU cannot be brought to show.

`python host_script.py PACK LORA` in the host's folder prints one JSON object.
"""

import json

from host_entry import ARGUMENTS  # the first: it enters the host

# isort: split
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from pack.microcinema_core.checkpoint import resolve
from pack.microcinema_core.pipeline import Pipeline
from pack.nodes import EulerSampler, Interpolate, Loader, PriorLatent, VideoCombine

LORA = ARGUMENTS[1]
FRAMES = 3


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def low_vram(weights: str) -> dict:
    """One prediction with a LoRA: all weights loaded, some, fewer, all again; the largest difference of each."""
    model, clip, vae = Loader.execute("demo-base (bundled)", weights).result
    model, _ = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(LORA), 1.0, 0.0)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("pan left"))
    positive, _, latent, _ = PriorLatent.execute(
        model, conditioning, conditioning, vae, noise(1, 32, 32, 3), 32, 32, FRAMES, 0.03, 0.02, 0
    ).result
    network, device, size = model.model, model.load_device, model.model_size()
    x = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))

    def predict():
        [[text, options]] = positive
        conds = network.extra_conds(noise=x, device=device, cross_attn=text, **options)
        conds = {name: cond.process_cond(batch_size=FRAMES, area=None).cond for name, cond in conds.items()}
        return network.apply_model(x, torch.full((FRAMES,), 2.0), transformer_options={}, **conds)

    def state(found):
        cast = sum(hasattr(module, "prev_comfy_cast_weights") for module in network.modules())
        return {
            "difference": (found - whole).abs().max().item(), "loaded": network.model_loaded_weight_memory / size,
            "kept_back": cast, "patched_on_use": network.lowvram_patch_counter,
        }  # fmt: skip

    states = {}
    model.patch_model(device)
    whole = predict()
    states["whole"] = state(whole)
    model.unpatch_model(model.offload_device)
    without_lora = predict()
    model.patch_model(device, lowvram_model_memory=size // 2)
    states["half"] = state(predict())
    model.partially_unload(model.offload_device, size // 4)
    states["less"] = state(predict())
    model.unpatch_model(model.offload_device)
    model.patch_model(device)
    states["whole again"] = state(predict())
    layers = {name: layer for name, layer in network.diffusion_model.named_modules() if layer._parameters}
    foreign = [name for name, layer in layers.items() if not hasattr(layer, "comfy_cast_weights")]
    return {
        "states": states, "lora": (whole - without_lora).abs().max().item(), "layers": len(layers),
        "foreign": foreign,
    }  # fmt: skip


def beside_the_core() -> float:
    """The relative difference of the nodes' latents from the core's, of one torch: same seed, three guided steps."""
    model, clip, vae = Loader.execute("demo-base (bundled)", "default").result
    picture, prompts = noise(1, 96, 96, 3), ("pan left", "")
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]
    conditioned = PriorLatent.execute(model, *texts, vae, picture, 96, 96, 9, 0.03, 0.02, 0).result[:3]
    found = EulerSampler.execute(model, *conditioned, 5, 3, 2.0, 0.0, 0.0, 1000.0, 1.0).result[0]["samples"]
    core = Pipeline.from_file(resolve("demo-base"))
    condition, context = core.encode(picture.movedim(-1, 1))[None], core.text.encode(list(reversed(prompts)))
    settings = {"frames": 9, "steps": 3, "cfg": 2.0, "lambda_": 0.03, "gamma": 0.02, "seeds": [5]}
    expected = core.sample(condition, context, **settings)[0]
    return ((found * core.config.autoencoder.scale - expected).norm() / expected.norm()).item()


def message_of(call, *arguments) -> str:
    try:
        call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


def bad_input() -> dict:
    """What each node says of each bad input, and how often a network ran meanwhile."""
    model, clip, vae = Loader.execute("demo-base (bundled)", "default").result
    ends = Loader.execute("demo-interpolation (bundled)", "default").result[0]
    text = clip.encode_from_tokens_scheduled(clip.tokenize("pan left"))
    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
        "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {"ddconfig": ddconfig, "embed_dim": 4}
    foreign = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params})

    def prior(image, vae=vae):
        return PriorLatent.execute(model, text, text, vae, image, 96, 96, 9, 0.03, 0.02, 0).result

    def between(images, vae=vae):
        Interpolate.execute(ends, vae, images, 1, 1, 0, False, 2.0)

    def combine(images):
        VideoCombine.execute(images, 8.0, "gif", 80, 0, False, "never", False)

    good = noise(2, 96, 96, 3)
    positive, negative, *_ = prior(good)
    calls = []
    for module in (model.model.diffusion_model, ends.model.diffusion_model, vae.first_stage_model.decoder):
        module.register_forward_pre_hook(lambda *_: calls.append(1))

    def sample(*shape):
        EulerSampler.execute(model, positive, negative, {"samples": torch.zeros(shape)}, 0, 1, 1.0, 0.0, 0.0, 1.0, 1.0)

    holed, endless = good.clone(), good.clone()
    holed[1, 3, 5, 2], endless[0, 0, 0, 0] = float("nan"), float("inf")
    images = {
        "NaN": holed.flip(0), "infinite": endless, "empty": good[:0], "mask": good[..., :1], "planes": good[..., :2],
        "no batch": good[0],
    }  # fmt: skip
    messages = {f"{node.__name__} {name}": message_of(node, image) for node in (prior, between, combine)
                for name, image in images.items()}  # fmt: skip
    messages |= {
        "between one": message_of(between, good[:1]), "prior foreign": message_of(prior, good, foreign),
        "between foreign": message_of(between, good, foreign), "sample channels": message_of(sample, 9, 4, 12, 12),
        "sample size": message_of(sample, 9, 16, 10, 12), "sample video": message_of(sample, 1, 16, 9, 12, 12),
    }  # fmt: skip
    return {"messages": messages, "calls": len(calls)}


with torch.inference_mode():
    low = {name: low_vram(name) for name in ("default", "fp8_e4m3fn")}
    print(json.dumps({"bad": bad_input(), "low": low, "beside the core": beside_the_core()}))
