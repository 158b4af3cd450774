"""The control worker: owns the record of audits, hands units to pipeline workers, judges their reports."""
