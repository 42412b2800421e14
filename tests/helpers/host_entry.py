"""Enters the host as its main.py does and loads the pack: the first import of scripts that the host's Python runs.

`python SCRIPT PACK …` in the host's folder: ARGUMENTS are PACK, the pack's folder, and what follows. After the import
the pack's modules are those of `pack`, and the host's modules can be imported.
"""

import importlib.util
import sys

ARGUMENTS = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, "")
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import torch  # noqa: E402

import nodes  # noqa: E402, F401

_spec = importlib.util.spec_from_file_location(
    "pack", ARGUMENTS[0] + "/__init__.py", submodule_search_locations=[ARGUMENTS[0]]
)
sys.modules["pack"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["pack"])
torch.set_num_threads(1)
