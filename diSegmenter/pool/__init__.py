"""What tools/pool.py does to instance pools: import, export, merge, verify, count, prune."""
