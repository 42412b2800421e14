"""The templates of other models run, with the host's own classes at tiny size where they load a file."""

from pathlib import Path

import pytest
from host import HOST, PACK, Server, api_form

from microcinema_core import video

# For each template: the family, what its loaders give (output of TinyLoader by the loader's class and output), sizes
TEMPLATES = {
    "svd-with-the-prior": ("SVD", {"ImageOnlyCheckpointLoader": (0, 3, 2)},
                           {"SVD_img2vid_Conditioning": {"width": 64, "height": 48, "video_frames": 3}}),
    "wan22-with-the-prior": ("Wan21", {"UNETLoader": (0,), "CLIPLoader": (1,), "VAELoader": (2,)},
                             {"WanImageToVideo": {"width": 64, "height": 48, "length": 9}}),
    "ltx2-with-the-prior": ("LTXV", {"CheckpointLoaderSimple": (0, 1, 2), "LTXAVTextEncoderLoader": (1,)},
                            {"EmptyLTXVLatentVideo": {"width": 128, "height": 96, "length": 17}}),
}  # fmt: skip
SOUND = ("LTXVAudioVAELoader", "LTXVEmptyLatentAudio", "LTXVConcatAVLatent", "LTXVSeparateAVLatent",
         "LTXVAudioVAEDecode")  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    if HOST is None:
        pytest.skip("no ComfyUI")
    node = (PACK / "tests" / "helpers" / "tiny_families.py").read_text()
    server = Server(HOST, tmp_path_factory.mktemp("tiny"), custom_nodes={"tiny_families.py": node})
    yield server
    server.stop()


def shrunk(name: str) -> dict:
    """The template with TinyLoader for its loaders, small, with two steps, and without sound."""
    family, loaders, sizes = TEMPLATES[name]
    made = api_form(name)
    outputs = {key: loaders[node["class_type"]] for key, node in made.items() if node["class_type"] in loaders}
    silent = {key: node for key, node in made.items() if node["class_type"] in SOUND}
    for node in made.values():
        inputs = node["inputs"]
        for slot, value in inputs.items():
            while isinstance(value, list) and value[0] in silent:  # the picture goes past the nodes of sound
                before = silent[value[0]]["inputs"]
                value = before.get("video_latent", before.get("av_latent"))
            if isinstance(value, list) and value[0] in outputs:
                value = ["tiny", outputs[value[0]][value[1]]]
            inputs[slot] = value
        inputs |= sizes.get(node["class_type"], {})
        if "steps" in inputs:
            inputs["steps"] = 4
        for slot, value in {"end_at_step": 2, "start_at_step": 2}.items():
            if inputs.get(slot) == 10:
                inputs[slot] = value
        node["inputs"] = {slot: value for slot, value in inputs.items() if value is not None}
    made = {key: node for key, node in made.items() if key not in outputs and key not in silent}
    return made | {"tiny": {"class_type": "TinyLoader", "inputs": {"family": family}}}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_another_model_runs_to_a_file_and_a_report(tiny, name):
    made = shrunk(name)
    described = tiny.get("/object_info")
    if absent := sorted({node["class_type"] for node in made.values()} - described.keys()):
        pytest.skip(f"this host has no {', '.join(absent)}")
    outputs = tiny.run(made)
    [shown] = [output["images"] for output in outputs.values() if "images" in output]
    [path] = tiny.files(shown)
    assert len(video.read_video(Path(path))[0]) >= 3
    [text] = [output["text"] for output in outputs.values() if "text" in output]
    assert "px a frame" in text[0] and "given frame" in text[0]
    assert "the noise starts from the picture" in tiny.log
