"""The cluster file to start from is one that Ray takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[3] / "docs" / "cluster.yaml"


@pytest.mark.ray
def test_ray_accepts_the_cluster_file() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    util.validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="head_start_comands"):
        util.validate_config({**config, "head_start_comands": []})
