"""Evaluation of steering: what a behaviour turned up and down does, what it costs, and what chance does."""

from atomscope_workers.evaluation.evaluate import evaluate

__all__ = ["evaluate"]
