"""The OpenAPI document: what Litestar derives, with our errors and summaries in place of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    Schema,
    SecurityScheme,
)
from litestar.routes import HTTPRoute

from atomscope import __version__
from atomscope.types import evaluation, resources
from atomscope.types.presets import PRESETS
from atomscope.types.resources import Problem
from atomscope.types.spec import AuditConfig
from atomscope_service.api.problems import PROBLEM_JSON
from atomscope_service.auth.middleware import PUBLIC

STRUCTS: dict[str, Any] = {**vars(evaluation), **vars(resources), "AuditConfig": AuditConfig}
"""The types of the API by name; Litestar leaves out of their schemas that unknown fields are refused."""

METHODS = ("get", "post", "put", "delete", "patch", "head", "options")


def openapi_config() -> OpenAPIConfig:
    """`/schema/openapi.json`, readable without a key."""
    scheme = SecurityScheme(type="http", scheme="bearer", description="An API key: `ask_...`")
    return OpenAPIConfig(
        title="Atomscope",
        version=__version__,
        description="What a fine-tune taught a model: atoms, their documents, and vectors that steer them.",
        components=Components(security_schemes={"key": scheme}),
        security=[{"key": []}],
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], opt={PUBLIC: True}, include_in_schema=False),
    )


def finish_document(app: Litestar) -> None:
    """Say in the document what every route has in common: errors are problems; summaries are sentences."""
    document = app.openapi_schema
    schemas: dict[str, Any] = document.components.schemas if document.components else {}
    schemas["Problem"] = _problem_schema()
    content = {PROBLEM_JSON: OpenAPIMediaType(schema=Reference(ref="#/components/schemas/Problem"))}
    for name, schema in schemas.items():
        struct: Any = STRUCTS.get(name)
        if struct is not None and struct.__struct_config__.forbid_unknown_fields:
            schema.additional_properties = False
    _type_settings(schemas)
    public = _public_operations(app)
    for item in (document.paths or {}).values():
        for method in METHODS:
            operation: Operation | None = getattr(item, method, None)
            if operation is None:
                continue
            responses: dict[str, Any] = dict(operation.responses or {})
            responses.pop("400", None)  # Litestar's own form of errors, which is never sent
            responses["default"] = OpenAPIResponse(description="A problem (RFC 9457)", content=content)
            operation.responses = responses
            if operation.operation_id in public:
                operation.security = []
            if operation.description:
                operation.summary = operation.description.splitlines()[0].rstrip(".")


def _type_settings(schemas: dict[str, Any]) -> None:
    """Say what `POST /v1/audits` takes: fields are told apart from a preset's only as a plain object."""
    properties = schemas["AuditCreate"].properties
    properties["preset"].enum = list(PRESETS)
    properties["config"] = Reference(ref="#/components/schemas/AuditConfig")


def _public_operations(app: Litestar) -> set[str]:
    """Operation ids of the handlers that need no key."""
    return {
        str(handler.operation_id)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.opt.get(PUBLIC)
    }


def _problem_schema() -> Schema:
    _, components = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    described: dict[str, Any] = components["Problem"]
    properties: dict[str, Reference | Schema] = {
        name: Schema(
            type=OpenAPIType(field["type"]) if "type" in field else None,
            any_of=[Schema(type=OpenAPIType(choice["type"])) for choice in field.get("anyOf", ())] or None,
            items=Schema(type=OpenAPIType.OBJECT) if field.get("type") == "array" else None,
        )
        for name, field in described["properties"].items()
    }
    return Schema(
        type=OpenAPIType.OBJECT,
        title="Problem",
        description=described["description"],
        properties=properties,
        required=described["required"],
    )
