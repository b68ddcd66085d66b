"""Where NexHealth may be told to post events to."""

import re
from urllib.parse import SplitResult, urlsplit

from nexhealth_pipeline.client.loopback import is_loopback
from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["WEBHOOK_PATH", "needs_proxy", "usable_url"]

WEBHOOK_PATH = "/api/nexhealth-webhook"
"""Where the receiver listens."""
_CHARACTERS = re.compile(r"[\x21-\x7e]+")
_EXAMPLE = f"write for example https://hooks.example.com{WEBHOOK_PATH}"


def usable_url(text: str) -> str:
    """`text` as it is registered: scheme and host in small letters, and a path.

    Raises InvalidSetting, never quoting a password, for what is no address, not HTTPS (HTTP is for this machine
    alone), or says more than where to post to.
    """
    parts, port = _parts(text)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None:
        raise InvalidSetting(
            "the URL holds a user name or password, which NexHealth would show to anybody with the API key: leave it "
            "out, the signature proves who posts"
        )
    if parts.fragment or text.endswith("#"):
        raise InvalidSetting(f"{text!r}: leave out what follows the #, it is never sent")
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidSetting(f"{text!r}: events hold patient data and are posted by HTTPS only; write https://")
    shown = f"[{host}]" if ":" in host else host
    address = shown if port is None else f"{shown}:{port}"
    # A slash behind it is a slip of the hand, and to the receiver another path; of others the proxy knows.
    path = WEBHOOK_PATH if parts.path.rstrip("/") in {"", WEBHOOK_PATH} else parts.path
    return parts._replace(netloc=address, path=path).geturl()


def needs_proxy(url: str) -> bool:
    """Whether what is posted to `url` reaches the receiver only where a proxy gives it another path."""
    return urlsplit(url).path != WEBHOOK_PATH


def _parts(text: str) -> tuple[SplitResult, int | None]:
    """The parts of an address and its port."""
    if not _CHARACTERS.fullmatch(text):
        raise InvalidSetting(f"the URL is empty, or holds a blank or another character no address has: {_EXAMPLE}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidSetting(f"the URL cannot be read as an address: {_EXAMPLE}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "\\" in text:
        shown = "the URL" if "@" in text else repr(text)
        raise InvalidSetting(f"{shown} is no address that events can be posted to: {_EXAMPLE}")
    return parts, port
