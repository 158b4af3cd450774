"""The pipeline and its workers: gradients, curvature, dictionary, atoms, vectors."""
