"""What deploy/ has for machines: the script makes what TLS and keys need, and every command line is one of Flower's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.deployment.keys import read_keys
from fedsim.deployment.node_config import NodeConfig

pytest.importorskip("flwr")
DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CLIENTS = 3
NAMES = [f"client-{c}" for c in range(CLIENTS)]


def keys(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(DEPLOY / "keys.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_the_script_makes_certificates_and_keys(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    done = keys("keys", "superlink.example.org,10.0.0.5", *NAMES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "keys"
    made = {"ca.key", "ca.pem", "ca.srl", "server.key", "server.pem", *NAMES, *(f"{n}.pub" for n in NAMES)}
    assert {f.name for f in folder.iterdir()} == made
    assert {f.stat().st_mode & 0o077 for f in (folder, *folder.iterdir())} == {0}
    ca, server = (x509.load_pem_x509_certificate((folder / f"{n}.pem").read_bytes()) for n in ("ca", "server"))
    server.verify_directly_issued_by(ca)
    found = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["localhost", "superlink.example.org"]
    assert [str(a) for a in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.5"]
    assert len(read_keys(folder, CLIENTS)) == CLIENTS
    for name in NAMES:
        load_ssh_private_key((folder / name).read_bytes(), None)
    assert [f.name for f in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["keys", "host"], "found 2 arguments"),
        (["there", "host", "client-0"], "found there, which is there already; allowed: a new folder"),
        (["keys", "a,b c", "client-0"], "found the host 'b c'"),
        (["keys", "a,$(id)", "client-0"], "found the host '$(id)'"),
        (["keys", "host", "../client-0"], "found the name '../client-0'"),
        (["keys", "host", "server"], "found the name 'server'"),
        (["no/such/keys", "host", "client-0"], "no/such"),
    ],
)
def test_the_script_refuses_before_it_writes(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = keys(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list((tmp_path / "there").iterdir())
    assert [f.name for f in tmp_path.iterdir()] == ["there"]


def _of_compose() -> Iterator[tuple[str, list[str]]]:
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        yield f"compose {name}", service["command"]


def _of_units() -> Iterator[tuple[str, list[str]]]:
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=/opt/fedsim/bin/(.*)$", unit.read_text(), re.MULTILINE)
        of_the_head = dict(re.findall(r"^#   (\w+)=(.*)$", unit.read_text(), re.MULTILINE))
        words = [w.replace("%i", "0") for w in shlex.split(line)]
        yield (
            unit.name,
            [shlex.split(of_the_head[w[2:-1]])[0] if w.startswith("${") and w.endswith("}") else w for w in words],
        )


def _documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def _of_kubernetes() -> Iterator[tuple[str, list[str]]]:
    for document in _documents():
        if document["kind"] == "StatefulSet":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            yield f"kubernetes {container['name']}", [a.replace("$(CLIENT)", "0") for a in container["args"]]


COMMANDS = {name: words for name, words in [*_of_compose(), *_of_units(), *_of_kubernetes()] if words[0] != "flwr"}


def test_there_is_a_command_of_everything() -> None:
    assert sum(words[0] == "flower-superlink" for words in COMMANDS.values()) == 3
    assert sum(words[0] == "flower-supernode" for words in COMMANDS.values()) == 2 + CLIENTS


@pytest.mark.parametrize("name", COMMANDS)
def test_flower_takes_the_command_lines(name: str) -> None:
    from flwr.common.config import parse_config_args
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    program, *words = COMMANDS[name]
    if program == "flower-superlink":
        told = _parse_args_run_superlink().parse_args(words)
        assert told.enable_supernode_auth
        assert told.host == "0.0.0.0"
        assert not told.insecure
        assert all(Path(f).name in ("ca.pem", "server.pem", "server.key") for f in _files(told))
        return
    told = _parse_args_run_supernode().parse_args(words)
    node = NodeConfig.read(parse_config_args([told.node_config]))
    assert node.clients == CLIENTS
    assert told.auth_supernode_private_key.endswith(f"client-{node.client}")
    assert told.root_certificates.endswith("/ca.pem")
    assert not told.insecure
    assert node.state_dir != NodeConfig.state_dir


def _files(told: Any) -> list[str]:
    return [told.ssl_ca_certfile, told.ssl_certfile, told.ssl_keyfile]


def test_the_compose_file_mounts_what_commands_name() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named = {f"../keys/{n}" for n in ("ca.pem", "server.pem", "server.key", *NAMES, *(f"{n}.pub" for n in NAMES))}
    for name, service in document["services"].items():
        mounts = dict(reversed(volume.removesuffix(":ro").split(":")) for volume in service.get("volumes", []))
        files = re.findall(r"(/keys/[\w.-]+|/var/lib/fedsim|/my-app)\b", " ".join(map(str, service["command"])))
        assert {f for f in files if f not in mounts} == set(), name
        for source in mounts.values():
            assert source in named | {"../my-app", "./flwr-config.toml"} | set(document["volumes"]), source
        secrets = {s for s in mounts.values() if re.fullmatch(r"\.\./keys/(client-\d|.*\.key)", s)}
        assert secrets <= {f"../keys/{name}" if name in NAMES else "../keys/server.key"}, name
    assert tomllib.loads((DEPLOY / "flwr-config.toml").read_text())["superlink"]["fedsim"] == {
        "address": "superlink:8443",
        "root-certificates": "/keys/ca.pem",
    }


def test_the_manifest_has_all_that_it_refers_to() -> None:
    head = (DEPLOY / "kubernetes.yaml").read_text().split("apiVersion", 1)[0]
    made = set(re.findall(r"create (?:secret generic|configmap) (\w+)", head))
    pods = [d["spec"]["template"]["spec"] if d["kind"] == "StatefulSet" else d["spec"] for d in _documents()]
    pods = [pod for pod in pods if "containers" in pod]
    assert len(pods) == 3
    for document, pod in zip([d for d in _documents() if d["kind"] in ("StatefulSet", "Pod")], pods, strict=True):
        claimed = [claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])]
        volumes = {v["name"] for v in pod["volumes"]} | set(claimed)
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        for volume in pod["volumes"]:
            name = volume["secret"]["secretName"] if "secret" in volume else volume["configMap"]["name"]
            assert name in made
            made_of = volume.get("secret", {}).get("defaultMode", 0o440)
            assert made_of == 0o440


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    def complaints(folder: Path, change: tuple[str, str] = ("", "")) -> list[str]:
        folder.mkdir()
        for unit in UNITS:
            text = unit.read_text().replace("/opt/fedsim/bin/", f"{Path(sys.executable).parent}/")
            text = text.replace("User=fedsim\n", "User=root\n").replace(*change)
            (folder / unit.name.replace("@", "@0")).write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(folder.iterdir()))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return [line for line in (done.stdout + done.stderr).splitlines() if "fedsim-super" in line]

    assert not complaints(tmp_path / "units")
    assert len(complaints(tmp_path / "wrong", ("Restart=always", "Restart=sometimes"))) == len(UNITS)
