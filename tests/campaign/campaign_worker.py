"""A process that runs one command line after another for campaign.py: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

MAX_MEMORY = 10 * 2**30  # bytes of addresses: a case that asks for more fails here, and the machine stays alive


def serve(run) -> None:
    """Answer each case on stdin with how it ended; `run(argv)` returns the exit code."""
    with suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody types
    outs = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
    for number, file in zip((1, 2), outs, strict=True):  # libraries write there too
        os.dup2(file.fileno(), number)
    home = Path.cwd()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in questions:
        case = json.loads(line)
        for file in outs:
            file.seek(0)
            file.truncate()
        os.chdir(case["folder"])
        code, trace = None, ""
        try:
            code = run(case["argv"])
        except SystemExit as error:  # of argparse: --help, --version
            code = error.code or 0
        except BaseException:
            trace = traceback.format_exc()
        os.chdir(home)
        sys.stdout.flush()
        sys.stderr.flush()
        outs[1].seek(0)
        stderr = outs[1].read().decode(errors="replace")
        print(json.dumps({"code": code, "stderr": stderr, "trace": trace}), file=answers, flush=True)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (as on a terminal, strict)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    from microcinema_core import checkpoint, images, pipeline, video  # noqa: F401 (so that the first case is as fast)
    from microcinema_core.cli import main as command
    from microcinema_core.demo import recipes  # noqa: F401

    serve(command)


if __name__ == "__main__":
    main()
