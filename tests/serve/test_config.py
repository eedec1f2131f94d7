"""The deployment files: every key is one that Ray Serve and the application know."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Deployment
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    ServeApplicationSchema,
    ServeDeploySchema,
)

import serve.app
from aqe.config.serve import SearchConfig, ServeConfig
from aqe.nodes import LABEL
from cluster.local import serve as local
from serve.service import _model_id

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "serve").glob("*.yaml"))
DEPLOYMENTS = {each.name for each in vars(serve.app).values() if isinstance(each, Deployment)}


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
            assert one["name"] in DEPLOYMENTS
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
    assert (args.search.index.k1, args.search.index.b) == (0.9, 0.4)  # No search says otherwise.
    assert len(args.search.qrels) == 2 and args.search.queries == tmp_path / "queries-3" / "test.parquet"
    # Without an index there is nothing to search.
    alone = local.deployment(None)
    assert [d["name"] for d in alone["applications"][0]["deployments"]] == ["Expander"]


def test_serve_searches_as_the_run_did(tmp_path: Path) -> None:
    def made(name: str, config: dict[str, Any], at: int, *parents: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"config": config, "parents": parents}))
        os.utime(tmp_path / name / "manifest.json", (at, at))

    def search() -> SearchConfig:
        args = local.search_args(tmp_path)
        assert args is not None
        return SearchConfig.model_validate(args)

    def settings() -> tuple[float, float, str]:
        return search().index.k1, search().index.b, search().index.language

    made("build_impacts-1", {"language": "de", "passages_per_shard": 5}, 1, "corpus-1")
    assert settings() == (0.9, 0.4, "de")
    made("rank_train-1", {"k1": 1.2, "b": 0.75}, 2)
    assert settings() == (1.2, 0.75, "de")
    made("search_rsft-1", {"k1": 1.5, "b": 0.2}, 4, "build_impacts-1")
    # The newest search, not what was ranked after it to train once more.
    made("rank_train-2", {"k1": 2.0, "b": 0.0}, 5)
    assert settings() == (1.5, 0.2, "de")
    # The report's own, whatever was tried after it.
    made("corpus-1", {}, 0)
    # The plain row has the BM25 that was configured, the model was aligned with the one that was chosen on dev.
    made("search_bm25-1", {"k1": 0.9, "b": 0.4}, 6, "build_impacts-1")
    made("search_bm25_rm3-1", {"k1": 0.8, "b": 0.4}, 6, "build_index_vectors-1")
    made("report-1", {}, 6, "search_bm25-1", "search_bm25_rm3-1", "search_rsft-1")
    (tmp_path / "report").symlink_to("report-1")
    made("corpus-2", {}, 7)
    made("build_impacts-2", {"language": "fr"}, 8, "corpus-2")
    made("search_rsft-2", {"k1": 0.1, "b": 0.1}, 9, "build_impacts-2")
    assert settings() == (1.5, 0.2, "de")
    assert (search().impacts, search().corpus) == (tmp_path / "build_impacts-1", tmp_path / "corpus-1")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/x/align_rsft_dpo-0123/model", "align_rsft_dpo-0123"),
        ("/models/mine/", "mine"),
        ("models/mine", "mine"),
        *((source, source) for source in ("owner/name", "gpt2")),
        ("package:smollm2-135m-instruct", "smollm2-135m-instruct"),
    ],
)
def test_a_model_is_named_by_its_directory_or_its_hub_id(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert _model_id(model) == name
