"""The token by which the processes of a cluster know each other. Imports no Ray: its settings must be there before."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def token_environment(home: Path) -> dict[str, str]:
    """Variables by which only holders of a token may talk to a cluster; it lies under `home`, for its owner's eyes.

    Ray asks for a token by default, but would write it where everybody on the machine may read it. One that the
    user set stays. RAY_AUTH_MODE is left alone: set after Ray was imported, the two sides of the connection disagree.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return {}
    path = home.absolute() / "ray-token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        whole = path.with_name(f".ray-token-{secrets.token_hex(4)}")
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another run of this store was first: its token holds
            path.hardlink_to(whole)
        whole.unlink()
    return {"RAY_AUTH_TOKEN_PATH": str(path)}
