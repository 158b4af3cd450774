"""The Atomscope service: REST API, control worker and the embedded stack."""
