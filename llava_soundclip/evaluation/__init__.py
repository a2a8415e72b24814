"""The paper's measures, on vectors: no model, no file, no host."""
