"""The ledger: requests to forget with their dates and owners, what was done for each, in books that show any change.

Reading order: `digests`, `events` (the chain), `state` (what the events add up to), `in_clear` (the facts),
`schema`, `database`, `books` (the ledger itself), `hidden`, `forget` (a run), `revert`, `views` (table, page, CSV).
"""

from zerounlearn.errors import FrameworkError

try:
    import filelock  # noqa: F401
    import sqlalchemy  # noqa: F401
except ImportError as error:
    raise FrameworkError(f"the ledger needs {error.name}: pip install 'zerounlearn[ledger]'") from error
