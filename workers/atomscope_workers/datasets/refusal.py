"""The exception for a fault of a whole data set."""

from __future__ import annotations

from atomscope.errors import InputProblem, InvalidInput


def refuse_dataset(code: str, message: str, file: str, field: str | None = None) -> InvalidInput:
    """`InvalidInput` of one problem; `message` says what would be accepted."""
    where = f"{file}, `{field}`" if field else file
    return InvalidInput(code, f"{where}: {message}", [InputProblem(message=message, file=file, field=field)])
