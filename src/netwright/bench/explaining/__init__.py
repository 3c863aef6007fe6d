"""``netwright explain``: why a network answers as it does, for pictures and for tables."""

from netwright.bench.explaining.pictures import METHODS, Pictures, explain_pictures, from_files, from_test_part
from netwright.bench.explaining.tables import explain_table, table_columns

__all__ = [
    "METHODS",
    "Pictures",
    "explain_pictures",
    "explain_table",
    "from_files",
    "from_test_part",
    "table_columns",
]
