"""Atomscope: audit what a fine-tune taught a model."""
