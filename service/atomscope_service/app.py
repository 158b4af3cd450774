"""The application: settings in, an ASGI app out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from atomscope.store import ObjectStore, open_store
from atomscope_service.api.adapters import AdapterController
from atomscope_service.api.atoms import FindingsController
from atomscope_service.api.attributions import AttributionController
from atomscope_service.api.audits import AuditController
from atomscope_service.api.body import StrictBody
from atomscope_service.api.bundles import BundleCache
from atomscope_service.api.datasets import DatasetController
from atomscope_service.api.evaluations import EvaluationController
from atomscope_service.api.events import EventController
from atomscope_service.api.files import FileController
from atomscope_service.api.health import HealthController
from atomscope_service.api.idempotency import Idempotency
from atomscope_service.api.keys import KeyController
from atomscope_service.api.models import ModelController
from atomscope_service.api.openapi import finish_document, openapi_config
from atomscope_service.api.pages import PageController
from atomscope_service.api.presets import PresetController
from atomscope_service.api.problems import EXCEPTION_HANDLERS
from atomscope_service.api.query import check_parameters
from atomscope_service.api.queue import WorkQueue
from atomscope_service.api.refits import RefitController
from atomscope_service.api.requests import add_headers
from atomscope_service.api.services import Services, provide_services, provide_tenant
from atomscope_service.api.steered import SteeredAdapterController
from atomscope_service.api.uploads import UploadController
from atomscope_service.auth.middleware import Authentication, require_caller
from atomscope_service.auth.secret import load_secret
from atomscope_service.db.engine import Database
from atomscope_service.settings import Settings

CONTROLLERS = [
    UploadController,
    ModelController,
    AdapterController,
    DatasetController,
    PresetController,
    AuditController,
    RefitController,
    EventController,
    FindingsController,
    AttributionController,
    EvaluationController,
    SteeredAdapterController,
    KeyController,
    FileController,
    HealthController,
    PageController,
]


def create_app(settings: Settings, queue: WorkQueue, store: ObjectStore | None = None) -> Litestar:
    """The API as an ASGI application.

    The database must stand at the newest migration (`db.migrate.upgrade`); `/readyz` says whether it
    does. Raises `SettingsError` or `StoreError` when the secret or the store cannot be opened.
    """
    database = Database(settings.database_url)
    store = store or open_store(settings.store)
    secret = load_secret(settings.secret_file)
    services = Services(
        settings=settings,
        database=database,
        store=store,
        queue=queue,
        secret=secret,
        bundles=BundleCache(store),
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        yield
        database.dispose()

    app = Litestar(
        route_handlers=CONTROLLERS,
        state=State({"services": services}),
        dependencies={
            "services": Provide(provide_services, sync_to_thread=False),
            "tenant": Provide(provide_tenant, sync_to_thread=False),
        },
        middleware=[Authentication(database, secret), Idempotency(database, settings)],
        guards=[require_caller],
        before_request=check_parameters,
        before_send=[add_headers],
        exception_handlers=EXCEPTION_HANDLERS,
        dto=StrictBody,
        return_dto=None,
        request_max_body_size=settings.max_json_bytes,
        lifespan=[lifespan],
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
    )
    finish_document(app)
    return app
