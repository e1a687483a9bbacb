"""Run by `accelerate launch`: recipes one after the other, for each a fork of every rank, whose ranks meet anew.

What takes long, the libraries, is imported once. Argument: a file of JSON: the name, flags and a free port of each.
"""

import importlib
import json
import os
import sys
from pathlib import Path

LIBRARIES = (
    "accelerate",
    "datasets",
    "evaluate",
    "peft",
    "scipy.optimize",
    "torch._dynamo",
)  # which recipes import late
ARCHITECTURES = ("auto", "bert", "llama", "efficientnet")

if __name__ == "__main__":
    runs = json.loads(Path(sys.argv[1]).read_text())
    modules = [importlib.import_module(f"recipes.{name}") for name, _, _ in runs]
    for name in (*LIBRARIES, *(f"transformers.models.{name}.modeling_{name}" for name in ARCHITECTURES)):
        importlib.import_module(name)
    for module, (_, flags, port) in zip(modules, runs, strict=True):
        child = os.fork()
        if not child:
            # The launcher's own store holds the addresses of the ranks before.
            os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=str(port))
            module.main(flags)
            sys.exit()
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
