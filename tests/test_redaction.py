"""What is masked, what is not, and where a password in an address is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.host.redaction import mask_text, mask_value, mask_yaml, refuse_credentials
from pipeline.run.plan import make_plan
from pipeline.run.request import describe


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("see 'https://me:p/w@x@host/a' and ftp://t0ken@host", "see 'https://***@host/a' and ftp://***@host"),
        ("run_name=a password=pw1 api-key='p w'", "run_name=a password=*** api-key=***"),
        ("https://host/d?X-Amz-Signature=s1&AWSAccessKeyId=k2", "https://host/d?X-Amz-Signature=***"),
        ("https://host/d?sv=1&sig=s1", "https://host/d?sv=1&sig=***"),
        ("Authorization: Bearer t0ken", "Authorization: Bearer ***"),
        ("sent bearer abcdefghijkl.mnop", "sent bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz', 'Accept': '*/*'}", "{'Authorization': 'Basic ***', 'Accept': '*/*'}"),
        ('{"password": "hunter 2", "user": "me"}', '{"password": ***, "user": "me"}'),
        ("http://ann:se'cret@host and https://ann:a\"b@host", "http://***@host and https://***@host"),
        ("the bearer of news, authorization missing, design=3, sigma=2", None),
        ("http://host:5000/a@b, models:/digits@champion, sqlite:///a@b.db", None),
        ("('http://127.0.0.1:5000','a@b') http://a:5000,http://b:5000/x@y http://[::1]:5000/a@b", None),
        ('{"u":"http://h:5000","m":"me@x.com"} [\'http://a:5000\',\'http://b:5000/x@y\']', None),
        ("unexpected token: ) at line 3; qat.epochs=2", None),
    ],
)
def test_text_is_masked_where_it_holds_a_secret(text: str, masked: str | None) -> None:
    assert mask_text(text) == (masked or text)


def test_values_are_masked_by_their_key_however_deep() -> None:
    content = {"a": {"db_password": "pw", "api_keys": ["k"], "seed": 0, "TOKEN": None}, "url": ["http://a:b@c"]}
    masked = {"a": {"db_password": "***", "api_keys": "***", "seed": 0, "TOKEN": None}, "url": ["http://***@c"]}
    assert mask_value("", content) == masked
    assert yaml.safe_load(mask_yaml(yaml.safe_dump(content))) == masked


def test_no_setting_of_the_default_run_is_masked() -> None:
    request = compose_request(["tracking=server"])
    record = describe(request, make_plan(request.config))
    assert record.parameters == request.parameters
    assert record.config_yaml == request.yaml
    assert "***" not in str(record)


@pytest.mark.parametrize(
    "value", ["http://host/a?page=2", "postgresql://me@host/db", "sqlite:///outputs/mlflow.db", "http://127.0.0.1:5000"]
)
def test_address_without_password_is_allowed(value: str) -> None:
    refuse_credentials("tracking.uri", value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "http://me:hunter2@127.0.0.1:5000"),
        ("tracking.uri", "https://hunter2@host"),
        ("tracking.uri", "postgresql://me:hunter2@host/db"),
        ("dataset.mirror", "https://me:hunter2@host/mnist"),
        ("tracking.uri", '"http://me:hunter2\'@127.0.0.1:5000"'),
        ("tracking.uri", "'http://me:\"hunter2@127.0.0.1:5000'"),
        ("tracking.run_name", "https://me:hunter2@host/"),
    ],
)
def test_setting_is_refused_without_repeating_the_password_when_it_is_in_an_address(key: str, value: str) -> None:
    with pytest.raises(UserError) as refusal:
        compose_request([f"{key}={value}"])
    line = str(refusal.value)
    assert "hunter2" not in line
    assert line.startswith(f"{key}=")
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line


@pytest.mark.parametrize("query", ["X-Amz-Signature=hunter2&Expires=9", "a=b&token=hunter2", "sv=1&sig=hunter2"])
def test_setting_is_refused_without_repeating_the_secret_when_it_is_in_the_query_of_an_address(query: str) -> None:
    with pytest.raises(UserError) as refusal:
        compose_request([f"dataset.mirror='https://host/mnist?{query}'"])
    assert "hunter2" not in str(refusal.value)
    assert "a token or signature in an address would be kept" in str(refusal.value)


def test_nothing_is_written_when_the_environment_names_a_server_with_a_password(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "pipeline", "tracking=server", f"outputs={outputs}"]
    environment = {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": "http://me:hunter2@127.0.0.1:5000"}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert not outputs.exists()
