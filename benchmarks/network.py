"""One denoising step of our network beside its peers', and whole clips of ours: time, FLOPs, memory.

    python benchmarks/network.py --device cuda                 # full width, 9×40×40 latents, guidance on
    python benchmarks/network.py --device cuda --compile
    python benchmarks/network.py --device cuda --clips 3       # 50 steps, 5 steps, 512×512, interpolation
    python benchmarks/network.py --width 128 --size 16         # what a CPU core can do in a minute

Peers are diffusers' UNets of ModelScope, I2VGen-XL and Stable Video Diffusion; without diffusers ours runs alone. All
weights are random. Models take turns in every round, so that another process on the machine slows all of them; what is
compared is each one's time over ours in the same round. On a CPU time is the process's own, not the clock's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from microcinema_core.checkpoint import LoadedModel
from microcinema_core.config import BASE, INTERPOLATION
from microcinema_core.model import build
from microcinema_core.model.autoencoder import Autoencoder
from microcinema_core.pipeline import Pipeline

HALVES = 2  # text guidance: both halves in one batch
TOKENS, TEXT_WIDTH = 77, 1024


@dataclass
class Step:
    """A network and one call of it, with everything that its pipelines compute once per clip already computed."""

    network: nn.Module
    call: Callable[[], Tensor]


def ours(o: argparse.Namespace) -> Step:
    config = replace(BASE.network, model_channels=o.width, frames=o.frames)
    network = filled(build(config, device="meta"), o).to(memory_format=torch.channels_last)
    condition = network.encode_condition(noise(o, 1, 1, 4, o.size, o.size))
    x, text = noise(o, HALVES * o.frames, 4, o.size, o.size), noise(o, HALVES, TOKENS, TEXT_WIDTH)
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.full((HALVES,), 500.0, device=o.device)
    return Step(network, lambda: network(x, t, text, condition=condition, num_video_frames=o.frames))


def modelscope(o: argparse.Namespace) -> Step:
    from diffusers import UNet3DConditionModel

    network = peer(UNet3DConditionModel, o, cross_attention_dim=TEXT_WIDTH)
    x, text = noise(o, HALVES, 4, o.frames, o.size, o.size), noise(o, HALVES, TOKENS, TEXT_WIDTH)
    t = torch.full((HALVES,), 500, device=o.device)
    return Step(network, lambda: network(x, t, text, return_dict=False)[0])


def i2vgen_xl(o: argparse.Namespace) -> Step:
    from diffusers import I2VGenXLUNet

    network = peer(I2VGenXLUNet, o, cross_attention_dim=TEXT_WIDTH)
    x, picture = (noise(o, HALVES, 4, o.frames, o.size, o.size) for _ in range(2))
    text, picture_states = noise(o, HALVES, TOKENS, TEXT_WIDTH), noise(o, HALVES, TEXT_WIDTH)
    t, fps = (torch.full((HALVES,), value, device=o.device) for value in (500, 8))
    return Step(network, lambda: network(x, t, fps, picture, picture_states, text, return_dict=False)[0])


def svd(o: argparse.Namespace) -> Step:
    from diffusers import UNetSpatioTemporalConditionModel

    heads = tuple(o.width * m // 64 for m in (1, 2, 4, 4))
    network = peer(UNetSpatioTemporalConditionModel, o, num_attention_heads=heads)
    x, picture_states = noise(o, HALVES, o.frames, 8, o.size, o.size), noise(o, HALVES, 1, TEXT_WIDTH)
    t, ids = torch.full((HALVES,), 1.0, device=o.device), noise(o, HALVES, 3)
    return Step(network, lambda: network(x, t, picture_states, ids, return_dict=False)[0])


MODELS = {"ours": ours, "ModelScope": modelscope, "I2VGen-XL": i2vgen_xl, "SVD": svd}


def noise(o: argparse.Namespace, *shape: int) -> Tensor:
    return torch.randn(shape, device=o.device, dtype=o.dtype)


def peer(kind: type[nn.Module], o: argparse.Namespace, **settings) -> nn.Module:
    with torch.device("meta"):
        network = kind(block_out_channels=tuple(o.width * m for m in (1, 2, 4, 4)), **settings)
    return filled(network, o)


def filled(network: nn.Module, o: argparse.Namespace) -> nn.Module:
    """The network on its device with random weights, none at zero; on the meta device without any."""
    network = nn.Module.to(network, o.dtype).to_empty(device=o.device).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
        else:
            parameter.uniform_(-1, 1).mul_(parameter[0].numel() ** -0.5)
    return network


# --- measures ---


def seconds(call: Callable[[], object], device: str) -> float:
    if device != "cuda":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(o: argparse.Namespace) -> float:
    """FLOP/s of the largest square product that the device finishes at once."""
    n = 8192 if o.device == "cuda" else 1024
    a, b = noise(o, n, n), noise(o, n, n)
    for _ in range(3):
        a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, o.device) for _ in range(10))


def flops_of(name: str, o: argparse.Namespace) -> int:
    """Counted on the meta device: no arithmetic is done."""
    step = MODELS[name](argparse.Namespace(**{**vars(o), "device": "meta"}))
    with FlopCounterMode(display=False) as counter:
        step.call()
    return counter.get_total_flops()


def compiled(network: nn.Module, o: argparse.Namespace) -> None:
    network.compile(mode="reduce-overhead" if o.device == "cuda" else None)


def memory_of(name: str, o: argparse.Namespace) -> int:
    """Peak bytes of one model alone, weights and a step. CUDA: allocated; CPU: resident, in a process of its own."""
    if o.device != "cuda":
        command = [sys.executable, __file__, "--peak", name, *o.given]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = MODELS[name](o)
    step.call()
    return torch.cuda.max_memory_allocated() - before


# --- what is reported ---


def compare_steps(o: argparse.Namespace) -> dict:
    """Every model's step, in turns."""
    rows = {name: {"flops": flops_of(name, o)} for name in o.models}
    for name, row in rows.items():
        row["memory"] = memory_of(name, o)
    steps = {name: MODELS[name](o) for name in o.models}
    for name, step in steps.items():
        rows[name]["parameters"] = sum(p.numel() for p in step.network.parameters())
        if o.compile:
            compiled(step.network, o)
        rows[name]["first"] = seconds(step.call, o.device)
        step.call()
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(o.repeats):
        peaks.append(matmul_peak(o))
        for name, step in steps.items():
            times[name].append(seconds(step.call, o.device))
    peak = max(peaks)
    for name, row in rows.items():
        taken = sorted(times[name])
        ratios = [other / own for other, own in zip(times[name], times[o.models[0]], strict=True)]
        row |= {
            "median": statistics.median(taken),
            "minimum": taken[0],
            "maximum": taken[-1],
            "ratio": statistics.median(ratios),
            "tflops": row["flops"] / statistics.median(taken) / 1e12,
            "share_of_peak": row["flops"] / statistics.median(taken) / peak,
        }
    return {"matmul_tflops": peak / 1e12, "steps": rows}


def time_clips(o: argparse.Namespace) -> dict:
    """Whole clips of ours as `microcinema animate` makes them: AppearNet and the steps, then the autoencoder."""
    base, between = (
        replace(config, network=replace(config.network, model_channels=o.width)) for config in (BASE, INTERPOLATION)
    )
    larger = round(1.6 * o.size)  # 512×512 pixels where size stands for 320×320
    rows, pipeline = {}, None
    for config, size, steps in ((base, o.size, 50), (base, o.size, 5), (base, larger, 50), (between, o.size, 50)):
        if pipeline is None or pipeline.config is not config:
            pipeline = None  # one network in memory at a time
            parts = build(config.network, device="meta"), Autoencoder(config.autoencoder)
            network, vae = (filled(part, o).to(memory_format=torch.channels_last) for part in parts)
            if o.compile:
                compiled(network, o)
            pipeline = Pipeline(LoadedModel(config, network, vae, nn.Identity()), o.device, o.dtype)  # texts are given
        given = noise(o, 1, 1 if config.network.condition == "centre" else 2, 4, size, size)
        text = noise(o, 1 if config.cfg == 1 else HALVES, TOKENS, TEXT_WIDTH)
        settings = {"frames": config.network.frames, "cfg": config.cfg, "seeds": [0]}

        pipeline.decode(pipeline.sample(given, text, steps=2, **settings)[0])  # warm, and compiled
        sampling, decoding = [], []
        for _ in range(o.clips):
            clip: list[Tensor] = []
            run = partial(pipeline.sample, given, text, steps=steps, **settings)
            sampling.append(seconds(lambda clip=clip, run=run: clip.append(run()), o.device))
            decoding.append(seconds(partial(pipeline.decode, clip[0][0]), o.device))
        rows[f"{config.name}, {8 * size}×{8 * size}, {steps} steps"] = {
            "frames": config.network.frames,
            "sampling": statistics.median(sampling),
            "decoding": statistics.median(decoding),
        }
    return {"clips": rows}


def table(result: dict) -> str:
    lines = []
    if "steps" in result:
        lines = [
            "| model | parameters | TFLOP | median s (least … most) | over ours | TFLOP/s | of matmul peak | peak GB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, r in result["steps"].items():
            spread = f"{r['median']:.3f} ({r['minimum']:.3f} … {r['maximum']:.3f})"
            lines.append(
                f"| {name} | {r['parameters'] / 1e6:.0f} M | {r['flops'] / 1e12:.3f} | {spread} | {r['ratio']:.2f} "
                f"| {r['tflops']:.3g} | {r['share_of_peak']:.0%} | {r['memory'] / 1e9:.2f} |"
            )
        lines.append(f"\nmatmul peak {result['matmul_tflops']:.3g} TFLOP/s")
    else:
        lines = ["| clip | frames | sampling s | decoding s |", "|---|---|---|---|"]
        for name, r in result["clips"].items():
            lines.append(f"| {name} | {r['frames']} | {r['sampling']:.2f} | {r['decoding']:.2f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--size", type=int, default=40, help="latents' height and width (40: 320×320 pixels)")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--width", type=int, default=320, help="channels of the first level, a multiple of 64")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile; on cuda with CUDA graphs")
    parser.add_argument(
        "--clips", type=int, default=0, metavar="N", help="N whole clips of ours instead of single steps"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=list(MODELS), help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    o.given = argv
    o.dtype = getattr(torch, o.dtype or ("bfloat16" if o.device == "cuda" else "float32"))
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        if o.peak:
            MODELS[o.peak](o).call()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return
        with contextlib.suppress(ImportError):
            import diffusers  # noqa: F401
        if "diffusers" not in sys.modules:
            o.models = ["ours"]
        result = time_clips(o) if o.clips else compare_steps(o)
    name = torch.cuda.get_device_name() if o.device == "cuda" else f"CPU, {o.threads} thread(s)"
    options = {key: getattr(o, key) for key in ("size", "frames", "width", "compile")}
    result = {"device": name, "torch": torch.__version__, "dtype": str(o.dtype), **options, **result}
    result["load"] = float(Path("/proc/loadavg").read_text().split()[0]) if Path("/proc/loadavg").exists() else None
    print(json.dumps(result, indent=2) if o.json else table(result))


if __name__ == "__main__":
    main(sys.argv[1:])
