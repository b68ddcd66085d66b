"""`nexhealth doctor` behind a company's proxy that opens TLS, with certificates that nobody else knows."""

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cli.conftest import REAL_KEY, Run, findings

pytestmark = pytest.mark.usefixtures("hurried")


class _Page(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(418)

    def log_message(self, *args: object) -> None:
        pass


def _certificate(file: Path) -> Path:
    """One for 127.0.0.1, signed by itself, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    bare = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + bare)
    return file


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a server that speaks TLS, and its certificate."""
    file = _certificate(tmp_path / "company.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    server.daemon_threads = True
    # Not while it listens: a handshake that fails would be printed, and hold up the next.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", file
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_certificate_that_is_not_trusted_is_told_with_the_variable_that_names_it(
    nexhealth: Run, database_url: str, opening: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said that nothing answers, and whoever read that asked for a hole in the firewall that was there."""
    url, certificate = opening
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    settings = {"NEXHEALTH_API_URL": url, "NEXHEALTH_API_KEY": REAL_KEY, "DATABASE_URL": database_url}
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 3
    said = findings(ended)["reach"]["message"]
    assert said.startswith(f"{url} cannot be asked: ")
    assert "TLS" in said
    assert "certificates of your company's proxy in REQUESTS_CA_BUNDLE" in said
    trusting = nexhealth("doctor", "--json", **settings, REQUESTS_CA_BUNDLE=str(certificate))
    assert "answers, but not as NexHealth does" in findings(trusting)["reach"]["message"]
