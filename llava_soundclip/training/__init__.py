"""Training of a projector: the paper's losses, splits by source, and the training loop. Imported on demand."""
