"""What each estimator can and can't show, in a few sentences; the docstrings say more."""

LIMITS = {
    "bounds": "A bound shows that at least this much is shared, within reach of a cosine or of a linear map. It can't "
    "show that no more is shared. If projecting raises a bound, it made information reachable; it created none.",
    "geometry": "CKA shows that clips that sound alike look alike. A small p shows that sound and picture aren't "
    "independent. Neither says how much they share, and a large p doesn't show that they share nothing.",
    "unique": "A score above chance shows that the vectors tell the label. A score at chance can't show that they "
    "don't: a probe reads only linear structure. A label that the picture also tells isn't the sound's own.",
    "dimension": "A lower dimension after projecting shows that something was flattened: among neighbours (TwoNN) or "
    "in the whole cloud (participation ratio). Neither shows what it was, or whether it was useful.",
}
