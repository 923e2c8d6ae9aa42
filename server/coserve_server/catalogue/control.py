"""What loads and unloads ensembles for clients."""

from typing import Protocol


class RepositoryControl(Protocol):
    """Loads and unloads ensembles of the repository, in every process of the server."""

    async def load(self, name: str) -> None:
        """Serve an ensemble as its files are now; return once it is served.

        Raises:
            UnknownModelError: there is no such ensemble.
            RepositoryError: the ensemble is broken or cannot be loaded; the old version stays, or it stays
                unloaded.
        """

    async def unload(self, name: str) -> None:
        """Stop serving an ensemble until it is loaded again.

        Raises:
            UnknownModelError: the ensemble is not served.
        """
