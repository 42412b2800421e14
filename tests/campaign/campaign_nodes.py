"""The campaign's cases for the nodes: what a person may wire, and the numbers that links carry past widgets' ranges.

`campaign_nodes.py HOST MODELS` is the process that runs them, by the host's own Python with the host on its path.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

WHOLE = [-(2**63), -(10**9), -8, -1, 0, 1, 2, 3, 7, 33, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
NUMBERS = [float("nan"), float("inf"), -float("inf"), -1e308, -1.0, -0.0, 0, 0.0, 1e-300, 0.005, 0.5, 1, 60, 1e6, 1e308]
PREFIXES = [
    "", " ", "clip", "a/b/c", "a\\b", "../x", "../../x", "/etc/x", "/", ".", "..", "~", "x" * 300, "x/" * 200,
    "a\x00b", "a\nb",
    "\udcff", "\u202e", "💥", "%date:yyyy-MM-dd%", "%date:%", "%date:" + "y" * 500 + "%", "%width%x%height%",
    "%nobody.text%",
    "%", "%%%%", "con", "nul.txt", "a:b", "a?b*", "clip.mp4", ".hidden", "$HOME", "{}", "%s%n",
]  # fmt: skip
IMAGES = [
    {"shape": shape} for shape in (
        [1, 32, 32, 3], [2, 32, 32, 3], [3, 32, 32, 3], [0, 32, 32, 3], [2, 0, 32, 3], [2, 32, 0, 3], [2, 32, 32, 0],
        [2, 32, 32, 1],
        [2, 32, 32, 2], [2, 32, 32, 4], [2, 32, 32, 5], [32, 32, 3], [2, 2, 32, 32, 3], [32, 32], [3], [], [2, 1, 1, 3],
        [2, 3, 3, 3], [2, 4, 4, 3], [2, 33, 47, 3], [2, 2, 600, 3], [2, 600, 2, 3], [2, 3, 32, 32], [2, 1, 5000, 3],
        [2, 7, 8, 4],
    )
] + [
    {"shape": [2, 32, 32, 3], "dtype": dtype} for dtype in ("float16", "bfloat16", "float64", "uint8", "int64", "bool",
    "complex64")
] + [
    {"shape": [2, 32, 32, 3], "fill": fill} for fill in (float("nan"), float("inf"), -float("inf"), 1e38, -5.0, 0.0,
    255.0)
] + [{"shape": [2, 32, 32, 3], "how": how} for how in ("holed", "transposed", "expanded", "gradient",
"strided")] + [None]  # fmt: skip
LATENTS = [
    {"samples": {"shape": shape}} for shape in (
        [5, 4, 8, 8], [3, 4, 8, 8], [1, 4, 8, 8], [0, 4, 8, 8], [5, 16, 8, 8], [5, 4, 9, 8], [5, 4, 0, 8], [1, 4, 5, 8,
        8], [4, 8, 8],
        [5, 4, 1, 1], [2, 4, 7, 9], [], [5, 0, 8, 8],
    )
] + [
    {"samples": {"shape": [5, 4, 8, 8], "fill": fill}} for fill in (float("nan"), float("inf"), 1e38, 0.5)
] + [
    {"samples": {"shape": [5, 4, 8, 8], "dtype": dtype}} for dtype in ("float16", "bfloat16", "float64", "int64",
    "uint8")
] + [
    {"samples": {"shape": [5, 4, 8, 8]}, "noise_mask": {"shape": shape}} for shape in ([1, 8, 8], [5, 32, 32], [3, 1,
    9, 9], [0, 8, 8], [8])
] + [{}, {"samples": None}, {"samples": {"shape": [5, 4, 8, 8]}, "batch_index": [9, 9]}, None]  # fmt: skip
CONDITIONINGS = [
    *({"bare": shape} for shape in ([1, 24, 64], [1, 0, 64], [1, 24, 63], [2, 24, 64], [24, 64], [1, 24, 1024])),
    *({"conditioned": shape} for shape in (
        [1, 24, 64], [1, 1, 64], [1, 300, 64], [1, 24, 63], [2, 24, 64], [1, 0, 64],
    )),
    {"conditioned": [1, 24, 64], "fill": float("nan")}, {"conditioned": [1, 24, 64], "fill": 1e38},
    {"conditioned": [1, 24, 64], "twice": True}, {"list": []}, None,
]  # fmt: skip
SOUNDS = [
    {"waveform": {"shape": shape}, "sample_rate": rate}
    for shape, rate in (
        ([1, 1, 4800], 48_000), ([1, 2, 4800], 44_100), ([1, 2, 0], 48_000), ([1, 0, 4800], 48_000), ([0, 1, 4800],
        48_000),
        ([1, 8, 4800], 48_000), ([2, 1, 4800], 48_000), ([4800], 48_000), ([1, 4800], 48_000), ([1, 1, 4800], 0), ([1,
        1, 4800], -1),
        ([1, 1, 4800], 1), ([1, 1, 4800], 8000), ([1, 1, 4800], 10**9), ([1, 1, 4800], 44_100.5), ([1, 1, 4800], None),
        ([1, 1, 1], 48_000),
        ([1, 1, 4800], 96_000), ([1, 1, 4800], 11_025), ([1, 1, 4800], 12_345),
    )
] + [
    {"waveform": {"shape": [1, 1, 4800], "fill": fill}, "sample_rate": 48_000} for fill in (float("nan"), float("inf"),
    100.0)
] + [
    {"waveform": {"shape": [1, 1, 4800], "dtype": dtype}, "sample_rate": 48_000} for dtype in ("float16", "int64",
    "uint8")
] + [{}, {"waveform": None, "sample_rate": 48_000}, {"sample_rate": 48_000}, {"waveform": {"shape": [1, 1,
480]}}]  # fmt: skip
FORMATS = ["mp4 (h264)", "webm (vp9)", "webp (animated)", "gif", "png sequence"]
LISTS = [
    "",
    ",",
    "0",
    "1, 2",
    "0.01,0.02",
    "1, x",
    "nan",
    "inf, 1",
    "1e999",
    "0x1",
    "1;2",
    "1 2",
    "-1, 1",
    "1,1",
    "💥",
    "1," * 500,
]
MASKS = [
    {"shape": shape} for shape in ([1, 40, 36], [40, 36], [3, 40, 36], [1, 1, 40, 36], [1, 8, 8], [36], [], [0, 40, 36])
]
CHANGES = {
    "Loader": {"model_name": ["tiny.safetensors", "ends.safetensors", "nobody", "", "../tiny.safetensors", "\x00",
    "\udcff", "x" * 5000],
               "weight_dtype": ["default", "fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2", "nonsense", ""]},
    "PriorLatent": {
        "model": ["ends", "foreign"], "vae": ["foreign"], "image": IMAGES, "positive": CONDITIONINGS,
        "negative": CONDITIONINGS,
        "width": [*WHOLE, 8, 12, 30, 4096], "height": [*WHOLE, 8, 12, 30, 4096], "frames": [*WHOLE, 257],
        "lambda_": NUMBERS,
        "gamma": NUMBERS, "noise_seed": WHOLE,
    },
    "EulerSampler": {
        "model": ["ends", "foreign"], "positive": CONDITIONINGS, "negative": CONDITIONINGS, "latent": LATENTS,
        "seed": WHOLE,
        "steps": [n for n in WHOLE if not 33 < n < 2**31], "cfg": NUMBERS, "s_churn": NUMBERS, "s_tmin": NUMBERS,
        "s_tmax": NUMBERS,
        "denoise": NUMBERS,
    },
    "Interpolate": {
        "model": ["base", "foreign"], "vae": ["foreign"], "images": IMAGES, "passes": WHOLE, "steps": WHOLE,
        "seed": WHOLE,
        "loop": [True], "fps": NUMBERS,
    },
    "VideoCombine": {
        "images": IMAGES, "fps": [*NUMBERS, 0.01, 1000.0, 23.976], "format": [*FORMATS, "nonsense", ""],
        "quality": WHOLE,
        "loop_count": [*WHOLE, 65_535, 65_536], "ping_pong": [True], "filename_prefix": PREFIXES, "save": [False],
        "audio": SOUNDS, "crf": WHOLE,
    },
    "PriorAnyModel": {
        "model": ["base", "ends"], "image": IMAGES, "strength": NUMBERS, "values": LISTS, "mask": MASKS,
        "form": ["picture", "mean removed", "low-pass", "nonsense"], "given": ["first", "last", ""],
        "curve": ["constant", "falling", "custom", ""], "still": ["repeated latent", "nonsense"],
    },
    "MotionAmplitude": {"motion": NUMBERS, "lambda_": NUMBERS},
    "MotionReport": {"images": IMAGES, "picture": IMAGES, "given": ["first", "middle", "last", ""]},
    "VideoNoise": {
        "noise_seed": WHOLE, "kind": ["independent", "mixed", "progressive", "FrameInit", ""], "alpha": NUMBERS,
        "level": NUMBERS,
    },
    "SweepGrid": {
        "columns": ["strength", "cfg", "steps", "seed", "none", ""], "rows": ["none", "cfg", "strength", "nonsense"],
        "column_values": LISTS, "row_values": LISTS, "width": WHOLE, "seed": WHOLE, "cfg": NUMBERS, "picture": IMAGES,
        "steps": [n for n in WHOLE if not 33 < n < 2**31], "given": ["first", ""],
        "sampler_name": ["heun", "euler_ancestral", "nonsense"], "scheduler": ["karras", "nonsense"],
        "latent": [{}, {"samples": None}, None, {"samples": {"shape": [5, 4, 0, 8]}}],
    },
}  # fmt: skip


def all_cases(seed: int) -> list:
    """One input changed at a time, of some two; Video Combine in every format."""
    return list(_cases(random.Random(seed)))


def _cases(rng: random.Random) -> Iterator:
    from campaign import Case

    def case(node: str, **inputs) -> Case:
        name = f"{node}: {', '.join(f'{key} = {value!r:.60}' for key, value in inputs.items())}"
        return Case("nodes", name, [node, inputs], outputs=("*",), good=None if inputs else True)

    for node, changes in CHANGES.items():
        yield case(node)
        for name, values in changes.items():
            for value in values:
                if node == "VideoCombine" and name in ("images", "fps", "audio", "loop_count", "quality"):
                    for format in FORMATS:
                        if rng.random() < 0.45:
                            yield case(node, **{name: value, "format": format})
                else:
                    yield case(node, **{name: value})
        for _ in range(30):
            first, second = rng.sample(sorted(changes), 2)
            yield case(node, **{first: rng.choice(changes[first]), second: rng.choice(changes[second])})


# --- the process by the host's Python ---


def main() -> None:
    host, models = sys.argv[1:]
    pack = Path(__file__).resolve().parents[2]
    sys.argv = ["main.py", "--cpu"]
    sys.path[:0] = [host, str(Path(__file__).parent)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths
    import torch

    folder_paths.add_model_folder_path("microcinema", models)
    spec = importlib.util.spec_from_file_location("pack", pack / "__init__.py", submodule_search_locations=[str(pack)])
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])
    torch.set_num_threads(1)
    from campaign_worker import serve

    serve(torch.inference_mode()(Nodes().run))


class Nodes:
    """Runs a node on good inputs with some changed."""

    def __init__(self):
        from types import SimpleNamespace

        import comfy.sd
        from comfy.ldm.models.autoencoder import AutoencoderKL
        from pack import nodes
        from pack.microcinema_core.errors import MicroCinemaError

        self.nodes, self.error = nodes, MicroCinemaError
        nodes.VideoCombine.hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {}})
        nodes.SweepGrid.hidden = SimpleNamespace(prompt={}, unique_id="1")
        base, clip, vae = nodes.Loader.execute("tiny.safetensors", "default").result
        ends, _, vae_ends = nodes.Loader.execute("ends.safetensors", "default").result
        ddconfig = {
            "double_z": True, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1],
            "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
        }  # fmt: skip
        params = {"ddconfig": ddconfig, "embed_dim": 16}
        foreign_vae = comfy.sd.VAE(sd=AutoencoderKL(**params).state_dict(), config={"params": params})
        foreign = base.clone()
        foreign.model = SimpleNamespace()  # a host's model that knows nothing of us
        self.named = {
            "model": {"base": base, "ends": ends, "foreign": foreign}, "vae": {"own": vae, "foreign": foreign_vae}
        }  # fmt: skip
        text = clip.encode_from_tokens_scheduled(clip.tokenize("the camera pans left"))
        prior = {
            "model": base, "positive": text, "negative": text, "vae": vae, "image": self._tensor({"shape": [1, 40, 36,
            3]}),
            "width": 32, "height": 32, "frames": 5, "lambda_": 0.03, "gamma": 0.02, "noise_seed": 0,
        }  # fmt: skip
        positive, negative, latent, _ = nodes.PriorLatent.execute(**prior).result
        self.options = positive[0][1]
        self.good = {
            "Loader": {"model_name": "tiny.safetensors", "weight_dtype": "default"}, "PriorLatent": prior,
            "EulerSampler": {
                "model": base, "positive": positive, "negative": negative, "latent": latent, "seed": 0, "steps": 2,
                "cfg": 1.5,
                "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1000.0, "denoise": 1.0,
            },
            "Interpolate": {
                "model": ends, "vae": vae_ends, "images": self._tensor({"shape": [2, 32, 32, 3]}), "passes": 1,
                "steps": 1,
                "seed": 0, "loop": False, "fps": 2.0,
            },
            "PriorAnyModel": {
                "model": foreign, "vae": foreign_vae, "image": prior["image"], "strength": 0.03, "form": "picture",
                "curve": "constant", "values": "1", "given": "first", "still": "encoded still clip", "mask": None,
            },
            "MotionAmplitude": {"motion": 0.0, "lambda_": 0.0},
            "MotionReport": {"images": self._tensor({"shape": [2, 32, 32, 3]}), "given": "first", "picture": None},
            "VideoNoise": {"noise_seed": 0, "kind": "mixed", "alpha": 1.0},
            "SweepGrid": {
                "model": base, "positive": positive, "negative": negative, "vae": vae, "latent": latent, "seed": 0,
                "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "columns": "seed",
                "column_values": "0, 1", "rows": "none", "row_values": "", "width": 256, "given": "first",
            },
            "VideoCombine": {
                "images": self._tensor({"shape": [2, 32, 32, 3]}), "fps": 8.0, "format": "mp4 (h264)", "quality": 80,
                "loop_count": 0, "ping_pong": False, "filename_prefix": "clip", "save": True, "audio": None,
            },
        }  # fmt: skip

    def run(self, argv: list) -> int:
        import folder_paths

        here = str(Path.cwd())
        folder_paths.set_output_directory(here)
        folder_paths.set_temp_directory(here)
        node, changes = argv
        inputs = self.good[node] | {name: self._made(name, value) for name, value in changes.items()}
        try:
            getattr(self.nodes, node).execute(**inputs)
        except self.error as error:
            print(f"microcinema: {error}", file=sys.stderr)
            return 2
        return 0

    def _made(self, name: str, value):
        """What stands for a value in JSON."""
        if name in self.named:
            return self.named[name][value]
        if name in ("image", "images", "picture", "mask"):
            return self._tensor(value)
        if name in ("latent", "audio") and value is not None:
            return {key: self._tensor(part) if isinstance(part, dict) else part for key, part in value.items()}
        if name in ("positive", "negative") and value is not None:
            if "list" in value:
                return value["list"]
            shape = value.get("bare") or value["conditioned"]
            options = dict(self.options) if "conditioned" in value else {}
            text = self._tensor({"shape": shape, **({"fill": value["fill"]} if "fill" in value else {})})
            return [[text, options]] * (2 if value.get("twice") else 1)
        return value

    @staticmethod
    def _tensor(value: dict | None):
        import torch

        if value is None:
            return None
        made = torch.rand(value["shape"], generator=torch.Generator().manual_seed(0))
        if "fill" in value:
            made = torch.full(value["shape"], value["fill"])
        how = value.get("how")
        if how == "holed":
            made[1, 3, 5, 2] = float("nan")
        elif how == "transposed":
            made = made.transpose(1, 2)
        elif how == "expanded":
            made = made[:1].expand(2, -1, -1, -1)
        elif how == "strided":
            made = made[:, ::2, ::2]
        elif how == "gradient":
            with torch.inference_mode(False):
                made = torch.rand(value["shape"]).requires_grad_()
        return made.to(getattr(torch, value["dtype"])) if "dtype" in value else made


if __name__ == "__main__":
    main()
