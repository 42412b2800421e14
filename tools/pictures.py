"""Makes the README's clip, the thumbnails of the templates and the pictures of the help: `python tools/pictures.py`.

It needs a ComfyUI and chromium, as the browser tests do (tests/helpers/host.py), and runs the bundled models.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PACK = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACK), str(PACK / "tests" / "helpers")]

from browser import CHROMIUM, FLAGS, WINDOW, open_template  # noqa: E402
from host import HOST, Server, api_form, canvas_form  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

SIDE = 480


def frames_of(server: Server, name: str) -> list[Image.Image]:
    """The frames that a template gives, before a codec has seen them."""
    made = api_form(name)
    [combine] = [node for node in made.values() if node["class_type"] == "MicroCinemaVideoCombine"]
    combine["inputs"] |= {"format": "png sequence", "filename_prefix": name}
    outputs = server.run(made)
    files = server.files([file for output in outputs.values() for file in output.get("images", [])])
    return [Image.open(file).convert("RGB") for file in files]


def save(image: Image.Image, path: str, quality: int = 82) -> None:
    image.save(PACK / path, quality=quality, optimize=True, progressive=True)
    print(path, (PACK / path).stat().st_size)


def crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Its middle, as wide and high as asked for."""
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def shot(page, clip: dict) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def thumbnails(server: Server) -> None:
    frames = frames_of(server, "animate-a-picture")
    frames[0].save(PACK / "docs/clip.webp", save_all=True, append_images=frames[1:], duration=125, loop=0, quality=75,
                   method=6, kmax=1)  # fmt: skip
    print("docs/clip.webp", (PACK / "docs/clip.webp").stat().st_size, frames[0].size)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    for row, frame in enumerate((frames[0], frames[-1])):
        sheet.paste(crop(frame, SIDE, SIDE // 2 - 2), (0, row * (SIDE // 2 + 2)))
    save(sheet, "workflows/animate-a-picture.jpg")

    four = frames_of(server, "motion-amplitude")[-1]
    sheet, half, width = Image.new("RGB", (SIDE, SIDE), "white"), SIDE // 2 - 2, (four.width - 12) // 4
    font = ImageFont.load_default(size=22)
    for i, gamma in enumerate(("gamma -0.01", "gamma 0", "gamma 0.02", "gamma 0.04")):
        left = i * (width + 4)
        tile = crop(four.crop((left, 0, left + width, four.height)), half, half)
        ImageDraw.Draw(tile).text((10, 8), gamma, fill="white", stroke_width=2, stroke_fill="black", font=font)
        sheet.paste(tile, (i % 2 * (half + 4), i // 2 * (half + 4)))
    save(sheet, "workflows/motion-amplitude.jpg")

    for name in ("side-by-side", "sweep"):
        frame = frames_of(server, name)[-1]
        save(frame.resize((2 * SIDE, round(2 * SIDE * frame.height / frame.width)), Image.Resampling.LANCZOS)
             if name == "sweep" else tiled(frame, 5), f"workflows/{name}.jpg")  # fmt: skip


def tiled(row: Image.Image, count: int) -> Image.Image:
    """The clips of a row, one below the other."""
    width = (row.width - 4 * (count - 1)) // count
    sheet = Image.new("RGB", (SIDE // 2, count * (SIDE // 5)), "white")
    for i in range(count):
        tile = row.crop((i * (width + 4), 0, i * (width + 4) + width, row.height))
        sheet.paste(crop(tile, SIDE // 2, SIDE // 5 - 4), (0, i * (SIDE // 5)))
    return sheet


def canvas(page) -> None:
    for name in sorted(path.stem for path in (PACK / "workflows").glob("*.json")):
        if name in ("animate-a-picture", "motion-amplitude", "side-by-side", "sweep"):
            continue
        page.evaluate("graph => app.loadGraphData(graph)", canvas_form(name))
        page.wait_for_timeout(2500)
        # No files of full-size models are there: without the marks of what is missing.
        page.evaluate("document.querySelectorAll('[data-testid=\"error-overlay\"]').forEach(box => box.remove())")
        page.evaluate("app.graph._nodes.forEach(node => Object.assign(node, {has_errors: false, strokeStyles: {}}))")
        page.evaluate("app.canvas.setDirty(true, true)")
        page.wait_for_timeout(300)
        opened = shot(page, {"x": 62, "y": 94, "width": 1216, "height": 700})
        save(opened.resize((608, 350), Image.Resampling.LANCZOS), f"workflows/{name}.jpg", 70)


def helps(page) -> None:
    """Each node of the first template, after a run, at 100 %."""
    open_template(page, "animate-a-picture")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=400_000)
    page.evaluate("app.graph._nodes.forEach(node => node.flags.collapsed && node.collapse())")
    for kind in ("Loader", "PriorLatent", "EulerSampler", "Interpolate", "VideoCombine"):
        width, height = page.evaluate(
            """kind => {
                const node = app.graph._nodes.find(node => node.type == kind), [x, y] = node.pos;
                for (const other of app.graph._nodes) if (other !== node) other.pos[0] += 5000;
                Object.assign(app.canvas.ds, {scale: 1, offset: [-x + 300, -y + 150]});
                app.canvas.setDirty(true, true);
                return node.size;
            }""",
            f"MicroCinema{kind}",
        )
        save_help(page, kind, width, height)
        page.evaluate(
            "kind => { for (const node of app.graph._nodes) if (node.type != kind) node.pos[0] -= 5000; }",
            f"MicroCinema{kind}",
        )


def save_help(page, kind: str, width: float, height: float) -> None:
    """The picture of a node's help page, of a node of that size at (300, 150)."""
    page.wait_for_timeout(1500)
    found = shot(page, {"x": 290, "y": 110, "width": width + 20, "height": min(height + 50, 680)})
    save(found, f"web/docs/MicroCinema{kind}.jpg", 70)


def single_helps(page) -> None:
    """Nodes that the first template has not, each alone on the canvas."""
    for kind in ("PriorAnyModel", "MotionAmplitude", "MotionReport", "SweepGrid", "VideoNoise"):
        width, height = page.evaluate(
            """kind => {
                app.graph.clear();
                app.graph.last_node_id = 1000;  // the page keeps the previews of earlier nodes by their ids
                const node = LiteGraph.createNode(kind);
                node.pos = [300, 150];
                app.graph.add(node);
                node.size[0] = 330;
                Object.assign(app.canvas.ds, {scale: 1, offset: [0, 0]});
                app.canvas.setDirty(true, true);
                return node.size;
            }""",
            f"MicroCinema{kind}",
        )
        save_help(page, kind, width, height)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        server = Server(HOST, Path(folder) / "base")
        try:
            thumbnails(server)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                page = browser.new_page(viewport=WINDOW)
                for work in (helps, canvas, single_helps):
                    page.goto(f"http://127.0.0.1:{server.port}")
                    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
                    page.wait_for_timeout(2000)
                    page.keyboard.press("Escape")
                    page.evaluate("app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
                    work(page)
                browser.close()
        finally:
            server.stop()
