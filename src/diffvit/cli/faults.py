"""What went wrong, as one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import cyclopts

from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, did_you_mean, out_of_memory

PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells have it: whoever read our output has gone
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EACCES, errno.EPERM),
}


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[int, str]:
    """The exit code and the error line of any exception; an empty line where the output's reader has gone."""
    if isinstance(error, cyclopts.CycloptsError):
        error = _usage(error)
    if out_of_memory(error):
        error = EnvironmentFault("memory", "is used up", "Try a smaller --batch-size, or close other programs.")
    elif isinstance(error, OSError) and error.errno in _MACHINE:
        error = EnvironmentFault(str(error.filename or "the machine"), error.strerror or type(error).__name__)
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
