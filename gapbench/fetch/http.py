"""HTTP clients: through the proxy and with the certificates that the environment names."""

from __future__ import annotations

import ipaddress
import os
from typing import Any, Final
from urllib.request import getproxies, proxy_bypass

import httpx

from gapbench.types import GapbenchError

CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def open_client(url: httpx.URL, **options: Any) -> httpx.Client:
    """A client for one address; `options` are httpx.Client's.

    For this machine it takes neither proxy nor certificates from the environment. NO_PROXY may hold
    IPv6 addresses. Raises GapbenchError naming the variable that cannot be used.
    """
    here = is_loopback(url.host)
    # httpx's own reading of NO_PROXY fails at IPv6 addresses (encode/httpx#3221).
    direct = here or proxy_bypass(url.host) or proxy_bypass(url.netloc.decode())
    proxies = {} if direct else getproxies()
    kind = next((kind for kind in (url.scheme, "all") if kind in proxies), "")
    limits = options.pop("limits", httpx.Limits())
    try:
        transport = httpx.HTTPTransport(proxy=proxies.get(kind), trust_env=not here, limits=limits)
    except (ImportError, ValueError, httpx.InvalidURL, OSError) as error:
        # The value of a proxy may hold a password, and an error of it too.
        name, why = f"{kind}_proxy".upper(), "is no proxy that can be used"
        if isinstance(error, OSError):
            name = " or ".join(each for each in CERTIFICATES if each in os.environ)
            why = f"names certificates that cannot be read ({error})"
        raise GapbenchError(f"{name} {why}; correct or unset it") from error
    return httpx.Client(transport=transport, **options)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
