"""The paper's measures, with intervals and controls. Nothing here imports a host.

Each folder has one call that goes from files to figures:

- `retrieval`: `evaluate_retrieval` ranks the clips of a features folder (Appendix E).
- `captions`: `evaluate_captions` scores captions with metrics and a judge (Tables 11 to 13).
- `information`: `evaluate_information` bounds what the vectors of a features folder tell (F.1).
- `judge`: `Judge`, a language model that scores captions.
- `report`: `write_report` puts the others' results on one page.
- `tradeoff`: `measure_tradeoff` runs all of them for one model; `analyse` compares encoders (4.4).
"""
