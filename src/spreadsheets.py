"""Text in CSV files that people open in a spreadsheet, which runs what looks like a formula."""


def harmless(value: object) -> object:
    """Text that a spreadsheet would run as a formula is put behind an apostrophe; all else stays as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "@", "-", "\t", "\r")) else value
