"""The REST API: one module a resource, and the conventions they share."""
