"""Which SuperNode may be which client: public keys by the clients' numbers.

A SuperNode proves to the SuperLink that it has the private half of its key (``--auth-supernode-private-key``), and the
SuperLink tells the ServerApp the public half. Without a key of its own a SuperNode makes a new one at every start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedsim.core.errors import InputError


def read_keys(folder: Path, clients: int) -> dict[int, bytes]:
    """The keys in ``client-0.pub``, ``client-1.pub``, ... of `folder`, as ``ssh-keygen`` writes them, as PEM.

    Raises
    ------
    InputError
        A client's file is not there or holds no such key, or two clients have the same one.
    """
    keys: dict[int, bytes] = {}
    for client in range(clients):
        file = folder / f"client-{client}.pub"
        keys[client] = _key(file)
        same = next((other for other in range(client) if keys[other] == keys[client]), None)
        if same is not None:
            raise InputError(f"run config: found the key of client {same} in {file}, too", key="client-keys")
    return keys


def fingerprint(key: bytes | None) -> str | None:
    """A short name of a key; None for none."""
    return hashlib.sha256(key).hexdigest()[:16] if key else None


def _key(file: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

    try:
        found = load_ssh_public_key(file.read_bytes())
    except OSError as error:
        raise InputError(f"run config: {file} cannot be read ({error.strerror})", key="client-keys") from None
    except Exception:  # of many kinds for what is no key
        found = None
    if not isinstance(found, EllipticCurvePublicKey):
        raise InputError(
            f"run config: found no NIST EC key in {file}, allowed: what ssh-keygen -t ecdsa writes", key="client-keys"
        )
    return found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
