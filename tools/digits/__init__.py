"""LVIS-Digits: real handwritten digits on real photographs, with a long tail, and the small models made on it."""
