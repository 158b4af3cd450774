"""What the handles of both clients share: the attributes of their resources."""

from __future__ import annotations

from atomscope.text import visible
from atomscope.types.resources import Audit as AuditResource
from atomscope.types.resources import AuditError, AuditStatus, Progress, SteeredAdapter
from atomscope.types.spec import AuditConfig, VectorPower
from atomscope.types.steering import Format, Unit
from atomscope.types.work import Stage


class AuditAttributes:
    """An audit as it was when it was last read; `refresh()` reads it again."""

    def __init__(self, resource: AuditResource) -> None:
        self.resource = resource
        """The whole resource."""

    @property
    def id(self) -> str:
        return self.resource.id

    @property
    def name(self) -> str | None:
        return self.resource.name

    @property
    def status(self) -> AuditStatus:
        return self.resource.status

    @property
    def stage(self) -> Stage | None:
        return self.resource.stage

    @property
    def progress(self) -> Progress | None:
        return self.resource.progress

    @property
    def config(self) -> AuditConfig:
        return self.resource.config

    @property
    def metadata(self) -> dict[str, str]:
        return self.resource.metadata

    @property
    def parent(self) -> str | None:
        """Of a refit: the id of the audit that it is a refit of."""
        return self.resource.parent

    @property
    def n_documents(self) -> int | None:
        return self.resource.n_documents

    @property
    def n_atoms(self) -> int | None:
        return self.resource.n_atoms

    @property
    def warnings(self) -> list[str]:
        return self.resource.warnings

    @property
    def error(self) -> AuditError | None:
        return self.resource.error

    def __repr__(self) -> str:
        where = f" at {self.stage}" if self.status == "running" and self.stage else ""
        return f"<Audit {visible(self.id)} {self.status}{where}>"


class SteeredAttributes:
    """A steered adapter kept by the service."""

    def __init__(self, resource: SteeredAdapter) -> None:
        self.resource = resource

    @property
    def id(self) -> str:
        return self.resource.id

    @property
    def strengths(self) -> dict[str, float]:
        """Strength by target: an atom `7`, a behaviour `behaviour:3`."""
        return self.resource.strengths

    @property
    def format(self) -> Format:
        return self.resource.format

    @property
    def unit(self) -> Unit:
        return self.resource.unit

    @property
    def power(self) -> VectorPower | None:
        """Power of (lambda + damping) in the unprojection."""
        return self.resource.power

    def __repr__(self) -> str:
        return f"<SteeredAdapter {visible(self.id)} of {visible(self.resource.audit)} {self.strengths}>"
