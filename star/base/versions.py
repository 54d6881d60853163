"""Which release of this program and of the packages it stands on is running."""

from importlib import metadata

__all__ = ["PACKAGE", "installed_version"]

PACKAGE = "star-autoregressive"


def installed_version(package: str = PACKAGE) -> str:
    """Version of an installed ``package``, found without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
