"""Training a projector: the paper's losses, splits by source, the loop. Imported when it is asked for."""
