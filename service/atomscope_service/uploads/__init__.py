"""Uploads: part URLs, joining, and the checks of what arrived."""
