"""The deployment files: every key is one that Ray Serve and the application know."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    ServeApplicationSchema,
    ServeDeploySchema,
)

import serve.app
from aqe.config.serve import ServeConfig
from aqe.nodes import LABEL
from cluster.local import serve as local

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "serve").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(path.read_text())
    return made


def check(config: dict[str, Any]) -> None:
    """Stricter than Ray, which passes over deployment keys that it does not know (`max_ongoing_request`)."""
    ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(config["logging_config"]) <= set(LoggingConfig.model_fields)
    for app in config["applications"]:
        assert set(app) <= set(ServeApplicationSchema.model_fields)
        ServeConfig.model_validate(app["args"])
        module, _, name = app["import_path"].partition(":")
        assert module == "serve.app" and callable(getattr(serve.app, name))
        for one in app["deployments"]:
            assert set(one) <= set(DeploymentSchema.model_fields)
            assert getattr(serve.app, one["name"]).name == one["name"]
            if scaling := one.get("autoscaling_config"):
                assert set(scaling) <= set(AutoscalingConfig.model_fields)
                AutoscalingConfig(**scaling)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_deployment_files(path: Path) -> None:
    check(read(path))


def test_replicas_ask_for_labels_where_nodes_have_them() -> None:
    asked = {
        path.name: [
            one["ray_actor_options"].get("label_selector") for one in read(path)["applications"][0]["deployments"]
        ]
        for path in FILES
    }
    assert asked == {"config.yaml": [{LABEL: "gpu"}], "smoke.yaml": [None, None]}


def test_typing_errors_are_found() -> None:
    config = read(ROOT / "serve" / "config.yaml")
    config["applications"][0]["deployments"][0]["max_ongoing_request"] = 5
    with pytest.raises(AssertionError):
        check(config)
    with pytest.raises(ValidationError, match="modle"):
        ServeConfig.model_validate({"modle": "x"})
    with pytest.raises(ValidationError, match="not a regular expression"):
        ServeConfig.model_validate({"skip": {"pattern": "("}})


def test_proxy_variables_are_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.serve._private.constants as known

    env = local.proxy_env()
    source = Path(known.__file__).read_text()
    assert len(env) >= 5 and all(key in source for key in env)


def test_serve_finds_what_a_run_has_made(tmp_path: Path) -> None:
    for name in ("build_impacts-1", "corpus-2", "queries-3", "align_rsft_dpo-4", "judge_queries-5", "judge_queries-6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text('{"config": {"language": "de"}}')
    (tmp_path / "queries-3" / "test.parquet").touch()
    for name in ("judge_queries-5", "judge_queries-6"):
        (tmp_path / name / "qrels.parquet").touch()
    model = tmp_path / "align_rsft_dpo-4" / "model"
    model.mkdir()
    config = local.deployment(str(model))
    check(config)
    args = ServeConfig.model_validate(config["applications"][0]["args"])
    assert args.model == str(model) and args.search is not None
    assert args.search.impacts == tmp_path / "build_impacts-1" and args.search.index.language == "de"
    assert len(args.search.qrels) == 2 and args.search.queries == tmp_path / "queries-3" / "test.parquet"
    # Without an index there is nothing to search.
    alone = local.deployment(None)
    assert [d["name"] for d in alone["applications"][0]["deployments"]] == ["Expander"]
