"""Settings as frozen dataclasses: their meanings and types, their JSON file, and the command line made from them."""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

S = TypeVar("S", bound="Settings")


def setting(default: Any, meaning: str) -> Any:
    """A field of `Settings` with its meaning, which the command line shows too."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the settings of a run: everything that its result depends on, each field made by `setting`."""

    def __post_init__(self) -> None:
        """Raises TypeError that names the setting and its value."""
        for name, hint in get_type_hints(type(self)).items():
            kinds = get_args(hint) or (hint,)
            value = getattr(self, name)
            if not (type(value) in kinds or (type(value) is int and float in kinds)):
                raise TypeError(f"{name} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")

    def check_choice(self, name: str, choices: Sequence[str]) -> None:
        """Raise ValueError unless the setting is one of `choices`."""
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def check_counts(self, *names: str) -> None:
        """Raise ValueError unless each is at least 1, or None."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError unless each is a finite number above 0, or None."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value}")

    def check_weights(self, *names: str) -> None:
        """Raise ValueError unless each is a finite number of at least 0, or None."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")

    def check_shares(self, *names: str) -> None:
        """Raise ValueError unless each is in [0, 1), or None."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls: type[S], path: Path) -> S:
        """Read the JSON file at `path`, which must hold every setting; ValueError if it is missing or damaged."""
        try:
            values = json.loads(path.read_text())
            names = {field.name for field in dataclasses.fields(cls)}
            if not isinstance(values, dict) or values.keys() != names:
                differ = sorted(values.keys() ^ names) if isinstance(values, dict) else type(values).__name__
                raise ValueError(f"unknown or missing {differ}")
            return cls(**values)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as settings: {error}") from None

    def check_same(self, folder: Path) -> None:
        """ValueError if the run in `folder`, whose config.json must be readable, has other settings than these."""
        before = self.read(folder / "config.json")
        changed = [name for name, value in self.to_dict().items() if getattr(before, name) != value]
        if changed:
            was = ", ".join(f"{n}={getattr(before, n)!r} (now {getattr(self, n)!r})" for n in changed)
            raise ValueError(f"folder {str(folder)!r} holds a run with other settings: {was}")


def with_settings(
    settings: type[Settings], argument: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of `settings`, in place of its `**settings`.

    Args:
        settings: whose fields.
        argument: the field that is no option, but the command's argument.
    """
    import typer

    def give(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        for field in dataclasses.fields(settings):
            kind: Any = typer.Argument if field.name == argument else typer.Option
            option = Annotated[field.type, kind(help=field.metadata["help"])]  # type: ignore[name-defined]
            default = inspect.Parameter.empty if field.name == argument else field.default
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
            )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return give
