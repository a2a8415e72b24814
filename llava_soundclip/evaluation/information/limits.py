"""One sentence for each estimator on what it can and can't show; the docstrings say more."""

LIMITS = {
    "bounds": "A bound shows that at least so much is shared, in reach of a cosine or of a linear map; it can't "
    "show that no more is, and what rises by projecting came into reach, not into being.",
    "geometry": "CKA shows that clips that sound alike look alike, and a small p that sound and picture aren't "
    "independent; neither says how much they share, nor a large p that it is nothing.",
    "unique": "A score above chance shows that the vectors tell the label; one at chance can't show that they "
    "don't, since a probe reads only what is linear, and what the picture tells as well isn't the sound's own.",
    "dimension": "A lower dimension after projecting shows that something was flattened, of neighbours (TwoNN) or "
    "of the whole cloud (participation ratio); neither shows what, nor whether it was of any use.",
}
