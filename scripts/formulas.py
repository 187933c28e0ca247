"""The formulas of the docs' site, without a network: what stands in a `math` fence, as on GitHub,
becomes MathML when the site is built."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def _fence(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula" tabindex="0">{convert(source, display="block")}</div>'


def on_config(config: Any) -> None:
    """Called by mkdocs."""
    fence = {"name": "math", "class": "formula", "format": _fence}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
