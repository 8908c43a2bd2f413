"""A cluster that asks for a token is told apart from one that is not there, at once, with the line that helps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from ports import free_port

from fedsim.core.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")]
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A plain ``ray start --head`` where an earlier Ray has left its token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    port, log = free_port(), home / "log"
    ray = str(Path(sys.executable).parent / "ray")
    keys = [
        "--node-ip-address=127.0.0.1",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--object-store-memory=100000000",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"HOME": str(home), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as out:
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", f"--port={port}", *keys], env=environment, stdout=out, stderr=out
        )
    try:
        end = time.monotonic() + 180
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert head.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            head.kill()


def test_a_token_that_is_not_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.backends.ray.token import check_token

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"asks for a token, which this process does not send; allowed: after export"):
        check_token(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN[::-1])
    with pytest.raises(InputError, match="a Ray cluster with another token than this process sends"):
        check_token(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    check_token(address)


def test_what_is_no_cluster_is_left_to_ray() -> None:
    from fedsim.backends.ray.token import check_token

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        check_token(f"127.0.0.1:{one.getsockname()[1]}")
