"""What run.yaml says of a run that nobody has a configuration of any more."""

from typing import Any

from exchange import files
from exchange.config import parse_yaml
from exchange.errors import UserError
from exchange.layout import RunLayout


def read_settings(layout: RunLayout) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings by key, and versions by package; raises UserError where there is no run, or its file is damaged."""
    path = layout.settings_file
    if not files.exists(path):
        raise UserError(
            f"{layout.root} holds no run, as it has no run.yaml: give the run's folder (OUTPUT_DIR)"
        )
    content = parse_yaml(files.read_bytes(path), path)
    parts = [content.get(part) for part in ("settings", "versions")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path} does not hold the settings and versions of a run: restore it")
    return content["settings"], content["versions"]
