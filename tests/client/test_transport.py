"""One exchange: bounded in time and size, no redirect, no login but ours."""

import gzip
import json
import os
import socket
import threading
import time
from contextlib import suppress
from importlib.util import find_spec

import pytest

from nexhealth_pipeline.client.deadline import Deadline
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.client.transport import _session
from nexhealth_pipeline.errors import (
    Cancelled,
    InvalidSetting,
    ServerFailed,
    Unreachable,
)
from tests.client.stub import Reply, Stub, envelope, refusal, running

ONE = ApiRequest("/patients/7", (), "demo")
GOOD = envelope([{"id": 1}])


def ids(pages):
    return [json.loads(record)["id"] for page in pages for record in page.records]


def test_an_unreachable_host_is_named_as_such(make_client):
    client = make_client(api_url="http://127.0.0.1:9", retry={"attempts": 2})
    with pytest.raises(Unreachable, match="NEXHEALTH_API_URL"):
        client.get(ONE)


def test_who_hangs_up_in_the_handshake_is_asked_as_often_as_who_cannot_be_reached(make_client):
    """A load balancer that restarts accepts and closes; three tries within a second would fail every slice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging_up = threading.Thread(target=_hang_up, args=(listener,), daemon=True)
        hanging_up.start()
        client = make_client(api_url=f"https://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"no connection.*7 attempts"):
            client.get(ONE)
        listener.shutdown(socket.SHUT_RDWR)
        hanging_up.join(5)


def _hang_up(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)


def test_a_server_without_tls_is_named_as_such(make_client, stub):
    client = make_client(api_url=stub.url.replace("http:", "https:"))
    with pytest.raises(Unreachable, match=r"TLS.*3 attempts"):
        client.get(ONE)


def test_silence_ends_as_no_answer_in_time(make_client, stub):
    stub.answer = lambda seen: time.sleep(0.15) or GOOD
    with pytest.raises(Unreachable, match="no answer in time"):
        make_client(timeout_seconds=0.05, retry={"attempts": 1}).get(ONE)


def test_a_connection_that_was_idle_for_long_is_not_used_again(make_client, stub, naps):
    """A firewall may have forgotten it: the next request would wait a minute in silence, and an apply run has no second try."""
    naps.stop_clock()
    threads = []  # of the stub, one a connection
    stub.answer = lambda seen: threads.append(threading.current_thread().name) or GOOD
    client = make_client()
    for seconds in (0, 49, 49, 50):
        naps.sleep(seconds)
        client.get(ONE)
    assert len(set(threads)) == 2
    assert threads[0] == threads[2] != threads[3]
    _until(lambda: not any(thread.name == threads[0] for thread in threading.enumerate()))


def _until(true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, "the idle connection stays open"
        time.sleep(0.01)


def test_nothing_is_asked_once_the_client_is_closed(client, stub):
    """A fetch ahead that was given up, because its answer did not come, would go on with the next try beside other runs."""
    stub.answer = lambda seen: client.close() or refusal(503)
    with pytest.raises(Cancelled):
        client.get(ONE)
    assert len(stub.data_requests) == 1


def test_an_answer_that_drips_is_given_up_as_a_whole(make_client, stub):
    """A byte now and then resets every read timeout."""
    stub.script(Reply(200, headers={"Content-Length": "1000"}, chunks=[b"x"] * 10, pause=0.02))
    with pytest.raises(Unreachable, match="too long"):
        make_client(answer_seconds=0.05).get(ONE)


def test_a_decompression_bomb_is_refused_without_being_unpacked(make_client, stub):
    bomb = gzip.compress(b" " * 20_000_000)
    stub.script(Reply(200, bomb, {"Content-Encoding": "gzip"}))
    with pytest.raises(ServerFailed, match="larger than"):
        make_client(body_limit=100_000).get(ONE)


def test_gzip_is_understood(client, stub):
    stub.script(Reply(200, gzip.compress(GOOD.body), {"Content-Encoding": "gzip"}))
    page = client.get(ONE)
    assert ids([page]) == [1]


def test_a_login_in_netrc_does_not_replace_the_token(client, stub, tmp_path, monkeypatch):
    """requests takes Basic credentials for the host from ~/.netrc where no auth is given."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client.get(ONE)
    assert stub.data_requests[0].headers["Authorization"].startswith("Bearer ")


def test_a_redirect_never_carries_the_token_elsewhere(client, stub):
    with running(Stub()) as other:
        stub.script(refusal(302, Location=f"{other.url}/steal"))
        with pytest.raises(ServerFailed, match="redirect"):
            client.get(ONE)
        assert other.seen == []


def test_a_proxy_of_the_environment_is_used(make_client, stub, monkeypatch):
    monkeypatch.setenv("http_proxy", stub.url)
    make_client(api_url="http://nexhealth.invalid").get(ONE)
    assert stub.data_requests[0].path


@pytest.mark.parametrize("exempt", ["nexhealth.invalid", "*"])
def test_no_proxy_is_used_for_an_exempt_host(monkeypatch, exempt):
    root = "http://nexhealth.invalid"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert _session(Deadline(time.monotonic), root).proxies
    monkeypatch.setenv("no_proxy", exempt)
    assert not _session(Deadline(time.monotonic), root).proxies


@pytest.mark.parametrize("root", ["http://localhost:8090", "http://[::1]:8090", "http://127.0.0.2"])
def test_no_proxy_is_used_for_this_machine(client, stub, monkeypatch, root):
    """Risk: a company's proxy was asked for its own 127.0.0.1, and the demo failed with the proxy's error."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client.get(ONE)
    assert stub.data_requests
    assert not _session(Deadline(time.monotonic), root).proxies


@pytest.mark.parametrize("root", ["https://nexhealth.invalid", "http://127.0.0.1:8090"])
def test_without_a_variable_the_system_is_not_asked_for_a_proxy(monkeypatch, root):
    """On macOS that ends a process that was forked, and a sync's are: by the first request it sends."""

    def ask(*_):
        raise AssertionError("the system was asked")

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("requests.utils.proxy_bypass", ask)
    monkeypatch.setattr("requests.utils.getproxies", ask)
    session = _session(Deadline(time.monotonic), root)
    assert (session.proxies, session.trust_env) == ({}, False)


@pytest.mark.parametrize(("exempt", "proxied"), [("10.0.0.0/8", False), ("10.0.0.7", False), ("10.1.0.0/16", True)])
def test_addresses_and_networks_can_be_exempt_from_a_proxy(monkeypatch, exempt, proxied):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", exempt)
    assert bool(_session(Deadline(time.monotonic), "http://10.0.0.7").proxies) is proxied


def test_the_environment_is_looked_at_once(client, stub, monkeypatch):
    """`requests` would go through every variable with each request: a fifth of what a small answer costs."""
    client.get(ONE)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client.get(ONE)
    assert len(stub.data_requests) == 2


def test_certificates_of_the_environment_are_used(tmp_path, monkeypatch):
    """Behind a firewall that opens TLS the company's own are the only ones that work."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert _session(Deadline(time.monotonic), "https://nexhealth.invalid").verify == str(tmp_path)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    assert _session(Deadline(time.monotonic), "https://nexhealth.invalid").verify is True


@pytest.mark.parametrize("found", [None, "no certificate\n"], ids=["not there", "something else"])
@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_cannot_be_used_are_named_before_anything_is_sent(
    make_client, naps, budget, tmp_path, monkeypatch, name, found
):
    """Each request would fail like one without a network, and the address be blamed for it."""
    path = tmp_path / "company.pem"
    if found is not None:
        path.write_text(found)
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(path))
    with pytest.raises(InvalidSetting, match=f"{name}: {path} is no file of certificates"):
        make_client(api_url="https://nexhealth.invalid").get(ONE)
    assert (naps.slept, len(budget.grants)) == ([], 1)


def test_certificates_are_no_matter_where_there_is_no_tls(client, stub, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/company.pem")
    client.get(ONE)
    assert stub.data_requests


@pytest.mark.parametrize(
    "proxy",
    [
        *("http://", "http://user:pa#ss@proxy.local:3128", "http://user:pass@proxy:port"),
        pytest.param(
            "socks5://u:pass@127.0.0.1:1", marks=pytest.mark.skipif(bool(find_spec("socks")), reason="PySocks")
        ),
    ],
)
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("HTTPS_PROXY", "https://nexhealth.invalid"),
        ("HTTP_PROXY", "http://nexhealth.invalid"),
        ("ALL_PROXY", "https://nexhealth.invalid"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(make_client, monkeypatch, proxy, name, url):
    for other in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.lower(), raising=False)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(InvalidSetting, match=f"^{name} is no usable address of a proxy") as caught:
        make_client(api_url=url).get(ONE)
    assert "pa#ss" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[broken", "http://host:99999999", "nonsense"])
def test_an_address_that_cannot_be_read_is_named_as_such(make_client, url, monkeypatch):
    monkeypatch.setenv("no_proxy", "elsewhere")
    monkeypatch.setenv("all_proxy", "http://proxy:port")
    with pytest.raises(InvalidSetting, match="NEXHEALTH_API_URL"):
        make_client(api_url=url).get(ONE)
