"""`atomscope atoms list|show`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from atomscope.cli.connect import number
from atomscope.cli.documents import documents_text, evidence_lines, exemplars_text, keyword_lines
from atomscope.cli.failures import NotFound
from atomscope.cli.registry import EXIT_DONE, Output
from atomscope.cli.tables import card
from atomscope.cli.targets import add_target, opened
from atomscope.cli.tree import CommandTree, PluginRegistry
from atomscope.types.atoms import Atom
from atomscope.types.resources import DocumentMatch

if TYPE_CHECKING:
    from atomscope.bundle import AtomList

_SORTS = ("rank", "score", "coherence", "n_active", "mean_coefficient", "index")


def register(registry: PluginRegistry, tree: CommandTree) -> None:
    registry.add_command("atoms list", "the ranked atoms", _configure_list, _list)
    registry.add_command("atoms show", "one atom and its documents", _configure_show, _show)


def _configure_list(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--sort",
        choices=[*_SORTS, *(f"-{key}" for key in _SORTS)],
        default="rank",
        help="-KEY, written --sort=-KEY, is the largest first",
    )
    parser.add_argument("--min-coherence", type=number(float, -1))
    parser.add_argument("--min-active", type=number(int, 0))
    parser.add_argument("--keyword", help="only atoms with this keyword")
    parser.add_argument("--limit", type=number(int, 1), help="atoms to print (default: all)")


def _configure_show(parser: ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("atom", type=number(int, 0), metavar="INDEX", help="the atom's number (not its rank)")
    parser.add_argument("--sign", choices=("positive", "negative"), default="positive")
    parser.add_argument("--documents", type=number(int, 0), default=5, help="documents to print (default 5)")


def _list(args: Namespace, output: Output) -> int:
    with opened(args) as target:
        atoms: AtomList[Any] = target.atoms
        chosen = atoms.filter(
            min_coherence=args.min_coherence, min_active=args.min_active, keyword=args.keyword
        ).sort_by(args.sort.removeprefix("-"), descending=args.sort.startswith("-"))
        shown = chosen[: args.limit]
        output.result([atom.atom for atom in shown], chosen.table(args.limit))
    return EXIT_DONE


def _show(args: Namespace, output: Output) -> int:
    with opened(args) as target:
        atoms: AtomList[Any] = target.atoms
        try:
            atom = atoms.get(args.atom)
        except KeyError as error:
            raise NotFound(f"there is no atom {args.atom}; `atomscope atoms list` names them") from error
        found: list[DocumentMatch] = (
            atom.documents(sign=args.sign, limit=args.documents) if args.documents else []
        )
        output.result({"atom": atom.atom, "documents": found}, _text(atom.atom, found))
    return EXIT_DONE


def _text(atom: Atom, documents: list[DocumentMatch]) -> str:
    parts = [
        card(
            [
                ("atom", atom.index),
                ("label", atom.label),
                ("rank", atom.rank),
                ("behaviour", atom.behaviour),
                ("score", f"{atom.score:.3f}"),
                *evidence_lines(atom.evidence),
                ("coherence", f"{atom.coherence:.3f}"),
                (
                    "random sets",
                    f"{atom.null_coherence:.3f} (95th percentile {atom.null_coherence_95:.3f})",
                ),
                ("documents", f"{atom.n_active} ({atom.n_positive} positive, {atom.n_negative} negative)"),
                ("mean code", f"{atom.mean_coefficient:.4g}"),
                ("energy kept", f"{atom.energy_retained:.1%}"),
                ("vector norm", f"{atom.vector_norm:.4g}"),
                (
                    "vector cosine",
                    None if atom.vector_cosine is None else f"{atom.vector_cosine:.3f} to the exact one",
                ),
                *keyword_lines(atom.keywords, atom.prompt_keywords, atom.response_keywords),
            ]
        )
    ]
    parts += exemplars_text(atom.exemplars, "code")
    parts += documents_text(documents, "code")
    return "\n\n".join(parts)
