"""`nexhealth doctor --openapi FILE`: what a newer version of the vendor's API would change for the copy."""

import json
from pathlib import Path

from nexhealth_pipeline.catalog.openapi import Difference, compare
from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["difference_lines", "differences"]


def differences(path: str) -> list[Difference]:
    """Differences between the OpenAPI file at `path` and the catalog. Raises InvalidSetting."""
    try:
        spec = json.loads(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise InvalidSetting(f"--openapi {path}: it cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InvalidSetting(f"--openapi {path}: it is no JSON; convert a YAML file first") from None
    except RuntimeError:
        raise InvalidSetting(f"--openapi {path}: it cannot be read (there is no such home folder)") from None
    try:
        return compare(spec)
    except (ValueError, TypeError, AttributeError) as error:
        why = str(error) if type(error) is ValueError else "its parts are not what OpenAPI 3 says"
        raise InvalidSetting(f"--openapi {path}: it is no OpenAPI file: {why}") from None


def difference_lines(found: list[Difference]) -> list[str]:
    """The differences for people, one a line, those of a place together."""
    if not found:
        return ["no difference: the catalog fits this version of the API"]
    lines = [
        f"{one.kind}: {one.name if one.where == one.name else f'{one.where} {one.name}'}: {one.message}"
        for one in found
    ]
    count = f"{len(found):,} difference{'s'[: len(found) > 1]}"
    return [*lines, f"{count} to what is synced (nexhealth_pipeline/catalog/collections)"]
