"""ComfyUI's page in a real browser, for tests and for pictures."""

import shutil
import warnings

from host import canvas_form

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    warnings.warn("NO CHROMIUM FOUND: the browser tests are SKIPPED. Install chromium.", stacklevel=1)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
WINDOW = {"width": 1280, "height": 800}


def open_template(page, name: str) -> None:
    """As the dialog of templates does."""
    call = "([graph, name]) => app.loadGraphData(graph, true, true, name, {openSource: 'template'})"
    page.evaluate(call, [canvas_form(name), name])
