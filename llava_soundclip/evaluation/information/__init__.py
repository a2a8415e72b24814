"""IGTMM (F.1) made measurable: information shared by sound and picture, the sound's own information, and dimensions.

Shapes: a clip's sound h_a is z_a (n, d_a) raw and f_a (n, D) projected; its picture v is the CLS token c (n, D). Rows
are pairs. groups (n,) name the source of each row. Clips of one video are not independent. Intervals therefore
resample whole sources, and fitted models are measured on other sources.

F.1 splits I(h_a) into I_shared(h_a; v), the mutual information of sound and picture, and I_unique(h_a).
Neither can be read off the vectors directly:

- I_shared is bounded from below here (`infonce_bound`, `held_out_bound`). f_a is a function of z_a, so by the data
  processing inequality I(f_a; v) <= I(z_a; v). Projecting can't add information, as Proposition F.2 claims; it can
  only bring existing information into a cosine's reach. A bound that grows by projecting shows this and nothing more.
- I_unique has no estimator: the information of a continuous vector with itself is infinite. It can be measured whether
  a named label is still legible (`probe`), and whether the picture tells it as well.

There is no nearest-neighbour estimate of I (KSG). It needs a number of clips exponential in I and in the dimension. On
a few principal components it estimates the information of those, and they differ before and after projecting.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_soundclip.evaluation.information.dimension import (
        intrinsic_dimension,
        participation_ratio,
        two_nn,
    )
    from llava_soundclip.evaluation.information.evaluate import evaluate_information
    from llava_soundclip.evaluation.information.measure import measure_information
    from llava_soundclip.evaluation.information.shared import (
        cka,
        held_out_bound,
        independence,
        infonce_bound,
    )
    from llava_soundclip.evaluation.information.unique import band_energy, probe

_HOME = {
    "band_energy": "unique",
    "cka": "shared",
    "evaluate_information": "evaluate",
    "held_out_bound": "shared",
    "independence": "shared",
    "infonce_bound": "shared",
    "intrinsic_dimension": "dimension",
    "measure_information": "measure",
    "participation_ratio": "dimension",
    "probe": "unique",
    "two_nn": "dimension",
}
__all__ = [
    "band_energy",
    "cka",
    "evaluate_information",
    "held_out_bound",
    "independence",
    "infonce_bound",
    "intrinsic_dimension",
    "measure_information",
    "participation_ratio",
    "probe",
    "two_nn",
]


def __getattr__(name: str) -> Any:  # the command line imports this package, and should stay quick
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
