"""Fixtures shared by every test: real servers and models, started once a session, on demand."""

pytest_plugins: list[str] = [
    "tests.fixtures.models",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.valkey",
]
