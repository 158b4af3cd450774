"""The method (arXiv 2603.14665, corrected): pure functions of model, documents and settings to arrays."""
