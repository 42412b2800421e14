"""Run by the host's own Python (benchmarks/clip_memory.py): the memory of the template smoother-and-larger, without its
networks, whose own does not grow with the clip.

`python clip_memory_script.py PACK UPSCALER FRAMES WIDTH HEIGHT ORDER` in the host's folder prints the largest resident
size in bytes, after a clip of FRAMES has gone through the host's Upscale Image and our Video Combine. As its cache
does, it holds what each node gives; Temporal Interpolate is stood in for by frames repeated four times. ORDER is
"interpolate" or "upscale", for what is done first.
"""

import resource
import tempfile
from types import SimpleNamespace

from host_entry import ARGUMENTS  # the first: it enters the host

# isort: split
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel
from pack.nodes import VideoCombine
from spandrel import ModelLoader

_, UPSCALER, FRAMES, WIDTH, HEIGHT, ORDER = ARGUMENTS
VideoCombine.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)


def upscaled(images):
    model = ModelLoader().load_from_state_dict(comfy.utils.load_torch_file(UPSCALER)).eval()
    model.patcher = comfy.model_patcher.CoreModelPatcher(model.model, torch.device("cpu"), torch.device("cpu"))
    [larger] = ImageUpscaleWithModel.execute(model, images).result
    return larger


def interpolated(images):
    return images.repeat_interleave(4, 0)[:-3]


with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
    folder_paths.set_output_directory(folder)
    steps = (interpolated, upscaled) if ORDER == "interpolate" else (upscaled, interpolated)
    given = torch.full((int(FRAMES), int(HEIGHT), int(WIDTH), 3), 0.5)
    first = steps[0](given)
    second = steps[1](first)
    file = VideoCombine.execute(second, 96.0, "mp4 (h264)", 80, 0, False, "made", True)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
