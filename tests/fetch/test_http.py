"""Clients in environments of clusters and laptops: proxies and certificates."""

from __future__ import annotations

import httpx
import pytest

from gapbench.fetch.http import open_client
from gapbench.fetch.sources import Source, download
from gapbench.types import GapbenchError

FAR = httpx.URL("https://judge.invalid/v1")


@pytest.mark.parametrize("there", ["localhost,::1,fe80::/10", "localhost,[::1]"])
def test_no_proxy_may_hold_ipv6(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    monkeypatch.setenv("NO_PROXY", there)
    open_client(FAR).close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "nonsense://secret@127.0.0.1:9"), ("SSL_CERT_FILE", "/nonexistent.pem")],
)
def test_what_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, tmp_path: object
) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv(name, value)
    source = Source(url=str(FAR), sha256="0" * 64, bytes=1, license="MIT")
    for attempt in (lambda: open_client(FAR), lambda: download(source)):
        with pytest.raises(GapbenchError, match=rf"^{name} .*; correct or unset it") as error:
            attempt()
        assert "secret" not in str(error.value)
    open_client(httpx.URL("http://127.0.0.1:1/v1")).close()  # this machine needs neither
