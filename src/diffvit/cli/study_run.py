"""``diffvit study run``, and ``work``: one worker of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffvit.cli import show
from diffvit.cli.options import COMMAND, OUTPUT, DataDir, Output
from diffvit.cli.study_options import LEASE_SECONDS, WHAT, Name, What, ledgers_of, standing_of
from diffvit.config import resolve
from diffvit.errors import ConfigError, DiffvitError, EnvironmentFault, Interrupted
from diffvit.experiments.trials import find_study
from diffvit.settings import Device

if TYPE_CHECKING:
    from diffvit.experiments.watch import Watch

_SIGNALLED = 128


def work(
    name: Name,
    /,
    *,
    what: What = WHAT,
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    threads: Annotated[int, Parameter(group=COMMAND, help="CPU threads; 0 is all usable cores.")] = 0,
    lease: Annotated[
        float, Parameter(group=COMMAND, help="Seconds without a sign until a worker is lost.")
    ] = LEASE_SECONDS,
) -> None:
    """One worker: trials until none is left. ``run`` starts them; across machines they may be started by hand."""
    from diffvit.experiments.runner import Training
    from diffvit.experiments.runner import work as run_trials
    from diffvit.experiments.search import Search
    from diffvit.training.memory import keep_freed_memory

    keep_freed_memory()
    study = find_study(name)
    trials = {trial.name: trial for trial in what.trials(study)}
    where: dict[str, Any] = {"threads": threads, "data_dir": data_dir}
    where |= {} if device is None else {"device": device}
    training = Training(what.runs, where, show.line)
    for attention, ledger in ledgers_of(study, what, where, lease).items():
        if study.search:
            run_trials(ledger, Search(ledger, what.tier, attention, training), tell=show.line)
        else:
            run_trials(ledger, lambda claim: training(trials[claim.cell]).result["test_accuracy"], tell=show.line)


def run(
    name: Name,
    /,
    *,
    what: What = WHAT,
    workers: Annotated[int, Parameter(group=COMMAND, help="Processes, or jobs.")] = 1,
    launcher: Annotated[
        Literal["local", "slurm"], Parameter(group=COMMAND, help="This machine, or Slurm through submitit.")
    ] = "local",
    data_dir: DataDir = None,
    device: Annotated[Device | None, Parameter(group=COMMAND, show_default="auto", help="Where to run.")] = None,
    quiet: Annotated[bool, Parameter(group=COMMAND, negative="", show_default=False, help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """Run every trial that is not done yet. Stopped, it goes on where it was."""
    if workers < 1:
        raise ConfigError("--workers", f"must be at least 1 (found {workers})")

    from diffvit.experiments.pool import located
    from diffvit.experiments.watch import Watch
    from diffvit.training.environment import usable_cores

    study = find_study(name)
    trials = what.trials(study)
    config = resolve(None, {} if device is None else {"device": device})
    command = [*what.arguments(study), "--device", config.device, "--threads", str(max(1, usable_cores() // workers))]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    where = {"device": config.device, "data_dir": data_dir}
    ledgers = ledgers_of(study, what, where)
    again = [cell for ledger in ledgers.values() for cell in ledger.forgive()]
    if again and not quiet:
        show.line(f"given up before, tried again: {', '.join(again)}")
    watch = Watch(
        study,
        what.tier,
        trials,
        located(trials, where),
        lambda: standing_of(ledgers),
        what.runs,
        what.reports,
        show.line,
        quiet=quiet,
    )
    watch.begin(config.device)
    logs, codes = what.runs / what.tier / f"{study.name}.logs", []
    if launcher == "slurm":
        _submit(command, workers, what)
    else:
        codes = _run_here(command, workers, logs, watch)
    standing = watch.end()
    show.line(f"next  {what.reported(study)}")
    if output.json:
        show.as_json(standing)
    if worst := max(codes, default=0):
        raise _ended(study.name, worst, logs)
    if code := standing_of(ledgers).worst:
        raise _given_up(study.name, list(standing["failed"]), code, logs)


def _run_here(command: Sequence[str], workers: int, logs: Path, watch: Watch) -> list[int]:
    """The workers' exit codes."""
    from diffvit.experiments.launchers import LocalWorkers, worker_command

    return LocalWorkers(worker_command(command), workers, logs).run(watch.look)


def _ended(name: str, code: int, logs: Path) -> DiffvitError:
    """What to say where workers did not end well."""
    again = "Run the same command to go on."
    if code > _SIGNALLED:
        return Interrupted(code - _SIGNALLED, f"study {name}", "was stopped", f"Its trials are saved. {again}")
    fault = EnvironmentFault(f"study {name}", f"a worker ended with exit code {code}", f"See {logs}. {again}")
    fault.exit_code = code
    return fault


def _given_up(name: str, cells: Sequence[str], code: int, logs: Path) -> DiffvitError:
    """What to say where trials failed again and again; the exit code is the largest of theirs."""
    from diffvit.experiments.ledger import ATTEMPTS

    why = f"trials that failed {ATTEMPTS} times were given up ({', '.join(cells)})"
    fault = DiffvitError(f"study {name}", why, f"All others are kept. See {logs}; the same command tries them again.")
    fault.exit_code = code
    return fault


def _submit(command: Sequence[str], workers: int, what: What) -> None:
    from diffvit.experiments.launchers import SlurmOptions, slurm_executor, submit, worker_command

    executor = slurm_executor(what.runs / "slurm", SlurmOptions(gpus=0 if what.tier != "full" else 1))
    jobs = submit(executor, worker_command(command), workers)
    show.line(
        f"submitted {len(jobs)} jobs ({', '.join(job.job_id for job in jobs)}); how they stand: diffvit study show"
    )
