"""The stages of an audit: what reads and writes files around the pure pipeline."""
