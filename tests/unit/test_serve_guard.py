"""Keys, tokens, and who counts as sitting at this machine."""

import pytest

from mortice.serve.errors import HttpError
from mortice.serve.guard import check_admin, check_key
from mortice.serve.link import Link
from mortice.serve.options import ServeOptions, read_api_keys
from mortice.specs.errors import RequestError


def link(client: str = "127.0.0.1", **headers: str) -> Link:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Link({"client": (client, 1), "headers": pairs}, None, None, "r")


@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_local(client):
    check_admin(link(client, host="localhost:8000"), ServeOptions())
    assert link(client).header(b"host") is None


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("10.0.0.1", {}),
        ("testclient", {}),
        ("127.0.0.1", {"x_forwarded_for": "1.2.3.4"}),
        ("127.0.0.1", {"origin": "https://example.com"}),
        ("127.0.0.1", {"origin": "null"}),
        ("127.0.0.1", {"host": "example.com:8000"}),
    ],
)
def test_others_are_not(client, headers):
    with pytest.raises(HttpError) as error:
        check_admin(link(client, **headers), ServeOptions())
    assert error.value.status == 403


def test_a_token_is_asked_of_everybody():
    options = ServeOptions(admin_token="t")
    check_admin(link("10.0.0.1", authorization="Bearer t"), options)
    with pytest.raises(HttpError) as error:
        check_admin(link(), options)
    assert error.value.status == 401


@pytest.mark.parametrize("value", ["Bearer wrong", "Basic one", "one", "Bearer", "Bearer \xff"])
def test_wrong_keys(value):
    with pytest.raises(HttpError):
        check_key(link(authorization=value), ServeOptions(api_keys=("one",)))


def test_right_keys():
    options = ServeOptions(api_keys=("one", "two"))
    for given in (link(authorization="Bearer two"), link(authorization="bearer one"), link(x_api_key="one")):
        check_key(given, options)
        assert given.status == 0


def test_keys_are_read_from_file_and_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\ntwo\n")
    monkeypatch.setenv("MORTICE_API_KEYS", "three, one")
    assert read_api_keys(str(path)) == ("one", "two", "three")
    with pytest.raises(RequestError):
        read_api_keys(str(tmp_path / "none"))
