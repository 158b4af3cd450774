"""`atomscope bundle show|verify`: a bundle without a server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any, cast

from atomscope.bundle import open_bundle
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import card, size_text
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.text import counted


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("bundle show", "what an audit bundle holds", _configure, _show)
    registry.add_command("bundle verify", "compare every file with its SHA-256", _configure, _verify)


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder, file:///... or s3://...")


def _show(args: Namespace, output: Output) -> int:
    bundle = open_bundle(args.bundle)
    manifest, report = bundle.manifest, bundle.report
    rows: list[tuple[str, object]] = [
        ("audit", manifest.audit_id),
        ("created", manifest.created_at),
        ("format", manifest.format_version),
        ("documents", f"{report.n_documents}, {report.n_dropped} dropped"),
        ("behaviours", f"{report.n_behaviours}{_passing(report.n_significant_behaviours)}"),
        (
            "atoms",
            f"{report.n_atoms}{_passing(report.n_significant)}; coherence above 0.5 of "
            f"{report.n_coherent_05}, above 0.1 of {report.n_coherent_01}",
        ),
        (
            "loss",
            f"{report.loss_adapter:.3f} nats a token; {report.loss_base:.3f} without the adapter "
            f"(of {counted(report.n_loss_documents, 'document')})",
        ),
        ("gradients", bundle.gradients_kept),
        ("directions", _along(report.details.get("directions"))),
        ("dictionary", _fitted(report.details.get("dictionary"))),
        ("files", f"{len(manifest.files)}, {size_text(sum(entry.size for entry in manifest.files))}"),
        *(("warning", warning) for warning in report.warnings),
    ]
    output.result({"manifest": manifest, "report": report}, card(rows))
    return EXIT_DONE


def _passing(count: int | None) -> str:
    return ", compared with no null" if count is None else f", {count} at a false-discovery rate of 5%"


def _along(facts: Any) -> str | None:  # noqa: ANN401  (free-form in the report)
    """How near the cosines of documents along directions come; None for a report of exact ones."""
    if not isinstance(facts, dict):
        return None
    told = cast("dict[str, Any]", facts)
    count, share, error = (told.get(name) for name in ("directions", "share_along", "cosine_error"))
    if not isinstance(count, int) or not isinstance(share, float) or not isinstance(error, float):
        return None
    return f"{count:,}, with {share:.0%} of the documents' squares; their cosines are off by {error:.4f}"


def _fitted(facts: Any) -> str | None:  # noqa: ANN401  (free-form in the report)
    """How the fit of the dictionary ended; None for a report that does not tell."""
    if not isinstance(facts, dict):
        return None
    told = cast("dict[str, Any]", facts)
    converged, rounds, fall = told.get("converged"), told.get("rounds"), told.get("last_fall")
    if not isinstance(converged, bool) or not isinstance(rounds, int):
        return None
    how = "converged in" if converged else "not converged after"
    last = f", its objective changed by {-fall:+.3%} in the last" if isinstance(fall, float) else ""
    return f"{how} {counted(rounds, 'round')}{last}"


def _verify(args: Namespace, output: Output) -> int:
    bundle = open_bundle(args.bundle)
    expired = bundle.verify()
    count = len(bundle.manifest.files) - len(expired)
    gone = f"; {len(expired)} of gradients are no longer there" if expired else ""
    output.result(
        {"audit": bundle.manifest.audit_id, "files": count, "intact": True, "expired": expired},
        f"{count} files, all intact{gone}",
    )
    return EXIT_DONE
