"""The audit bundle: its layout, reading and writing."""
