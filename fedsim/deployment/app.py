"""``fedsim deploy``: a Flower app made from a scenario, so thin that its components only name the scenario file.

What Flower packs into an app decides what is written: Python, TOML, Markdown and YAML files, no ``test_*.py``, 10 MB.
Modules of one's own that the scenario names are copied beside it; data stay where they are.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.core.about import DISTRIBUTION, install
from fedsim.core.errors import InputError
from fedsim.deployment.noise import check_trust
from fedsim.deployment.own_modules import PACKED, OwnFiles, own_files
from fedsim.deployment.proof import prove
from fedsim.deployment.run_config import RUN, RUN_KEYS
from fedsim.deployment.wheel import write_wheel
from fedsim.scenario.sections import Scenario

LOG = logging.getLogger("fedsim")
PACKAGE = "fedsim_deployment"

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{project}"
version = "1.0.0"
description = "The fedsim scenario '{name}' as a Flower app"
license = "Apache-2.0"
dependencies = ["{distribution}[flower]=={version}"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
{config}
"""

_COMPONENT = '''\
"""The {what} of this deployment: everything is in fedsim and in scenario.yaml."""

from pathlib import Path

from fedsim.deployment.{side} import make_{side}_app

app = make_{side}_app(Path(__file__).with_name("scenario.yaml"))
'''

_INIT = '''\
"""Made by `fedsim deploy` of {distribution} {version}."""

try:
    from fedsim.deployment.made import made_by
except ImportError as error:
    raise ImportError("the 'fedsim' here is another project or an old one: {install}") from error

made_by("{version}")
'''

_README = """\
# {name}: a Flower deployment

Made by `fedsim deploy` (fedsim {version}). Algorithm `{algorithm}`, {clients} clients, {rounds} rounds; all of the
scenario is in `{package}/scenario.yaml`. On the SuperLink's machine and on every client's, fedsim and flwr have to be
installed (`fedsim` on the public index is another project):

```sh
{installs}
```

## On this machine

One terminal for the SuperLink:

```sh
flower-superlink --insecure --disable-runtime-dependency-installation --host 127.0.0.1 --port 8000
```

one for each of the {clients} clients:

```sh
{supernodes}
```

Add to `~/.flwr/config.toml` where the SuperLink is

```toml
[superlink.deployment]
address = "127.0.0.1:8000"
insecure = true
```

and start the run:

```sh
flwr run {folder} deployment --stream
flwr list deployment
```

`flwr run --stream` ends with exit code 0 also for a run that failed: `flwr list deployment --run-id NUMBER` says
which it was, and why.

## In one process, with Flower's simulation runtime

```sh
flower-superlink --insecure --simulation --disable-runtime-dependency-installation --host 127.0.0.1 --port 8000
flwr run {folder} deployment --stream --federation-config 'num-supernodes={clients} client-resources-num-cpus=1'
```

## Results

The ServerApp writes the run directory `{out}`, where `{{run}}` is the number that `flwr run`
names (another place: `-c 'out="/absolute/path/{{run}}"'`, outside this folder, which goes to every client).

```sh
fedsim report {runs}
```

What was interrupted goes on with `-c 'resume=true out="/absolute/path/of/that/run"'`.

What may be set with `-c`, what a SuperNode's `--node-config` may say, faults, security and tuning: docs/deploy.md of
fedsim.
"""


def deploy(scenario: Scenario, folder: Path, wheel: bool = False) -> list[str]:
    """Write the app into `folder`, which must not exist or be empty; the names of the files.

    With `wheel` a wheel of this fedsim lies in ``wheels/`` beside it, for machines that have no index that has it.

    Raises
    ------
    InputError
        The folder is not empty or cannot be written to, Flower would leave a module out of the app, or the app lacks
        something that its modules need. Nothing is written then.
    """
    try:
        check_trust(scenario)
    except InputError as error:
        raise scenario.document.locate(error) from None
    clients = _clients(scenario)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"DIR: found {folder}, which is there already; allowed: a new or empty folder")
    own = own_files(scenario)
    with tempfile.TemporaryDirectory(prefix="fedsim-deploy-") as stage:
        made = Path(stage) / "app"
        try:
            _write(scenario, made, folder.resolve(), clients, own, wheel)
            loose = prove(made, PACKAGE, own.homes) if own.files else []
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made, folder, dirs_exist_ok=True)
        except OSError as error:
            raise InputError(f"DIR: the app cannot be written to {folder}: {error}") from None
    if loose:
        LOG.warning("%s: found on this machine's PYTHONPATH, so every machine needs them", ", ".join(loose))
    for file in own.left:
        LOG.warning("%s, which a module names, does not travel: Flower packs %s alone", file, " ".join(PACKED))
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _write(scenario: Scenario, folder: Path, place: Path, clients: int, own: OwnFiles, wheel: bool) -> None:
    """Write the app into `folder`, from where it goes to `place`."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    text = {
        "name": scenario.name,
        "version": __version__,
        "package": PACKAGE,
        "folder": shlex.quote(str(place)),
        "distribution": DISTRIBUTION,
    }
    (package / "__init__.py").write_text(_INIT.format(**text, install=install("flower")), encoding="utf-8")
    for side, what in (("server", "ServerApp"), ("client", "ClientApp")):
        component = _COMPONENT.format(side=side, what=what)
        (package / f"{side}_app.py").write_text(component, encoding="utf-8")
    (package / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
    for name, file in own.files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, package / name)
    out = place.with_name(f"{place.name}-runs") / RUN
    config = "\n".join(f"{key} = {_toml(v)}" for key, v in {**RUN_KEYS, "out": str(out)}.items())
    project = "fedsim-" + re.sub(r"[^a-z0-9]+", "-", scenario.name.lower()).strip("-")
    pyproject = _PYPROJECT.format(**text, project=project, config=config)
    (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    readme = _README.format(
        **text, algorithm=scenario.names["algorithm"], clients=clients, rounds=scenario.run.rounds,
        supernodes="\n".join(_supernode(i, clients) for i in range(min(clients, 3))) + ("\n..." * (clients > 3)),
        out=out, runs=shlex.quote(str(out.parent)), installs=_from_wheel(folder) if wheel else install("flower"),
    )  # fmt: skip
    (folder / "README.md").write_text(readme, encoding="utf-8")


def _from_wheel(folder: Path) -> str:
    """The command that installs the wheel, which is written."""
    file = write_wheel(folder / "wheels")
    return f"# {file.name} is in wheels/ of this folder: copy it to every machine\npip install './{file.name}[flower]'"


def _supernode(client: int, clients: int) -> str:
    return (
        f"flower-supernode --insecure --superlink 127.0.0.1:8000 --port {9094 + client} "
        f"--node-config 'partition-id={client} num-partitions={clients}'"
    )


def _clients(scenario: Scenario) -> int:
    """How many clients the scenario has."""
    from fedsim.engine.assembly import assemble

    return assemble(scenario).task.num_clients


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's texts are JSON's, but for this one
