"""The pages' templates, scripts and styles, and the policy that lets only those run."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Template


def asset(*names: str) -> Markup:
    """Scripts or styles of the package ("report/page.js"), as they stand in a page."""
    text = "".join((files("gapbench") / name).read_text("utf-8") for name in names)
    # Jinja2 and browsers read a carriage return as a line end: the policy's hash is of these bytes.
    return Markup(text.replace("\r\n", "\n"))  # noqa: S704


def template(name: str) -> Template:
    """A page of the package ("report/page.html"); everything that goes into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gapbench", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def policy(script: str, style: str, *more: str) -> str:
    """A content security policy: this script and this style, nothing from elsewhere."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            *more,
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
