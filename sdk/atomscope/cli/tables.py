"""Plain tables and cards; every cell is on one line and escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atomscope.text import visible


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under a header, columns as wide as their widest cell."""
    cells = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def card(rows: Iterable[tuple[str, object]]) -> str:
    """One labelled value a line; those that are None are left out."""
    kept = [(visible(label), visible(str(value))) for label, value in rows if value is not None]
    width = max((len(label) for label, _ in kept), default=0)
    return "\n".join(f"{label:<{width}}  {value}".rstrip() for label, value in kept)


def size_text(size: float) -> str:
    """Bytes in binary units: `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def time_text(seconds: float) -> str:
    """A duration: `2.5 s`, `3 min 20 s`, `1 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
