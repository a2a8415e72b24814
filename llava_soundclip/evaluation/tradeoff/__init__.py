"""Retrieval gained and caption quality lost by projecting: measured for one model, and analysed over encoders (4.4)."""

from llava_soundclip.evaluation.tradeoff.correlation import Tradeoff, analyse, pareto_front

__all__ = ["Tradeoff", "analyse", "pareto_front"]
