"""Whether a Ray cluster wants a token that this process does not send; Ray itself tries for twenty seconds and more.

A cluster asks for a token where ``RAY_AUTH_MODE=token`` was set when it started, and also where it was not set but
``~/.ray/auth_token`` was there, which every Ray that a program starts for itself leaves behind. A program that joins
sends the token only with ``RAY_AUTH_MODE=token``, and must not send it to a cluster that does not ask.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.core.errors import InputError

_SECONDS = 10.0
_ASK = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def check_token(address: str) -> None:
    """Raise InputError where the cluster at `address` (HOST:PORT, or ``auto``) refuses this process for its token."""
    place = _found() if address == "auto" else address
    if place is None or ":" not in place:
        return
    sends = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if not _refuses(place, _token() if sends else None):
        return
    if sends:
        raise InputError(
            f"found {address}, a Ray cluster with another token than this process sends; allowed: the token of its "
            "head, in RAY_AUTH_TOKEN or in ~/.ray/auth_token",
            key="address",
        )
    raise InputError(
        f"found {address}, a Ray cluster that asks for a token, which this process does not send; allowed: after "
        "export RAY_AUTH_MODE=token, with the token of its head in ~/.ray/auth_token (or start the head with "
        "RAY_AUTH_MODE=disabled)",
        key="address",
    )


def _refuses(place: str, token: str | None) -> bool:
    """Whether the cluster answers that the caller has no right to ask; any other answer, and none, is not that."""
    try:
        import grpc
    except ImportError:  # Ray's own attempt will tell
        return False
    headers = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(place, options=options) as channel:
        ask = channel.unary_unary(_ASK, request_serializer=None, response_deserializer=None)
        try:
            ask(b"", timeout=_SECONDS, metadata=headers)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _token() -> str | None:
    """The token where Ray looks for it."""
    given = os.environ.get("RAY_AUTH_TOKEN")
    if given:
        return given.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _found() -> str | None:
    """The cluster that ``auto`` means; None where Ray has to find out."""
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    try:
        from ray._private.utils import read_ray_address

        return str(read_ray_address() or "") or None
    except Exception:  # Ray's own business, under other names in other versions
        return None
