"""The kernels themselves; `columns.py` says how they see a tree."""
