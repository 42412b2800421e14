"""A ComfyUI graph described once, written in the forms of the canvas, of POST /prompt and of a blueprint.

The inputs and outputs of our nodes are read from tests/data/object_info.json, so that a new input finds its way into
every template; those of the host's nodes stand in HOST.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import tomllib

PACK = Path(__file__).resolve().parents[1]
WIDGETS = ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN")
VERSION = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]["version"]
HOST_VERSION = "0.3.64"  # the oldest that runs them
NAMESPACE = uuid.UUID("8f14e45f-ceea-467f-9e4c-5c3e2d6a9b11")  # of the ids that a canvas wants, the same in every run

HOST = {  # inputs in the node's order: a socket's type, or a widget's type and its value; outputs
    "LoadImage": ({"image": ("COMBO", None)}, ["IMAGE", "MASK"]),
    "CLIPTextEncode": ({"text": ("STRING", ""), "clip": "CLIP"}, ["CONDITIONING"]),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "CheckpointLoaderSimple": ({"ckpt_name": ("COMBO", None)}, ["MODEL", "CLIP", "VAE"]),
    "EmptyLatentImage": ({"width": ("INT", 512), "height": ("INT", 512), "batch_size": ("INT", 1)}, ["LATENT"]),
    "KSampler": ({
        "model": "MODEL", "seed": ("INT", 0), "steps": ("INT", 30), "cfg": ("FLOAT", 7.5),
        "sampler_name": ("COMBO", "euler"), "scheduler": ("COMBO", "normal"), "positive": "CONDITIONING",
        "negative": "CONDITIONING", "latent_image": "LATENT", "denoise": ("FLOAT", 1.0)}, ["LATENT"]),
    "KSamplerAdvanced": ({
        "model": "MODEL", "add_noise": ("COMBO", "enable"), "noise_seed": ("INT", 0), "steps": ("INT", 20),
        "cfg": ("FLOAT", 3.5), "sampler_name": ("COMBO", "euler"), "scheduler": ("COMBO", "simple"),
        "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT",
        "start_at_step": ("INT", 0), "end_at_step": ("INT", 10000),
        "return_with_leftover_noise": ("COMBO", "disable")}, ["LATENT"]),
    "ImageScale": ({
        "image": "IMAGE", "upscale_method": ("COMBO", "lanczos"), "width": ("INT", 512), "height": ("INT", 512),
        "crop": ("COMBO", "disabled")}, ["IMAGE"]),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "RepeatLatentBatch": ({"samples": "LATENT", "amount": ("INT", 1)}, ["LATENT"]),
    "ImageOnlyCheckpointLoader": ({"ckpt_name": ("COMBO", None)}, ["MODEL", "CLIP_VISION", "VAE"]),
    "VideoLinearCFGGuidance": ({"model": "MODEL", "min_cfg": ("FLOAT", 1.0)}, ["MODEL"]),
    "SVD_img2vid_Conditioning": ({
        "clip_vision": "CLIP_VISION", "init_image": "IMAGE", "vae": "VAE", "width": ("INT", 1024),
        "height": ("INT", 576), "video_frames": ("INT", 25), "motion_bucket_id": ("INT", 127), "fps": ("INT", 6),
        "augmentation_level": ("FLOAT", 0.0)}, [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), "LATENT"]),
    "UNETLoader": ({"unet_name": ("COMBO", None), "weight_dtype": ("COMBO", "default")}, ["MODEL"]),
    "CLIPLoader": ({
        "clip_name": ("COMBO", None), "type": ("COMBO", "wan"), "device": ("COMBO", "default")}, ["CLIP"]),
    "VAELoader": ({"vae_name": ("COMBO", None)}, ["VAE"]),
    "ModelSamplingSD3": ({"model": "MODEL", "shift": ("FLOAT", 5.0)}, ["MODEL"]),
    "WanImageToVideo": ({
        "positive": "CONDITIONING", "negative": "CONDITIONING", "vae": "VAE", "width": ("INT", 640),
        "height": ("INT", 640), "length": ("INT", 81), "batch_size": ("INT", 1),
        "clip_vision_output": "CLIP_VISION_OUTPUT", "start_image": "IMAGE"},
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")]),
    "LTXAVTextEncoderLoader": ({
        "text_encoder": ("COMBO", None), "ckpt_name": ("COMBO", None), "device": ("COMBO", "default")}, ["CLIP"]),
    "LTXVAudioVAELoader": ({"ckpt_name": ("COMBO", None)}, [("Audio VAE", "VAE")]),
    "EmptyLTXVLatentVideo": ({
        "width": ("INT", 768), "height": ("INT", 512), "length": ("INT", 97), "batch_size": ("INT", 1)}, ["LATENT"]),
    "LTXVImgToVideoInplace": ({
        "vae": "VAE", "image": "IMAGE", "latent": "LATENT", "strength": ("FLOAT", 1.0), "bypass": ("BOOLEAN", False)},
        [("latent", "LATENT")]),
    "LTXVEmptyLatentAudio": ({
        "frames_number": ("INT", 97), "frame_rate": ("INT", 25), "batch_size": ("INT", 1), "audio_vae": "VAE"},
        [("Latent", "LATENT")]),
    "LTXVConcatAVLatent": ({"video_latent": "LATENT", "audio_latent": "LATENT"}, [("latent", "LATENT")]),
    "LTXVConditioning": ({
        "positive": "CONDITIONING", "negative": "CONDITIONING", "frame_rate": ("FLOAT", 25.0)},
        [("positive", "CONDITIONING"), ("negative", "CONDITIONING")]),
    "LTXVScheduler": ({
        "steps": ("INT", 20), "max_shift": ("FLOAT", 2.05), "base_shift": ("FLOAT", 0.95),
        "stretch": ("BOOLEAN", True), "terminal": ("FLOAT", 0.1), "latent": "LATENT"}, ["SIGMAS"]),
    "KSamplerSelect": ({"sampler_name": ("COMBO", "euler")}, ["SAMPLER"]),
    "RandomNoise": ({"noise_seed": ("INT", 0)}, ["NOISE"]),
    "CFGGuider": ({
        "model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "cfg": ("FLOAT", 4.0)}, ["GUIDER"]),
    "SamplerCustomAdvanced": ({
        "noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        [("output", "LATENT"), ("denoised_output", "LATENT")]),
    "LTXVSeparateAVLatent": ({"av_latent": "LATENT"}, [("video_latent", "LATENT"), ("audio_latent", "LATENT")]),
    "LTXVAudioVAEDecode": ({"samples": "LATENT", "audio_vae": "VAE"}, [("Audio", "AUDIO")]),
    "LoadVideo": ({"file": ("COMBO", None)}, ["VIDEO"]),
    "Video Slice": ({
        "video": "VIDEO", "start_time": ("FLOAT", 0.0), "duration": ("FLOAT", 0.0),
        "strict_duration": ("BOOLEAN", False)}, ["VIDEO"]),
    "GetVideoComponents": ({"video": "VIDEO"}, [("images", "IMAGE"), ("audio", "AUDIO"), ("fps", "FLOAT")]),
    "UpscaleModelLoader": ({"model_name": ("COMBO", None)}, ["UPSCALE_MODEL"]),
    "ImageUpscaleWithModel": ({"upscale_model": "UPSCALE_MODEL", "image": "IMAGE"}, ["IMAGE"]),
    "PreviewImage": ({"images": "IMAGE"}, []),
    "PreviewAny": ({"source": "*"}, [("STRING", "STRING")]),
    "ImageStitch": ({
        "image1": "IMAGE", "direction": ("COMBO", "right"), "match_image_size": ("BOOLEAN", True),
        "spacing_width": ("INT", 4), "spacing_color": ("COMBO", "white"), "image2": "IMAGE"}, ["IMAGE"]),
    "MarkdownNote": ({"text": ("STRING", "")}, []),
}  # fmt: skip
TITLES = {
    "LoadImage": "Load Image", "VAEDecode": "VAE Decode", "EmptyLatentImage": "Empty Latent Image",
    "PreviewImage": "Preview Image", "ImageStitch": "Stitch Images", "KSamplerAdvanced": "KSampler (Advanced)",
    "VAEEncode": "VAE Encode",
    "ImageScale": "Upscale Image", "RepeatLatentBatch": "Repeat Latent Batch",
    "UNETLoader": "Load Diffusion Model",
    "CLIPLoader": "Load CLIP", "VAELoader": "Load VAE", "PreviewAny": "Preview Any",
    "LoadVideo": "Load Video", "Video Slice": "Trim Video", "GetVideoComponents": "Get Video Components",
    "UpscaleModelLoader": "Load Upscale Model", "ImageUpscaleWithModel": "Upscale Image (using Model)",
}  # fmt: skip
EXTRA_VALUES = {"LoadImage": ["image"], "LoadVideo": ["image"]}  # of widgets that POST /prompt does not take
EXTRA_HEIGHT = {
    "LoadImage": 224,
    "LoadVideo": 224,
    "CLIPTextEncode": 34,
    "PreviewImage": 230,
    "MicroCinemaVideoCombine": 220,
    "PreviewAny": 120,
}


def ours() -> dict:
    """HOST's form of our nodes, from the committed snapshot; the seeds' names beside it."""
    nodes = {}
    for kind, schema in json.loads((PACK / "tests" / "data" / "object_info.json").read_text()).items():
        inputs = {}
        for name, (of, options) in (schema["input"]["required"] | schema["input"].get("optional", {})).items():
            first = options.get("options", of if isinstance(of, list) else [None])[0]
            inputs[name] = (of, options.get("default", first)) if of in WIDGETS else of
            if options.get("control_after_generate"):
                SEEDS.add((kind, name))
        outputs = list(zip(schema["output_name"], schema["output"], strict=True))
        nodes[kind] = (inputs, outputs)
        TITLES[kind] = schema["display_name"]
    return nodes


SEEDS = {("KSampler", "seed"), ("KSamplerAdvanced", "noise_seed"), ("RandomNoise", "noise_seed")}
OPTIONAL = {
    ("MicroCinemaVideoCombine", "audio"), ("ImageStitch", "image2"), ("MicroCinemaPriorAnyModel", "mask"),
    ("MicroCinemaMotionReport", "picture"), ("MicroCinemaSweepGrid", "picture"), ("LTXVScheduler", "latent"),
    ("WanImageToVideo", "clip_vision_output"), ("WanImageToVideo", "start_image"),
}  # fmt: skip
KINDS = HOST | ours()


@dataclass
class Node:
    """One node; a value in `inputs` that is ("name", slot) is a link, and Outer the subgraph's own input."""

    kind: str
    title: str
    inputs: dict
    collapsed: bool = False
    color: str | None = None
    tall: int | None = None
    models: tuple[dict, ...] = ()
    place: tuple[int, int, int] = (0, 0, 0)  # x, y, width

    def slots(self) -> list[tuple[str, str]]:
        """Sockets in order, then the widgets that something is wired to."""
        inputs = KINDS[self.kind][0]
        sockets = [(name, of) for name, of in inputs.items() if isinstance(of, str)]
        return sockets + [(name, of[0]) for name, of in inputs.items()
                          if not isinstance(of, str) and is_link(self.inputs.get(name))]  # fmt: skip

    def outputs(self) -> list[tuple[str, str]]:
        return [of if isinstance(of, tuple) else (of, of) for of in KINDS[self.kind][1]]

    def values(self) -> dict:
        """The widgets' values: those given, else the defaults."""
        widgets = {name: of[1] for name, of in KINDS[self.kind][0].items() if not isinstance(of, str)}
        given = {name: self.inputs.get(name, value) for name, value in widgets.items()}
        given = {name: value.value if isinstance(value, Outer) else value for name, value in given.items()}
        return {name: widgets[name] if value is None or is_link(value) else value for name, value in given.items()}

    def size(self) -> int:
        """The height that the canvas gives it."""
        if self.tall:
            return self.tall
        widgets = len(self.values()) + sum((self.kind, name) in SEEDS for name in self.values())
        widgets += len(EXTRA_VALUES.get(self.kind, []))
        rows = max(len([of for of in KINDS[self.kind][0].values() if isinstance(of, str)]), len(self.outputs()))
        return 20 * rows + (24 * widgets + 14 if widgets else 6) + EXTRA_HEIGHT.get(self.kind, 0)


@dataclass(frozen=True)
class Outer:
    """An input of the subgraph, and the value it has until a person changes it; None: the inner node's own."""

    name: str
    value: object = None


def is_link(value) -> bool:
    return isinstance(value, tuple | Outer)


@dataclass
class Graph:
    nodes: dict[str, Node] = field(default_factory=dict)
    groups: list[dict] = field(default_factory=list)

    def add(self, name: str, kind: str, title: str | None = None, /, **fields) -> None:
        own = {key: fields.pop(key) for key in ("collapsed", "color", "tall", "models") if key in fields}
        unknown = fields.keys() - KINDS[kind][0].keys()
        assert not unknown, f"{kind} has no {unknown}"
        self.nodes[name] = Node(kind, title or TITLES.get(kind, kind), fields, **own)

    def group(self, title: str, x: int, y: int, *columns: tuple[int, str]) -> tuple[int, int]:
        """A titled frame at (x, y), and where the next may begin to its right and below it.

        Each column is its width and the names of its nodes, from top to bottom. Without a title there is no frame.
        """
        left, bottom = x, y
        for width, names in columns:
            top = y
            for name in names.split():
                node = self.nodes[name]
                node.place = (left, top + 30, width)
                top += 30 + (0 if node.collapsed else node.size()) + GAP
            left, bottom = left + width + GAP, max(bottom, top)
        if title:
            frame = [x - 8, y - 34, left - GAP + 16 - x, bottom - y + 28]
            self.groups.append({"id": len(self.groups) + 1, "title": title, "bounding": frame, "color": "#8ab4d8",
                                "font_size": 20, "flags": {}})  # fmt: skip
        return left + GAP, bottom + 34 + GAP

    def ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.nodes, 1)}

    def links(self) -> list[tuple]:
        """(id, from, slot, to, slot, type), in the order of the nodes they lead to; from may be an Outer's name."""
        ids, made = self.ids(), []
        for name, node in self.nodes.items():
            for slot, (key, of) in enumerate(node.slots()):
                match node.inputs.get(key):
                    case Outer(outer):
                        made.append((len(made) + 1, outer, 0, ids[name], slot, of))
                    case (source, out):
                        made.append((len(made) + 1, ids[source], out, ids[name], slot, of))
        return made

    def api(self) -> dict:
        """The form of POST /prompt."""
        ids = self.ids()
        return {
            str(ids[name]): {
                "inputs": {
                    key: [str(ids[given[0]]), given[1]] if is_link(given := node.inputs.get(key)) else values.get(key)
                    for key in KINDS[node.kind][0] if key in values or is_link(node.inputs.get(key))
                },
                "class_type": node.kind, "_meta": {"title": node.title},
            }
            for name, node in self.nodes.items() if node.kind != "MarkdownNote" for values in [node.values()]
        }  # fmt: skip

    def canvas_nodes(self) -> list[dict]:
        return [self._canvas(order, name, node) for order, (name, node) in enumerate(self.nodes.items())]

    def _canvas(self, order: int, name: str, node: Node) -> dict:
        links, me = self.links(), self.ids()[name]
        inputs = []
        for slot, (key, of) in enumerate(node.slots()):
            link = next((link[0] for link in links if link[3:5] == (me, slot)), None)
            entry = {"name": key, "type": of, "link": link}
            if key in node.values():
                entry["widget"] = {"name": key}
            if (node.kind, key) in OPTIONAL:
                entry["shape"] = 7
            inputs.append(entry)
        outputs = [
            {"name": key, "type": of, "links": [link[0] for link in links if link[1:3] == (me, slot)] or None}
            for slot, (key, of) in enumerate(node.outputs())
        ]
        values = []
        for key, value in node.values().items():
            values += [value, "fixed"] if (node.kind, key) in SEEDS else [value]
        own = node.kind.startswith("MicroCinema")
        pack = {"cnr_id": "microcinema", "ver": VERSION} if own else {"cnr_id": "comfy-core", "ver": HOST_VERSION}
        properties = {"Node name for S&R": node.kind} | pack
        if node.models:
            properties["models"] = list(node.models)
        x, y, width = node.place
        made = {
            "id": me, "type": node.kind, "pos": [x, y], "size": [width, node.size()],
            "flags": {"collapsed": True} if node.collapsed else {}, "order": order, "mode": 0, "inputs": inputs,
            "outputs": outputs, "title": node.title, "properties": properties,
            "widgets_values": values + EXTRA_VALUES.get(node.kind, []),
        }  # fmt: skip
        if node.color:
            made |= {"color": node.color, "bgcolor": node.color}
        return made

    def canvas(self, name: str, **extra) -> dict:
        """The form that the page loads: at 100 %, the first group in the corner beside the tool bars."""
        return {
            "id": str(uuid.uuid5(NAMESPACE, name)), "revision": 0, "last_node_id": len(self.nodes),
            "last_link_id": len(self.links()), "nodes": self.canvas_nodes(),
            "links": [list(link) for link in self.links()], "groups": self.groups, "config": {},
            "extra": {"ds": VIEW, "microcinemaView": VIEW, **extra}, "version": 0.4,
        }  # fmt: skip

    def subgraph(
        self, name: str, inputs: dict[str, tuple[str, str]], outputs: dict[str, tuple[str, int]], **fields
    ) -> dict:
        """A blueprint: one node that holds this graph.

        `inputs`: the Outer's name → (label, type); `outputs`: label → a node's output. -10 and -20 are the two ends.
        """
        links = self.links()
        order = list(inputs)
        made = [
            {"id": number, "origin_id": -10, "origin_slot": order.index(source), "target_id": to, "target_slot": slot,
             "type": of} if isinstance(source, str) else
            {"id": number, "origin_id": source, "origin_slot": out, "target_id": to, "target_slot": slot, "type": of}
            for number, source, out, to, slot, of in links
        ]  # fmt: skip
        nodes, ends = self.canvas_nodes(), []
        for slot, (label, (source, out)) in enumerate(outputs.items()):
            number, node = len(made) + 1, nodes[self.ids()[source] - 1]
            of = node["outputs"][out]["type"]
            node["outputs"][out]["links"] = [*(node["outputs"][out]["links"] or []), number]
            made.append({"id": number, "origin_id": self.ids()[source], "origin_slot": out, "target_id": -20,
                         "target_slot": slot, "type": of})  # fmt: skip
            ends.append({"id": str(uuid.uuid5(NAMESPACE, f"{name} out {label}")), "name": label, "type": of,
                         "linkIds": [number]})  # fmt: skip
        starts = [
            {"id": str(uuid.uuid5(NAMESPACE, f"{name} in {key}")), "name": key, "label": label, "type": of,
             "linkIds": [number for number, source, *_ in links if source == key]}
            for key, (label, of) in inputs.items()
        ]  # fmt: skip
        kind = str(uuid.uuid5(NAMESPACE, name))
        instance = {
            "id": 1, "type": kind, "pos": [0, 0], "size": [340, 420], "flags": {}, "order": 0, "mode": 0,
            "inputs": [{"name": key, "label": label, "type": of, "link": None}
                       | ({"widget": {"name": key}} if of in WIDGETS else {}) for key, (label, of) in inputs.items()],
            "outputs": [{"name": end["name"], "type": end["type"], "links": None} for end in ends],
            "title": name, "properties": {"cnr_id": "microcinema", "ver": VERSION},
            "widgets_values": [],
        }  # fmt: skip
        right = max(group["bounding"][0] + group["bounding"][2] for group in self.groups)
        definition = {
            "id": kind, "version": 1, "state": {"lastGroupId": len(self.groups), "lastNodeId": len(self.nodes),
                                                "lastLinkId": len(made), "lastRerouteId": 0},
            "revision": 0, "config": {}, "name": name,
            "inputNode": {"id": -10, "bounding": [-240, 0, 160, 20 * len(inputs) + 40]},
            "outputNode": {"id": -20, "bounding": [right + 60, 0, 120, 20 * len(outputs) + 40]},
            "inputs": starts, "outputs": ends, "widgets": [], "nodes": nodes, "groups": self.groups, "links": made,
            "extra": {}, **fields,
        }  # fmt: skip
        return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [instance], "links": [], "version": 0.4,
                "definitions": {"subgraphs": [definition]}, "extra": {}}  # fmt: skip


GAP = 14
VIEW = {"scale": 1, "offset": [84, 136]}  # clear of the tool bars; web/view.js keeps it where the host would not
