"""Which addresses events may be posted to."""

import pytest

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.webhooks.target import needs_proxy, usable_url

PATH = "/api/nexhealth-webhook"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://hooks.example.com", f"https://hooks.example.com{PATH}"),
        ("https://hooks.example.com/", f"https://hooks.example.com{PATH}"),
        (f"https://hooks.example.com{PATH}/", f"https://hooks.example.com{PATH}"),
        (f"https://hooks.example.com{PATH}/?2", f"https://hooks.example.com{PATH}?2"),
        ("https://hooks.example.com/of-the-proxy/", "https://hooks.example.com/of-the-proxy/"),
        ("HTTPS://Hooks.Example.com:8443/My/Hook?a=B", "https://hooks.example.com:8443/My/Hook?a=B"),
        ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
        ("http://127.0.0.1:8090", f"http://127.0.0.1:8090{PATH}"),
        ("http://127.8.9.1/x", "http://127.8.9.1/x"),
        ("http://[::1]:8090/x", "http://[::1]:8090/x"),
        ("http://LOCALHOST:8090/x", "http://localhost:8090/x"),
    ],
)
def test_a_usable_address_is_written_in_one_way(given: str, used: str) -> None:
    """What differs in writing only must not become a second endpoint."""
    assert usable_url(given) == used
    assert usable_url(used) == used


def test_a_path_that_the_receiver_does_not_know_needs_a_proxy() -> None:
    """A query it never looks at."""
    assert [needs_proxy(f"https://hooks.example.com{path}") for path in (PATH, f"{PATH}?2", "/x", f"/x{PATH}")] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://hooks.example.com/x", "https://"),
        ("http://127.0.0.1.example.com/x", "https://"),
        ("http://localhost.example.com/x", "https://"),
        ("http://10.0.0.5/x", "https://"),
        ("http://127.1/x", "https://"),
        ("http://0.0.0.0/x", "https://"),
        ("ftp://hooks.example.com/x", "no address"),
        ("hooks.example.com/x", "no address"),
        ("https:///x", "no address"),
        ("https://hooks.example.com\\@127.0.0.1/x", "no address"),
        ("https://hooks.example.com/x#part", "#"),
        ("https://hooks.example.com/x#", "#"),
        ("https://hooks.example.com:99999/x", "cannot be read"),
        ("https://[::1/x", "cannot be read"),
        ("https://hooks.example.com/a b", "blank"),
        ("https://hooks.exämple.com/x", "character"),
        ("https://hooks.example.com/x\n", "character"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(given: str, said: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        usable_url(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "given", ["https://ann:hunter2@hooks.example.com/x", "https://hunter2@hooks.example.com/x", "hunter2@hooks"]
)
def test_a_password_is_refused_and_never_repeated(given: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        usable_url(given)
    assert "hunter2" not in str(caught.value)
