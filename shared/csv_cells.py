"""Cells of CSV files that spreadsheets show as they are. Users choose the names of models and keys. Pure."""

#: Characters that start a formula in spreadsheets.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | int | float | None


def harmless(cell: Cell) -> str | int | float:
    """Quote texts that a spreadsheet would run as a formula."""
    if cell is None:
        return ""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_BEGINS_FORMULA) else cell
