"""What is masked, what is not, and where a password in an address is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.redaction import mask_text, refuse_credentials
from tests import forked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("see 'https://me:p/w@x@host/a' and ftp://t0ken@host", "see 'https://***@host/a' and ftp://***@host"),
        ("run_name=a password=pw1 api-key='p w'", "run_name=a password=*** api-key=***"),
        ("https://host/d?X-Amz-Signature=s1&AWSAccessKeyId=k2", "https://host/d?X-Amz-Signature=***"),
        ("https://host/d?sv=1&sig=s1", "https://host/d?sv=1&sig=***"),
        ("dataset.kwargs.token=t1: is refused", "dataset.kwargs.token=***: is refused"),
        ("design=3, sigma=2", None),
        ("http://host:5000/a@b, models:/digits@champion, sqlite:///a@b.db", None),
        ("('http://127.0.0.1:5000','a@b') http://a:5000,http://b:5000/x@y", None),
        ('{"u":"http://h:5000","m":"me@x.com"} [\'http://a:5000\',\'http://b:5000/x@y\']', None),
        ("unexpected token: ) at line 3; qat.epochs=2", None),
    ],
)
def test_text_is_masked_where_it_holds_a_secret(text: str, masked: str | None) -> None:
    assert mask_text(text) == (masked or text)


@pytest.mark.parametrize(
    "value", ["http://host/a?page=2", "postgresql://me@host/db", "sqlite:///outputs/mlflow.db", "http://127.0.0.1:5000"]
)
def test_address_without_password_is_allowed(value: str) -> None:
    refuse_credentials("tracking.uri", value)


@pytest.mark.parametrize("key", ["token", "hf_token", "storage.password", "auth.api_key"])
def test_argument_of_ones_own_data_set_is_refused_when_it_is_a_secret(key: str) -> None:
    with pytest.raises(UserError) as refusal:
        compose_request(["dataset.target=mine.data:make", f"dataset.kwargs.{key}=hunter2"])
    assert "hunter2" not in str(refusal.value)
    assert str(refusal.value).startswith(f"dataset.kwargs.{key}=***: ")


@pytest.mark.parametrize(
    "override", ["dataset.kwargs.token=true", "dataset.kwargs.tokenizer=words", "model.kwargs.token=class"]
)
def test_argument_of_ones_own_is_allowed_when_it_only_sounds_like_a_secret(override: str) -> None:
    compose_request(["dataset.target=mine.data:make", "model.target=mine.nets:Net", override])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", "http://me:hunter2@127.0.0.1:5000"),
        ("tracking.uri", "https://hunter2@host"),
        ("tracking.uri", "postgresql://me:hunter2@host/db"),
        ("dataset.mirror", "https://me:hunter2@host/mnist"),
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
    done = forked.run(command, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert not outputs.exists()
