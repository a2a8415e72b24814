"""Features: each clip's sound and picture as vectors on disk, made once and trained on many times. Knows no host."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_soundclip.features.cluster import extract_features_on_ray
    from llava_soundclip.features.extract import Extraction, extract_features
    from llava_soundclip.features.sources import Clip, Columns, read_clips, read_dataset
    from llava_soundclip.features.store import FeatureFolder, FeatureHeader, FeatureWriter
    from llava_soundclip.features.towers import VisionTower

# Where each name is. Nothing is imported before it is asked for: the worker processes decode without torch.
_HOMES = {
    "Clip": "sources",
    "Columns": "sources",
    "Extraction": "extract",
    "FeatureFolder": "store",
    "FeatureHeader": "store",
    "FeatureWriter": "store",
    "VisionTower": "towers",
    "extract_features": "extract",
    "extract_features_on_ray": "cluster",
    "read_clips": "sources",
    "read_dataset": "sources",
}

__all__ = [
    "Clip",
    "Columns",
    "Extraction",
    "FeatureFolder",
    "FeatureHeader",
    "FeatureWriter",
    "VisionTower",
    "extract_features",
    "extract_features_on_ray",
    "read_clips",
    "read_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
