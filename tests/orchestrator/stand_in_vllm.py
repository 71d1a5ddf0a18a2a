"""A stand-in for the Python that has vLLM: its server, run as a command.

stand_in_vllm.py -m vllm.entrypoints.openai.api_server --model FOLDER --port PORT ...
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from crossroads.models.transformers import TransformersLM
from orchestrator.fake_server import fake_server


def main(arguments: list[str]) -> None:
    """Serve the model until told to end; write down how it was started."""
    options = dict(zip(arguments[2::2], arguments[3::2], strict=False))
    if "--fail" in arguments:
        sys.exit("there is no room on this machine")
    folder = Path(options["--model"])
    started = {
        "arguments": arguments,
        "router": os.environ["CROSSROADS_ROUTER"],
        "pid": os.getpid(),
    }
    (folder / "started.json").write_text(json.dumps(started))
    context = int(options["--max-model-len"])
    model = TransformersLM.load(folder, context_length=context, max_rows=8)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with fake_server(model, None, int(options["--port"])):
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
