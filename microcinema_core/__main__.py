"""`python -m microcinema_core` runs the command."""

import os
import sys

from .cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a process of torchrun: gloo's threads may keep it from its end for ever
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
