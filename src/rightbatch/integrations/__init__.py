"""rightbatch inside other people's trainers; each is imported only in its own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.integrations import accelerate as accelerate
    from rightbatch.integrations import lightning as lightning
    from rightbatch.integrations import loggers as loggers
    from rightbatch.integrations import transformers as transformers

__all__ = ["accelerate", "lightning", "loggers", "transformers"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "integrations.accelerate": ("accelerate.",),
        "integrations.lightning": ("lightning.",),
        "integrations.loggers": ("loggers.",),
        "integrations.transformers": ("transformers.",),
    },
)
