"""One file per published version; every file defines `get_config(arg="")` and builds on `configs/common.py`."""
