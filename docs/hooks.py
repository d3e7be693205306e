"""What MkDocs does beside its plugins: pages made from the commands and from files of the root, a check of names."""

import importlib
import os
import re
import zlib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

PUBLIC = (
    "fastff",
    "fastff.nn",
    "fastff.ops",
    "fastff.optim",
    "fastff.hf",
    "fastff.train",
    "fastff.bench",
    "fastff.export",
)
ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in `<!-- commands -->` and `<!-- file: NAME -->`."""
    markdown = markdown.replace("<!-- commands -->", _commands()) if "<!-- commands -->" in markdown else markdown
    return re.sub(r"<!-- file: (\S+) -->", lambda match: _root_file(match[1]), markdown)


def on_post_build(config: Any) -> None:
    """Every public name must be in the reference, with a docstring.

    Raises:
        PluginError: names that are not.
    """
    inventory = (Path(config["site_dir"]) / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    missing = []
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            thing = getattr(module, name)
            home = getattr(thing, "__module__", module.__name__)
            if documented.isdisjoint({f"{module.__name__}.{name}", f"{home}.{name}"} | _elsewhere(name, thing)):
                missing.append(f"{module.__name__}.{name}")
            elif callable(thing) and not thing.__doc__:
                missing.append(f"{module.__name__}.{name} (no docstring)")
    if missing:
        raise PluginError(f"public names must be in docs/reference, these are not: {', '.join(missing)}")


def _elsewhere(name: str, thing: Any) -> set[str]:
    """The same thing under other public modules."""
    modules = map(importlib.import_module, PUBLIC)
    return {f"{module.__name__}.{name}" for module in modules if getattr(module, name, None) is thing}


def _commands() -> str:
    """All commands with their options, as Markdown, by typer."""
    os.environ["COLUMNS"] = "100"
    import typer
    from typer.cli import get_docs_for_click

    from fastff.cli import MODEL_COMMANDS, build_app

    texts = []
    for chosen in (None, *MODEL_COMMANDS):
        app = typer.main.get_command(build_app(chosen))
        for name, command in app.commands.items():
            if (name in MODEL_COMMANDS) == (name == chosen):
                context = typer.Context(command, info_name=f"fastff {name}")
                texts.append(get_docs_for_click(obj=command, ctx=context, name=f"fastff {name}", indent=1))
    return "\n".join(texts)


def _root_file(name: str) -> str:
    """Of the repository's root, with links as from a page of docs/; those to other folders become plain text."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?!https?:|\w+/[\w-]+\.md|\w+\.md)[^)]*\)", r"\1", text)
