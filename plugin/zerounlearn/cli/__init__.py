"""The command line. Nothing heavy is imported before a command needs it: `--help` and completion answer at once."""

from __future__ import annotations

import click

from zerounlearn.cli import edits, lists
from zerounlearn.cli.audit import audit
from zerounlearn.cli.command import EPILOG
from zerounlearn.cli.export import export
from zerounlearn.cli.ledger import ledger
from zerounlearn.cli.publish import card, push
from zerounlearn.cli.replay import replay
from zerounlearn.cli.stats import stats
from zerounlearn.cli.study import study
from zerounlearn.cli.trace import trace
from zerounlearn.cli.unlearn import unlearn
from zerounlearn.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(verbose: bool, quiet: bool, debug: bool) -> None:
    """Make a language model forget facts, and measure it."""


for _command in (
    *(unlearn, edits.apply, edits.revert, edits.merge, edits.inspect, replay, export, card, push, ledger),
    *(audit, trace, stats, study, lists.list_entries, lists.show, lists.hparams_files, lists.models),
):
    main.add_command(_command)
