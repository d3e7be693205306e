"""The command `fastff`: parses, builds, runs; every foreseeable error is one line and exit code 2."""

import importlib
import sys
from typing import Any

from safetensors import SafetensorError

INTERRUPTED = 130
RESUMES = "the same command (train, pretrain, distil: with --resume) goes on from here"
KEPT = "what was measured is in the files named above"
NEEDS = "pip install 'fastff[hf,train]'"

# Transformers takes seconds to import, so these commands are imported only where they are the one that is run.
MODEL_COMMANDS = {  # with the package of each and its meaning
    "pretrain": ("pretrain", "Train a masked or causal language model with fast feedforward layers."),
    "distil": (
        "distillation",
        "Replace the feedforward layers of a pretrained model and teach the new ones what the original does.",
    ),
    "finetune": ("finetune", "Fine-tune language models on a classification task, side by side."),
}


def build_app(chosen: str | None = None) -> Any:
    """The typer application with all commands, of the slow ones only `chosen` with its options."""
    import typer

    from fastff import __version__, doctor
    from fastff.bench.command import bench_command
    from fastff.export.command import export_command
    from fastff.train import commands

    app = typer.Typer(
        help="Fast feedforward networks: train, compare, measure layers whose cost grows with the logarithm.",
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True, no_args_is_help=True)
    def version(show: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        if show:
            print(__version__)
            raise typer.Exit

    app.command("train")(commands.train_command)
    app.command("compare")(commands.compare_command)
    app.command("report")(commands.report_command)
    app.command("evaluate")(commands.evaluate_command)
    app.command("bench")(bench_command)
    app.command("export")(export_command)
    for name, (package, meaning) in MODEL_COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"fastff.hf.{package}.commands")
            app.command(name)(getattr(module, f"{name}_command"))
        else:
            app.command(name, help=meaning)(lambda: None)

    @app.command("doctor")
    def doctor_command() -> None:
        """Versions, devices, threads, backends, and what is missing."""
        doctor.print_report()

    return app


def main() -> None:
    """Entry point."""
    try:
        import typer.main

        command = typer.main.get_command(build_app(next(iter(sys.argv[1:]), None)))
        code = command.main(sys.argv[1:], prog_name="fastff", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            print(f"interrupted; {KEPT if sys.argv[1:2] == ['bench'] else RESUMES}", file=sys.stderr)
        sys.exit(code)
    except ModuleNotFoundError as error:
        if sys.argv[1:] == ["doctor"]:  # which must run where something is missing
            from fastff import doctor

            doctor.print_report()
            sys.exit(0)
        _fail(f"the package {error.name!r} is missing: {NEEDS}")
    except (ValueError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        _fail(str(error))
    except Exception as error:
        message = getattr(error, "format_message", None)  # typer's own errors of usage
        if message is None:
            raise
        if not message():  # the help has been shown in its place
            sys.exit(2)
        _fail(message())


def _fail(message: str) -> None:
    first = next(iter(message.strip().splitlines()), "unknown")
    print(f"error: {first}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
