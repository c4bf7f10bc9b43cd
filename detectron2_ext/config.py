"""The configuration of an experiment: one YAML for the three stages, in Detectron2's format."""

from exchange.config import load_config

__all__ = ["load_config"]
