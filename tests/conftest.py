"""Fixtures shared by every test: real servers and models, started once a session, on demand."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with it ignored, and processes that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins: list[str] = [
    "tests.fixtures.models",  # first: others import it, and pytest rewrites only what it imports itself
    "tests.fixtures.adapters",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.stack",
    "tests.fixtures.valkey",
]
