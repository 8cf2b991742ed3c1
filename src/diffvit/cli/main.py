"""``diffvit``: the verbs, and the one place where a fault becomes one line and an exit code.

A verb's module is imported when the verb is used, and torch only when it is needed: ``--help`` has to be quick.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import cyclopts
from cyclopts import App, Parameter

from diffvit import __version__
from diffvit.cli import OPTIONS
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, InputError, did_you_mean, out_of_memory
from diffvit.registry import load_plugins
from diffvit.training.memory import keep_freed_memory

PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells have it: whoever read our output has gone
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EACCES, errno.EPERM),
}
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
        home = "evaluate" if name in ("predict", "compare") else name
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
            if "app" not in arguments[:1]:  # a server gives memory back
                keep_freed_memory()
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


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[int, str]:
    """The exit code and the error line of any exception; an empty line where the output's reader has gone."""
    if isinstance(error, cyclopts.CycloptsError):
        error = _usage(error)
    if out_of_memory(error):
        error = EnvironmentFault("memory", "is used up", "Try a smaller --batch-size, or close other programs.")
    elif isinstance(error, OSError) and error.errno in _MACHINE:
        error = EnvironmentFault(str(error.filename or "the machine"), error.strerror or type(error).__name__)
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        error = InputError(f"{str(error.filename)[:60]}...", "is no path: it is too long")
    if isinstance(error, DiffvitError):
        return error.exit_code, error.line
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted by Ctrl-C."
    if isinstance(error, BrokenPipeError):
        # Without this Python complains once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED, ""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    repeat = " ".join(["diffvit", *arguments[:1], "... --debug"])
    return 1, f"{what[:300]}. This is a bug in diffvit: please report it with the traceback that `{repeat}` shows."


def _usage(error: cyclopts.CycloptsError) -> ConfigError:
    """Cyclopts' error about the command line as an error of ours."""
    see = " ".join(["See diffvit", *(error.command_chain or ()), "--help."])
    if isinstance(error, cyclopts.UnknownOptionError):
        found = (error.token.keyword or error.token.value).split("=")[0]
        known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return ConfigError(found, f"unknown option;{did_you_mean(found, known)}".rstrip(";"), see)
    if isinstance(error, cyclopts.UnknownCommandError):
        found = (error.unused_tokens or [""])[0]
        known = [name for name in (error.app or ()) if not name.startswith("-")]
        why = f"unknown command (have {', '.join(known)});{did_you_mean(found, known)}"
        return ConfigError(found, why.rstrip(";"), see)
    if isinstance(error, cyclopts.UnusedCliTokensError):
        tokens = error.unused_tokens or []
        return ConfigError(" ".join(tokens), "one argument too many" if len(tokens) == 1 else "too many arguments", see)
    if isinstance(error, cyclopts.RepeatArgumentError):
        return ConfigError(error.token.keyword or error.token.value, "given more than once", see)
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument:
        return ConfigError(error.keyword or error.argument.name, "needs a value", see)
    if isinstance(error, cyclopts.CoercionError) and error.argument and error.token:
        found, name = error.token.value, error.token.keyword or error.argument.name
        choices = [str(choice) for choice in error.argument.get_choices() or ()]
        allowed = ", ".join(choices) or {int: "a whole number", float: "a number", bool: "yes or no"}.get(
            error.argument.hint, "another type"
        )
        why = f"not a value it takes ({found} vs {allowed});{did_you_mean(found, choices)}"
        return ConfigError(name, why.rstrip(";"), see)
    return ConfigError("usage", " ".join(str(error).split()), see)


@contextlib.contextmanager
def own_warnings(*, everything: bool = False) -> Iterator[None]:
    """Show a warning of diffvit as one line, those of libraries not at all; ``everything`` leaves all as they are."""
    with warnings.catch_warnings():
        if not everything:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"diffvit(\.|$)")
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def main() -> NoReturn:
    """The ``diffvit`` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
