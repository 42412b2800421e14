"""What a person does in ComfyUI's page, in a real browser: templates, Run, files dropped on the canvas, help."""

import base64
import shutil
import warnings

import pytest
from host import PACK, api_form, canvas_form

pytestmark = pytest.mark.usefixtures("server")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    warnings.warn("NO CHROMIUM FOUND: the browser tests are SKIPPED. Install chromium.", stacklevel=1)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".webp": "image/webp"}
PROMPT = "app.graphToPrompt().then(graph => graph.output)"
DROP = """([data, name, type]) => {
    const file = new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type});
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    const canvas = document.querySelector('#graph-canvas');
    for (const kind of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true, clientX: 700, clientY: 400}));
}"""  # noqa: E501


@pytest.fixture(scope="module")
def page(server):
    if CHROMIUM is None:
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{server.port}")
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        yield page
        browser.close()


def test_a_template_from_the_dialog_runs_and_shows_its_video(page):
    page.get_by_text("All Templates").first.wait_for()  # opens by itself for a new person
    page.get_by_text("any-name", exact=True).first.click()
    page.get_by_test_id("template-workflow-animate-a-picture").click()
    page.wait_for_function(f"app.graph._nodes.length == {len(canvas_form('animate-a-picture')['nodes'])}")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 1")
    seconds, source = page.evaluate("[document.querySelector('video').duration, document.querySelector('video').src]")
    assert seconds == pytest.approx(33 / 8, abs=0.01)
    assert "filename=demo_" in source


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_forms_of_a_template_are_equal(page, name):
    page.evaluate("graph => app.loadGraphData(graph)", canvas_form(name))
    assert page.evaluate(PROMPT) == api_form(name)


@pytest.mark.parametrize("kind", ["mp4 (h264)", "webm (vp9)", "webp (animated)"])
def test_a_file_dropped_on_the_canvas_brings_its_workflow_back(page, server, kind):
    workflow = canvas_form("motion-amplitude")
    made = {
        "frames": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 4, "color": 255}},
        "video": {"class_type": "MicroCinemaVideoCombine", "inputs": {
            "images": ["frames", 0], "fps": 8.0, "format": kind, "quality": 80, "loop_count": 0, "ping_pong": False,
            "filename_prefix": "dropped", "save": True}},
    }  # fmt: skip
    [path] = server.files(server.run(made, extra_data={"extra_pnginfo": {"workflow": workflow}})["video"]["images"])
    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, [base64.b64encode(path.read_bytes()).decode(), path.name, TYPES[path.suffix]])
    page.wait_for_function(f"app.graph._nodes.length == {len(workflow['nodes'])}")
    assert page.evaluate(PROMPT) == api_form("motion-amplitude")


def test_a_nodes_help_opens(page):
    page.evaluate("graph => app.loadGraphData(graph)", canvas_form("animate-a-picture"))
    page.evaluate("app.canvas.selectNode(app.graph._nodes.find(node => node.type == 'MicroCinemaVideoCombine'))")
    page.get_by_test_id("info-button").dispatch_event("click")  # a click would wait for a leaving mask of the page
    page.get_by_text("Drop a file that holds the workflow on the empty canvas").wait_for()
    page.wait_for_function("document.querySelector('img[alt=\"Video Combine\"]')?.naturalWidth > 100")
