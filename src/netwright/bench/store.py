"""The store of finished cells: SQLite by default, by SQLAlchemy Core.

A cell (study, arm, seed, scale) has a key that is the hash of its full configuration. Its result is written in one
transaction when it is finished, so a study that was killed goes on where it was.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from netwright import checks

SCHEMA_VERSION = 1

_META = sa.MetaData()
_SCHEMA = sa.Table("schema", _META, sa.Column("version", sa.Integer, primary_key=True))
_CELLS = sa.Table(
    "cells",
    _META,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("study", sa.String, index=True, nullable=False),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("status", sa.String(8), nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("finished", sa.String(32), nullable=False),
)


@dataclass(frozen=True)
class Cell:
    """One unit of work: an arm of a study under one seed.

    Attributes:
        study: What it belongs to, for people.
        arm: Name of the arm.
        seed: The seed.
        config: All that decides the result, as JSON values.
    """

    study: str
    arm: str
    seed: int
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of the full configuration."""
        everything = {"arm": self.arm, "seed": self.seed, "config": self.config}
        return sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its result as JSON values, or the reason why there is none."""

    status: Literal["done", "failed"]
    result: Mapping[str, Any]
    reason: str = ""
    seconds: float = 0.0


class Store:
    """Finished cells by key.

    Args:
        url: A path of an SQLite file, or an SQLAlchemy URL.

    Raises:
        InputError: If it cannot be opened or written, or was made by a newer version.
    """

    def __init__(self, url: str | Path = ".netwright/runs.db") -> None:
        text = str(url)
        try:
            if "://" not in text:
                Path(text).parent.mkdir(parents=True, exist_ok=True)
                text = f"sqlite:///{text}"
            self.engine = sa.create_engine(text)
            if self.engine.dialect.name == "sqlite":
                sa.event.listen(self.engine, "connect", _configure_sqlite)
            _META.create_all(self.engine)
            with self.engine.begin() as connection:
                version = connection.execute(sa.select(sa.func.max(_SCHEMA.c.version))).scalar()
                if version is None:
                    connection.execute(_SCHEMA.insert().values(version=SCHEMA_VERSION))
        except (OSError, sa.exc.SQLAlchemyError) as error:
            reason = str(getattr(error, "orig", None) or error)
            raise checks.InputError(f"cannot open the store {url}: {reason}; choose another with --store") from error
        if version is not None and version > SCHEMA_VERSION:
            raise checks.InputError(
                f"the store {url} has schema {version}, this version of Netwright knows {SCHEMA_VERSION}; "
                "upgrade Netwright"
            )

    def find(self, cells: Iterable[Cell]) -> dict[str, Outcome]:
        """The outcomes of those of ``cells`` that are finished, by key."""
        keys = [cell.key for cell in cells]
        found: dict[str, Outcome] = {}
        with self.engine.connect() as connection:
            for start in range(0, len(keys), 500):
                chosen = sa.select(_CELLS).where(_CELLS.c.key.in_(keys[start : start + 500]))
                for row in connection.execute(chosen):
                    found[row.key] = Outcome(row.status, json.loads(row.result), row.reason, row.seconds)
        return found

    def save(self, cell: Cell, outcome: Outcome) -> None:
        """Write one finished cell; one that is there already is replaced."""
        row = {
            "key": cell.key,
            "study": cell.study,
            "arm": cell.arm,
            "seed": cell.seed,
            "config": json.dumps(cell.config, sort_keys=True),
            "status": outcome.status,
            "result": json.dumps(outcome.result),
            "reason": outcome.reason,
            "seconds": outcome.seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self.engine.begin() as connection:
            connection.execute(_CELLS.delete().where(_CELLS.c.key == cell.key))
            connection.execute(_CELLS.insert().values(row))

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()


def _configure_sqlite(connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy's signature
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


__all__ = ["SCHEMA_VERSION", "Cell", "Outcome", "Store"]
