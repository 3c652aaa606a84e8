"""Where backbones come from: one shelf a file, each behind the interface of `shelf.py`."""
