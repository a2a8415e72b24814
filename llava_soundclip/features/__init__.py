"""Features: each clip's sound and picture as vectors on disk, made once for many training runs. Knows no host."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_soundclip.clips import Clip, Columns, read_clips, read_dataset
    from llava_soundclip.features.cluster import extract_features_on_ray
    from llava_soundclip.features.extract import extract_features
    from llava_soundclip.features.ledger import Extraction
    from llava_soundclip.features.store import FeatureFolder, FeatureHeader, FeatureWriter
    from llava_soundclip.features.towers import VisionTower

# Module of each name. Imports are lazy, so that worker processes decode without torch.
_HOMES = {
    "Clip": "clips",
    "Columns": "clips",
    "Extraction": "features.ledger",
    "FeatureFolder": "features.store",
    "FeatureHeader": "features.store",
    "FeatureWriter": "features.store",
    "VisionTower": "features.towers",
    "extract_features": "features.extract",
    "extract_features_on_ray": "features.cluster",
    "read_clips": "clips",
    "read_dataset": "clips",
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
        return getattr(import_module(f"llava_soundclip.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
