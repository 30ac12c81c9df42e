"""``tgeokd predict``."""

from pathlib import Path
from typing import Annotated

import typer

from tgeokd.cli.output import say


def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run on a table.")],
    file: Annotated[Path, typer.Argument(help="Rows to predict, in the format that the task reads.")],
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .csv.")] = Path("predictions.csv"),
    allow_unseen: Annotated[
        bool, typer.Option("--allow-unseen", help="Predict even where most values of a column are new or missing.")
    ] = False,
) -> None:
    """Predict new rows with a run's student and the feature encoder that was saved with it."""
    from tgeokd.runs.predict import predict

    say(f"{predict(folder, file, out, allow_unseen=allow_unseen):,} rows: {out}")
