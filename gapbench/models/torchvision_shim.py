"""Make `import torchvision` work beside a torch without its compiled operators."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

_NEEDED: Final = ("nms", "qnms")
_libraries: list[object] = []
"""Schemas live as long as the library object that declared them."""


def ensure() -> None:
    """Declare the operators that torchvision registers fakes for, where its import needs that.

    torchvision as PyPI has it, beside a CPU-only torch, stops its first import with "operator
    torchvision::nms does not exist". Its image transforms need no compiled operator, so schemas
    without kernels are enough for open_clip and transformers. Does nothing where torchvision is
    absent or imports as it is.
    """
    try:
        import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _libraries:
            raise
        library = import_module("torch.library")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        schemas = library.Library("torchvision", "DEF")
        for operator in _NEEDED:
            schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(schemas)
        import_module("torchvision")
