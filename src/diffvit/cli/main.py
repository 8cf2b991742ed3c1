"""``diffvit``: the verbs, and the one place where a fault becomes one line and an exit code.

A verb's module is imported when the verb is used, and torch only when it is needed: ``--help`` has to be quick.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from cyclopts import App, Parameter

from diffvit import __version__
from diffvit.cli import OPTIONS
from diffvit.cli.faults import PIPE_CLOSED, explain, own_warnings
from diffvit.registry import load_plugins

# Each verb's arguments, and what ``--help`` says of it before it is imported.
VERBS = {
    "train": (
        "[CONFIG.yaml] [OPTIONS]",
        "Train a model and write a run folder, or resume a stopped run.\n\n"
        "A flag beats the environment (DIFFVIT_EPOCHS, DIFFVIT_MODEL__DEPTH, ...), which beats the file, which beats "
        "the default. Ctrl-C saves the state and prints the command that resumes the run.",
    ),
    "evaluate": (
        "RUN [OPTIONS]",
        "Evaluate a trained model on labelled images.\n\n"
        "Accuracy, top-5, calibration error, precision and recall by class.",
    ),
    "predict": ("RUN IMAGE... [OPTIONS]", "Classify image files, folders of them, or what a pattern matches."),
    "compare": (
        "RUN... [OPTIONS]",
        "Compare finished runs.\n\nPrints a table and writes an HTML page with curves, lambdas and classes.",
    ),
    "attention": (
        "RUN [IMAGE...] [OPTIONS]",
        "Draw and score attention maps, with rollout.\n\n"
        "All heads and layers of a run or a pretrained model (--pretrained NAME IMAGE...), as figures and one page.",
    ),
    "app": (
        "[OPTIONS]",
        "Start the explorer: a local web page that shows attention maps.\n\n"
        "Attention maps, run comparison, zero-shot CLIP, shapes. Needs the extra 'app'. Ctrl-C stops it.",
    ),
}
# Verbs that have verbs of their own.
GROUPS = {
    "study": "Run studies: many trainings, resumable, with a report.",
    "clip": "Classify images with text labels (CLIP); evaluate, compare and train CLIP models.",
    "data": "Inspect and download data sets.",
    "bench": "Compare speed with other libraries.",
}


def build() -> App:
    """The whole command line, nothing of it imported yet."""
    app = App(
        name="diffvit",
        help="Train, compare and look inside Vision Transformers and Differential Vision Transformers.",
        version=f"diffvit {__version__}",
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        group_parameters=OPTIONS,
        default_parameter=Parameter(negative_iterable=()),
    )
    for place, (name, (arguments, text)) in enumerate(VERBS.items()):
        home = "evaluate" if name == "predict" else name
        usage = f"Usage: diffvit {name} {arguments}"
        app.command(f"diffvit.cli.{home}:{name}", name=name, help=text, usage=usage, sort_key=place)
    for place, (name, text) in enumerate(GROUPS.items(), len(VERBS)):
        app.command(f"diffvit.cli.{name}:app", name=name, help=text, sort_key=place)
    app.register_install_completion_command(help="Install completion for bash, zsh or fish.")
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Faults end as one line on standard error (``--debug`` adds the traceback)."""
    debug = "--debug" in arguments
    try:
        with own_warnings(everything=debug):
            load_plugins(_plugins_in(arguments))
            quiet: dict[str, Any] = {"exit_on_error": False, "print_error": False, "verbose": False}
            build()(list(arguments), result_action="return_value", **quiet)
            sys.stdout.flush()
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich turns it into an exit of its own
            return PIPE_CLOSED
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        code, line = explain(error, arguments)
        if debug:
            traceback.print_exception(error)
        if line:
            print(f"error: {line}", file=sys.stderr)
        return code


def _plugins_in(arguments: Sequence[str]) -> list[str]:
    """What ``--plugin`` names: loaded first, for flags and settings may name what the files register."""
    pairs = itertools.pairwise([*arguments, ""])
    return [each.partition("=")[2] or following for each, following in pairs if each.split("=")[0] == "--plugin"]


def main() -> NoReturn:
    """The ``diffvit`` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
