"""The paper's measures, with intervals and controls. Nothing here imports a host.

A folder for each, with one call that goes from files to figures:

- `retrieval`: `evaluate_retrieval`, of a features folder (Appendix E).
- `captions`: `evaluate_captions`, by metrics and a judge (Tables 11 to 13).
- `information`: `evaluate_information`, of a features folder (F.1).
- `judge`: `Judge`, a language model that scores captions.
- `report`: `write_report`, one page of what the others found.
- `tradeoff`: `measure_tradeoff` runs all of them for one model; `analyse` compares encoders (4.4).
"""
