"""ZSCL and its baselines, class-incremental: `python -m zscl.cil`."""
