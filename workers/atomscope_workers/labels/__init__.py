"""One-line labels of atoms and behaviours, from a language model that the operator names."""
