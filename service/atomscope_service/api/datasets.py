"""`/v1/datasets`: fine-tuning sets. Their content is parsed by the audit, never here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from litestar import Controller, Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from atomscope.input_files import dataset_format
from atomscope.types.inputs import Dataset, DatasetCreate
from atomscope.types.resources import Deleted, Page
from atomscope_service.api.announce import announce
from atomscope_service.api.conditional import conditional
from atomscope_service.api.inputs import require_unused
from atomscope_service.api.paging import DEFAULT_LIMIT, Cursor, Limit, list_rows
from atomscope_service.api.problems import ProblemError
from atomscope_service.api.services import CurrentTenant, Tenant, found
from atomscope_service.api.times import rfc3339
from atomscope_service.db.models import DatasetRow
from atomscope_service.ids import new_id
from atomscope_service.uploads.service import completed_upload, using_up


def render_dataset(row: DatasetRow) -> Dataset:
    """A row as the API shows it."""
    return Dataset(
        id=row.id,
        name=row.name,
        format=row.format,  # pyright: ignore[reportArgumentType]  (checked when it was written)
        sha256=row.sha256,
        size=row.size,
        created_at=rfc3339(row.created_at),
    )


def create_dataset(tenant: Tenant, request: DatasetCreate) -> DatasetRow:
    """Make a data set of a completed upload of one file."""
    upload = completed_upload(tenant, request.upload_id, "dataset")
    file = upload.files[0]
    kind = dataset_format(file.path)
    if kind is None:  # refused before it was sent; without its format nothing could read it
        raise ProblemError(422, "file_not_allowed", f"{file.path} has no place in a data set.")
    dataset_id = new_id("ds")
    key = f"projects/{tenant.project_id}/datasets/{dataset_id}/data.{kind}"
    with using_up(tenant, upload, lambda name: key) as (repositories, _):
        row = DatasetRow(
            id=dataset_id,
            project_id=tenant.project_id,
            created_at=datetime.now(UTC),
            name=request.name,
            format=kind,
            key=key,
            sha256=file.sha256,
            size=file.size,
        )
        return repositories.datasets.add(row)


class DatasetController(Controller):
    path = "/v1/datasets"
    tags = ["datasets"]  # noqa: RUF012

    @post(operation_id="createDataset", sync_to_thread=True)
    def create(self, tenant: CurrentTenant, data: JSONBody[DatasetCreate]) -> Response[Dataset]:
        """Make a data set of a completed upload, which is used up."""
        row = create_dataset(tenant, data)
        return Response(render_dataset(row), headers={"Location": f"/v1/datasets/{row.id}"})

    @get(operation_id="listDatasets", sync_to_thread=True)
    def list_page(
        self, tenant: CurrentTenant, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> Page[Dataset]:
        """Data sets, newest first."""
        return list_rows(tenant, lambda rows: rows.datasets, render_dataset, limit=limit, cursor=cursor)

    @get("/{dataset_id:str}", operation_id="getDataset", sync_to_thread=True)
    def read(
        self, request: Request[Any, Any, Any], tenant: CurrentTenant, dataset_id: FromPath[str]
    ) -> Response[Dataset]:
        """One data set."""
        with tenant.read() as repositories:
            row = found(repositories.datasets, dataset_id, "dataset")
        return conditional(request, render_dataset(row))

    @delete("/{dataset_id:str}", operation_id="deleteDataset", status_code=200, sync_to_thread=True)
    def remove(self, tenant: CurrentTenant, dataset_id: FromPath[str]) -> Deleted:
        """Delete a data set and its file; 409 while a live audit uses it."""
        with tenant.write() as repositories:
            row = found(repositories.datasets, dataset_id, "dataset", lock=True)
            require_unused(repositories, dataset_id)
            repositories.deletions.add_prefix(f"{row.key.rpartition('/')[0]}/")
            repositories.datasets.remove(row)
        announce(tenant.services.queue.deletions_added)
        return Deleted(id=dataset_id)
