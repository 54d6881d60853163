"""The type of what a file, a configuration or a manifest holds: names with values of any kind."""

from typing import Any

__all__ = ["Record"]

Record = dict[str, Any]
