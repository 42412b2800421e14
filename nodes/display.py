"""Text on a node of the canvas while it runs."""

from __future__ import annotations

import logging
import sys

from comfy_execution.utils import get_executing_context


def show_text(text: str) -> None:
    """Log a text and show it on the running node, as the host's Get Image Size does."""
    logging.info("MicroCinema: %s", text)
    context, server = get_executing_context(), sys.modules.get("server")  # not in a script that calls the nodes
    if context is not None and server is not None:
        server.PromptServer.instance.send_progress_text(text, context.node_id)
