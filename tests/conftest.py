"""Fixtures shared by every test: real servers and models, started once a session, on demand."""

pytest_plugins: list[str] = [
    "tests.fixtures.models",  # first: others import it, and pytest rewrites only what it imports itself
    "tests.fixtures.adapters",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.stack",
    "tests.fixtures.valkey",
]
