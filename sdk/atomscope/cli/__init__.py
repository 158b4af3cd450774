"""The command line, `atomscope ...`; `atomscope.cli.registry` is how extras add to it."""

from atomscope.cli.run import main

__all__ = ["main"]
