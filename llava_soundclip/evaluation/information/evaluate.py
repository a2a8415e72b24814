"""Information of a features folder: from files to figures that can be written as JSON."""

import os
from typing import Any

from llava_soundclip.alignment.projector import Projector
from llava_soundclip.captioning.lines import listed
from llava_soundclip.evaluation.captions.references import read_labels
from llava_soundclip.evaluation.information.measure import measure_information
from llava_soundclip.evaluation.output import hash_of
from llava_soundclip.evaluation.vectors import measured_rows, provenance
from llava_soundclip.features.store import FeatureFolder


def evaluate_information(
    features: str | os.PathLike[str],
    projector: Projector | None = None,
    *,
    trained_in: str | os.PathLike[str] | None = None,
    rows: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    apart: str = "source",
    seed: int = 0,
) -> dict[str, Any]:
    """Information that sounds share with pictures, and their own (F.1), raw and projected, with intervals over sources.

    Args:
        features: a folder made by `llava-soundclip features`.
        projector: the projector; None measures raw vectors only.
        trained_in: as for `evaluate_retrieval`.
        rows: as for `evaluate_retrieval`.
        labels: JSON Lines file of labels that probes read off the vectors; see `captions.references.read_labels`. Its
            ids are those of the clips in the folder.
        apart: the unit that probes hold out together; "clip" is for labels that are finer than sources.
        seed: random seed for the draws and the intervals.

    Returns:
        The result of `measure_information`, with "unmatched", the number of labelled clips that the folder lacks.

    Raises:
        FileNotFoundError, OSError: if there is no such folder or file.
        ValueError: as for `evaluate_retrieval` and `measure_information`, and for malformed labels or labels of no
            clip in the folder.
        ImportError: if scipy or, for labels, scikit-learn isn't installed.
    """
    folder = FeatureFolder(features)
    rows, chosen = measured_rows(folder, trained_in, rows)
    known = {} if labels is None else read_labels(labels)
    labelled = sorted({id for values in known.values() for id in values})
    unmatched = len(set(labelled).difference(folder.ids))
    if labelled and unmatched == len(labelled):
        raise ValueError(
            f"no clip of {labels} is in {features}: it has labels of {listed(labelled, 3)}, and the folder holds "
            f"{listed(folder.ids, 3)}"
        )
    return {
        **measure_information(folder, projector, chosen, known, apart=apart, seed=seed),
        "rows": rows,
        "unmatched": unmatched,
        "provenance": {
            **provenance(folder, projector, seed),
            "labels": None if labels is None else hash_of(labels),
        },
    }
