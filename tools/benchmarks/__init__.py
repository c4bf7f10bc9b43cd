"""One module for each benchmark of tools/bench.py; measured, not tested."""
