"""Configuration of models, of generation, and the table of the published family."""

from qwenkit.config.family import FAMILY, FamilyEntry, find_family
from qwenkit.config.generation import GenerationConfig
from qwenkit.config.model import ModelConfig, VisionConfig

__all__ = [
    "FAMILY",
    "FamilyEntry",
    "GenerationConfig",
    "ModelConfig",
    "VisionConfig",
    "find_family",
]
