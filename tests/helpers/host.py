"""A real ComfyUI server on the CPU with this pack in it, spoken to over HTTP as any client does."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from microcinema_core import images
from microcinema_core.pipeline import Pipeline

PACK = Path(__file__).resolve().parents[2]


def find_host() -> Path | None:
    """COMFYUI_PATH, comfy-cli's place, or the ComfyUI that this pack is installed in."""
    named = os.environ.get("COMFYUI_PATH")
    for place in (named and Path(named), Path.home() / "comfy" / "ComfyUI", PACK.parent.parent):
        if place and (place / "main.py").is_file() and (place / "comfy").is_dir():
            return place
    return None


HOST = find_host()
if HOST is None:
    warnings.warn("NO ComfyUI FOUND: the host tests are SKIPPED. Set COMFYUI_PATH to a ComfyUI checkout.", stacklevel=1)


def python_of(host: Path) -> Path:
    """The host's own Python, in a virtual environment inside it."""
    return next((p for p in (host / ".venv/bin/python", host / "venv/bin/python") if p.exists()), Path("python3"))


def script_result(script: str, *arguments: str) -> dict:
    """The JSON that a script of this folder prints last, run by the host's own Python with the pack and `arguments`."""
    command = [str(python_of(HOST)), str(PACK / "tests" / "helpers" / script), str(PACK), *arguments]
    options = {"cwd": HOST, "env": os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, "capture_output": True, "text": True}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def canvas_form(name: str) -> dict:
    """A template as the page loads it."""
    return json.loads((PACK / "workflows" / f"{name}.json").read_text())


def api_form(name: str) -> dict:
    """The same template for POST /prompt."""
    return json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text())


def graph(**changed) -> dict:
    """The first template by name of node, small, with 3 steps and guidance so that all of it takes part."""
    made = api_form("animate-a-picture")
    kinds = {
        "LoadImage": "picture", "MicroCinemaPriorLatent": "prior", "MicroCinemaEulerSampler": "sampler",
        "VAEDecode": "decode", "MicroCinemaInterpolate": "between", "MicroCinemaVideoCombine": "video",
    }  # fmt: skip
    titles = {"MicroCinema Loader": "loader", "Interpolation model": "ends", "What moves": "positive"}
    titles["What is not wanted"] = "negative"
    names = {key: kinds.get(node["class_type"]) or titles[node["_meta"]["title"]] for key, node in made.items()}
    for node in made.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = [names[value[0]], value[1]]
    made = {names[key]: node for key, node in made.items()}
    made["sampler"]["inputs"] |= {"steps": 3, "cfg": 2.0, "seed": 5}
    made["prior"]["inputs"] |= {"noise_seed": 5, "width": 96, "height": 96}
    made["picture"]["inputs"]["image"] = "example.png"  # a JPEG is not decoded alike by all
    for key, value in changed.items():
        node, _, name = key.partition("__")
        made[node]["inputs"][name] = value
    return made


def end_with_parent() -> None:
    """Called in a new process: on Linux it ends when the test run that has started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    def __init__(self, host: Path, base: Path, *options: str, custom_nodes: dict[str, str] | None = None):
        """`custom_nodes`: more files for that folder beside the pack, by name."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (base / "custom_nodes").mkdir(parents=True)
        (base / "input").mkdir()
        (base / "user").mkdir()
        (base / "custom_nodes" / "any-name").symlink_to(PACK)
        for name, text in (custom_nodes or {}).items():
            (base / "custom_nodes" / name).write_text(text)
        self.base, self.log_path = base, base / "server.log"
        command = [str(python_of(host)), "main.py", "--cpu", "--base-directory", str(base), "--port", str(self.port)]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options], cwd=host, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    raise AssertionError(f"the server did not start\n{self.log}") from None
                time.sleep(0.5)

    def add_picture(self) -> None:
        """The photograph that graph() animates, into the input folder."""
        Image.open(PACK / "pictures" / "photo.jpg").save(self.base / "input" / "example.png")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: dict) -> tuple[int, dict]:
        data, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or "{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "{}")

    def queue(self, graph: dict, **extra) -> tuple[int, dict]:
        return self.post("/prompt", {"prompt": graph, **extra})

    def wait(self, prompt_id: str, seconds: float = 300) -> dict:
        """The entry of the history, once the prompt has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if history := self.get(f"/history/{prompt_id}"):
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"the graph did not end in time\n{self.log[-2000:]}")

    def run(self, graph: dict, **extra) -> dict:
        """Run a graph in API form to its end: outputs by node."""
        status, answer = self.queue(graph, **extra)
        assert status == 200 and not answer["node_errors"], answer
        entry = self.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry["outputs"]

    def error(self, graph: dict) -> str:
        """What a client is told about a graph that cannot run, when it is queued or while it runs."""
        status, answer = self.queue(graph)
        if status != 200:
            found = [error for node in answer["node_errors"].values() for error in node["errors"]]
            return " ".join(f"{error['message']}: {error['details']}" for error in found)
        messages = dict(self.wait(answer["prompt_id"])["status"]["messages"])
        return messages["execution_error"]["exception_message"]

    def memory(self) -> int:
        """Resident bytes of the server."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def files(self, shown: list[dict]) -> list[Path]:
        return [self.base / file["type"] / file["subfolder"] / file["filename"] for file in shown]


def latents(server: Server, made: dict, samples: list, **extra) -> Tensor:
    """The latents that `samples` gives, saved by the host."""
    made["save"] = {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "saved"}}
    made.pop("video")
    [path] = server.files(server.run(made, **extra)["save"]["latents"])
    return load_file(path)["latent_tensor"]


def sampled_by_core(server: Server, pipeline: Pipeline, frames: int, steps: int, **moves) -> Tensor:
    """The latents that the core gives for graph(), as the host would save them."""
    picture = images.load_picture(server.base / "input" / "example.png")
    context = pipeline.text.encode(["", "the camera zooms in"])
    condition = pipeline.encode(images.fit(picture, 96, 96)[None])[None]
    settings = {"cfg": 2.0, "lambda_": 0.03, "gamma": 0.02, "seeds": [5]} | moves
    found = pipeline.sample(condition, context, frames=frames, steps=steps, **settings)[0]
    return found / pipeline.config.autoencoder.scale
