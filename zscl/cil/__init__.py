"""ZSCL and its baselines, class-incremental: `python -m zscl.cil`, or `main` with the words of a command line."""


def main(argv: list[str] | None = None) -> None:
    """Run a command line."""
    from zscl.cil import __main__ as entry  # which `python -m` runs itself: imported above, it would be there twice

    entry.main(argv)
