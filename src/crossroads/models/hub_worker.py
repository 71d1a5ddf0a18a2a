"""The child process that talks to the model hub: one JSON request on stdin, then files.

A failure is one sentence on stderr and exit code 1. See `hub.py` for why this is a process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# What a transformers model is loaded from; other formats of the same weights are left out.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")


def main() -> int:
    """Read one request, serve it, return the exit code."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    actions = {"file": _file, "plan": _plan, "repo": _repo}
    try:
        actions[request["action"]](request)
    except Exception as error:  # noqa: BLE001  the boundary of the process: all become a sentence
        sys.stderr.write(explain(error) + "\n")
        return 1
    return 0


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _file(request: Mapping[str, str]) -> None:
    """Download one file, unless the hub says that it has another hash."""
    from huggingface_hub import (  # noqa: PLC0415
        get_hf_file_metadata,
        get_token,
        hf_hub_download,
        hf_hub_url,
    )

    repo, filename, revision = request["repo"], request["filename"], request["revision"]
    url = hf_hub_url(repo, filename, revision=revision)
    etag = get_hf_file_metadata(url, token=get_token()).etag or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != request["sha256"]:
        raise LookupError(
            f"it has another file (sha256 {etag[:12]}, expected {request['sha256'][:12]})"
        )
    hf_hub_download(repo, filename, revision=revision, local_dir=request["folder"])


def _plan(request: Mapping[str, str]) -> None:
    """Write which files a repository's commit has, with the sizes and hashes the hub states."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    info = HfApi().model_info(request["repo"], revision=request["revision"], files_metadata=True)
    files: dict[str, Any] = {entry.rfilename: entry for entry in info.siblings or []}
    names = sorted(name for name in files if _is_wanted(name))
    if not any(name.endswith(".safetensors") for name in names):
        raise LookupError("it has no safetensors weights")
    plan = {
        "repo": request["repo"],
        "commit": info.sha,
        "files": [
            {
                "name": name,
                "size": files[name].size,
                "sha256": files[name].lfs.sha256 if files[name].lfs else None,
            }
            for name in names
        ],
    }
    Path(request["plan"]).write_text(json.dumps(plan, indent=2), encoding="utf-8")


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PATTERNS)


def _repo(request: Mapping[str, str]) -> None:
    """Download the planned files at the planned commit."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    plan = json.loads(Path(request["plan"]).read_text(encoding="utf-8"))
    for entry in plan["files"]:
        hf_hub_download(
            request["repo"],
            entry["name"],
            revision=plan["commit"],
            local_dir=request["folder"],
        )


def explain(error: BaseException) -> str:
    """Say in one sentence why the hub's client failed."""
    chain = list(_chain(error))
    for link in chain:
        if sentence := _known(link):
            return sentence
    root = chain[-1]
    if isinstance(root, LookupError):
        return str(root.args[0])
    detail = str(root).splitlines()[0][:200] if str(root) else type(root).__name__
    names = {cls.__name__ for link in chain for cls in type(link).__mro__}
    # By name: the hub's client has changed its HTTP library before.
    if names & {"TransportError", "ConnectionError", "RequestException", "TimeoutError"}:
        return f"the hub cannot be reached ({detail})"
    return f"{type(root).__name__}: {detail}"


def _known(error: BaseException) -> str | None:
    from huggingface_hub import errors  # noqa: PLC0415

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    sentences: dict[type[BaseException], str] = {  # the special before the general
        errors.OfflineModeIsEnabled: "the hub is switched off (HF_HUB_OFFLINE)",
        errors.GatedRepoError: "it is gated; accept its terms on the hub and run: hf auth login",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private",
        errors.RevisionNotFoundError: "the repository has no such revision",
        errors.RemoteEntryNotFoundError: "the repository has no such file",
    }
    for kind, sentence in sentences.items():
        if isinstance(error, kind):
            return sentence
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


if __name__ == "__main__":
    sys.exit(main())
