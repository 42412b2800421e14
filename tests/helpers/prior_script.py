"""Run by the host's own Python (tests/nodes/test_prior_any.py): the prior with the host's models and sampler nodes.

`python prior_script.py PACK` in the host's folder prints one JSON object: for each family of tiny_families.py what the
sampler nodes gave to the network, with and without the prior.
"""

import inspect
import json

import host_entry  # noqa: F401  # the first: it enters the host

# isort: split
import comfy.model_sampling
import comfy.samplers
import comfyui_version
import torch
from comfy_extras import nodes_context_windows as context_windows
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_model_advanced as sampling_nodes
from pack.nodes.prior_any import PriorAnyModel
from tiny_families import FAMILIES, LinearVAE, build

import nodes

FRAMES, SIDE, STRENGTH, STEPS, SEED = 3, 4, 0.05, 3, 7
APPLY = comfy.patcher_extension.WrappersMP.APPLY_MODEL


def call(node, *arguments, **named):
    """A node of the host, in the form that it has there."""
    if hasattr(node, "execute"):
        return node.execute(*arguments, **named).result
    return getattr(node(), node.FUNCTION)(*arguments, **named)


class Family:
    def __init__(self, name: str):
        _, _, self.channels, factor, time_factor, width = FAMILIES[name]
        self.name, self.stock, self.vae = name, build(name), LinearVAE(self.channels, factor, time_factor)
        self.video = time_factor is not None
        generator = torch.Generator().manual_seed(3)
        self.picture = torch.rand(1, SIDE * factor, SIDE * factor, 3, generator=generator)
        extra = {"pooled_output": torch.zeros(1, 32), "attention_mask": torch.ones(1, 8, dtype=torch.long),
                 "concat_latent_image": torch.zeros(1, 4, SIDE, SIDE)}  # fmt: skip
        self.text = [[torch.randn(1, 8, width, generator=generator), extra]]

    def latent(self, **more) -> dict:
        shape = (1, self.channels, FRAMES, SIDE, SIDE) if self.video else (FRAMES, self.channels, SIDE, SIDE)
        samples = torch.zeros(shape)
        if self.name == "LTXAV":
            from comfy.nested_tensor import NestedTensor  # of hosts with such models

            samples = NestedTensor((samples, torch.zeros(1, 8, 10, 16)))
        return {"samples": samples, **more}

    def prior(self, strength=STRENGTH, model=None, **more):
        settings = {"form": "picture", "curve": "constant", "values": "1", "given": "first",
                    "still": "encoded still clip"} | more  # fmt: skip
        return PriorAnyModel.execute(model or self.stock, self.vae, self.picture, strength, **settings).result[0]

    def mean(self) -> torch.Tensor:
        """z^c of the still clip, scaled for the model."""
        pixels = self.picture.expand((FRAMES - 1) * self.vae.time_factor + 1 if self.video else 1, -1, -1, -1)
        return self.stock.model.latent_format.process_in(self.vae.encode(pixels))


def first_part(samples):
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def recorded(model, sample) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network was given first, scaled as it is there, and the samples at the end."""
    model, inputs = model.clone(), []

    def record(executor, x, t, *args, **kwargs):
        if not inputs:
            inputs.append(model.model.model_sampling.calculate_input(t, x).clone())
        return executor(x, t, *args, **kwargs)

    model.add_wrapper(APPLY, record)
    samples = sample(model)
    return inputs[0], first_part(samples)


def ksampler(family, denoise=1.0, latent=None, sampler="euler"):
    return lambda model: call(nodes.KSampler, model, SEED, STEPS, 1.0, sampler, "simple", family.text, family.text,
                              latent or family.latent(), denoise)[0]["samples"]  # fmt: skip


def advanced(family, add_noise="enable", start=0, latent=None):
    return lambda model: call(nodes.KSamplerAdvanced, model, add_noise, SEED, STEPS, 1.0, "euler", "simple",
                              family.text, family.text, latent or family.latent(), start, STEPS, "disable",
                              )[0]["samples"]  # fmt: skip


def sampler_custom(family, sampler=None):
    def sample(model):
        sigmas = call(custom.BasicScheduler, model, "simple", STEPS, 1.0)[0]
        chosen = sampler or comfy.samplers.sampler_object("euler")
        return call(custom.SamplerCustom, model, True, SEED, 1.0, family.text, family.text, chosen, sigmas,
                    family.latent())[0]["samples"]  # fmt: skip

    return sample


def sampler_custom_advanced(family):
    def sample(model):
        sigmas = call(custom.BasicScheduler, model, "simple", STEPS, 1.0)[0]
        sampler, guider = comfy.samplers.sampler_object("euler"), comfy.samplers.CFGGuider(model)
        guider.set_conds(family.text, family.text)
        noise = call(custom.RandomNoise, SEED)[0]
        return call(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, family.latent())[0]["samples"]

    return sample


SAMPLERS = {"KSampler": ksampler, "KSampler (Advanced)": advanced, "SamplerCustom": sampler_custom,
            "SamplerCustomAdvanced": sampler_custom_advanced}  # fmt: skip


def unpacked(x, family):
    if family.name == "LTXAV":
        size = family.channels * FRAMES * SIDE * SIDE
        return x[:, :, :size].reshape(1, family.channels, FRAMES, SIDE, SIDE), x[:, :, size:]
    return x, torch.zeros(1)


def measured(name: str) -> dict:
    family = Family(name)
    sampling = family.stock.model.model_sampling
    sigma, one = sampling.sigma_max.view(1), torch.ones(1)
    # What the host makes of a noise of one at the start. It is almost 1, except for CogVideoX, which scales later.
    share = sampling.calculate_input(sigma, sampling.noise_scaling(sigma, one, torch.zeros(1), True)).item()
    mean, found = STRENGTH * family.mean() * share, {}
    for node, make in SAMPLERS.items():
        stock, stock_samples = recorded(family.stock, make(family))
        shifted, samples = recorded(family.prior(), make(family))
        zero, zero_samples = recorded(family.prior(0.0), make(family))
        (picture, rest), (picture_stock, rest_stock) = unpacked(shifted, family), unpacked(stock, family)
        found[node] = {
            "error": (picture - picture_stock - mean).abs().max().item(),
            "sound": (rest - rest_stock).abs().max().item(),
            "zero is stock": torch.equal(zero, stock) and torch.equal(zero_samples, stock_samples),
            "changed": (samples - stock_samples).abs().max().item(),
            "mean": mean.abs().max().item(),
        }
    return {"samplers": found, "cases": cases(family, mean)}


def cases(family: Family, mean: torch.Tensor) -> dict:
    """The same model in other wirings: what is left of the shift, as a share of it where it is not 0."""

    def shift(sample, prior, plain=family.stock):
        return unpacked(recorded(prior, sample)[0], family)[0] - unpacked(recorded(plain, sample)[0], family)[0]

    first = (slice(None), slice(None), 0) if family.video else (0,)
    mask = torch.ones(1, 1, FRAMES, SIDE, SIDE) if family.video else torch.ones(FRAMES, 1, SIDE, SIDE)
    mask[first] = 0
    given = family.latent(noise_mask=mask)
    content = family.latent()
    filled = first_part(content["samples"])
    filled += 0.3
    half = shift(ksampler(family, denoise=0.5, latent=content), family.prior())
    prior, twice = family.prior(), family.prior(model=family.prior(0.7))
    falling = shift(ksampler(family), family.prior(curve="falling"))
    custom_curve = shift(ksampler(family), family.prior(curve="custom", values="0, 2"))
    last = (slice(None), slice(None), -1) if family.video else (-1,)
    whole = family.latent()["samples"]
    masked = shift(ksampler(family, latent=given), family.prior()) if not getattr(whole, "is_nested", False) else None
    found = {
        "second stage": shift(advanced(family, "disable", 1, content), family.prior()).abs().max().item(),
        "half": (half.abs().max() / mean.abs().max()).item(),
        "again": (shift(ksampler(family), prior) - shift(ksampler(family), prior)).abs().max().item(),
        "two nodes": (shift(ksampler(family), twice) - mean).abs().max().item(),
        "falling": [falling[first].abs().max().item() / mean[first if family.video else 0].abs().max().item(),
                    falling[last].abs().max().item()],
        "custom": [custom_curve[first].abs().max().item(),
                   custom_curve[last].abs().max().item() / mean[last if family.video else 0].abs().max().item()],
    }  # fmt: skip
    if masked is not None:
        found["given frame"], found["other frames"] = masked[first].abs().max().item(), masked[last].abs().max().item()
    return found


def special() -> dict:
    """Windows that shuffle the noise, guide frames at the end of the clip, and a scale of the noise."""
    family, found = Family("Wan21"), {}
    long = torch.zeros(1, family.channels, 9, SIDE, SIDE)
    windows = {"context_length": 17, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
               "closed_loop": False, "fuse_method": "pyramid", "freenoise": True}  # fmt: skip
    node = nodes.NODE_CLASS_MAPPINGS.get("WanContextWindowsManual") or context_windows.WanContextWindowsManualNode
    inputs = [each.id for each in node.define_schema().inputs]
    windows = {name: value for name, value in windows.items() if name in inputs}

    def windowed(model):
        return call(node, model, **windows)[0]

    def sample(model):
        return ksampler(family, latent={"samples": long.clone()})(model)

    stock, _ = recorded(windowed(family.stock), sample)
    for name, model in (
        ("prior first", windowed(family.prior(curve="falling"))),
        ("windows first", family.prior(curve="falling", model=windowed(family.stock))),
    ):
        shift = recorded(model, sample)[0] - stock
        frames, z = shift.shape[2], family.mean()[:, :, :1]
        expected = STRENGTH * (1 - torch.arange(9) / 8).view(1, 1, 9, 1, 1)[:, :, :frames] * z
        found[name] = ((shift - expected)[:, :, :frames].abs().max() / expected.abs().max()).item()

    family = Family("LTXV")
    guide = (
        torch.zeros(1, 3, SIDE * SIDE, 2)
        if "0.3.64" not in comfyui_version.__version__
        else torch.zeros(1, 3, SIDE * SIDE)
    )
    family.text = [[family.text[0][0], family.text[0][1] | {"keyframe_idxs": guide}]]
    mask = torch.ones(1, 1, FRAMES, SIDE, SIDE)
    mask[:, :, -1] = 0.5  # a guide of half the strength
    guided = ksampler(family, latent=family.latent(noise_mask=mask))
    shift = recorded(family.prior(), guided)[0] - recorded(family.stock, guided)[0]
    curved = recorded(family.prior(curve="falling"), guided)[0] - recorded(family.stock, guided)[0]
    found["curve before guides"] = [(curved[:, :, i].abs().max() / shift[:, :, i].abs().max()).item() for i in (0, 1)]
    found["guides"] = [shift[:, :, i].abs().max().item() for i in range(FRAMES)]

    family = Family("SD15")
    zsnr = call(sampling_nodes.ModelSamplingDiscrete, family.stock, "v_prediction", True)[0]
    prior = call(sampling_nodes.ModelSamplingDiscrete, family.prior(), "v_prediction", True)[0]
    content = family.latent()
    content["samples"] += 0.3
    second = advanced(family, "disable", 1, content)
    found["patched second stage"] = (recorded(prior, second)[0] - recorded(zsnr, second)[0]).abs().max().item()

    if "noise_scale" in inspect.getsource(comfy.model_sampling.CONST):
        family = Family("Wan21")
        family.stock.model.model_sampling.noise_scale = 0.5
        shift = recorded(family.prior(), ksampler(family))[0] - recorded(family.stock, ksampler(family))[0]
        found["noise scale"] = (shift - STRENGTH * family.mean()).abs().max().item()
    return found


def refused() -> dict:
    family, messages = Family("Wan21"), {}

    def message_of(key, call):
        try:
            call()
            messages[key] = "nothing"
        except Exception as error:
            messages[key] = f"{type(error).__name__}: {error}"

    if hasattr(comfy.k_diffusion.sampling, "sample_ar_video"):
        sampler = comfy.samplers.ksampler("ar_video")
        message_of("ar_video", lambda: sampler_custom(family, sampler)(family.prior()))
    other = Family("Wan22")
    family.vae = other.vae
    message_of("other vae", lambda: ksampler(family)(family.prior()))
    message_of("curve", lambda: family.prior(curve="custom", values="1, x"))
    return messages


with torch.inference_mode():
    result = {name: measured(name) for name in FAMILIES if hasattr(comfy.supported_models, FAMILIES[name][0])}
    print(json.dumps({"families": result, "refused": refused(), "special": special()}))
