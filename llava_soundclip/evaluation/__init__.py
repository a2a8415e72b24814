"""The paper's measures: retrieval, information, captions by metrics and by a judge, and the report of all of them.

Vectors and captions come from files. `tradeoff` makes them first, with a patched model that it is given.
"""
