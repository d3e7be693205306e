"""What the scripts of `make torture` share: a folder as argument, and a line of JSON for each thing that was tried."""

import argparse
import json
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the folder, and `doc` as help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path)
    return made


def record(path: Path, row: dict[str, Any]) -> None:
    """Print a row, and append it to the file."""
    line = json.dumps(row)
    print(line, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line + "\n")
