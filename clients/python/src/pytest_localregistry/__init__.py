"""Starts a container registry for a test, and tells who pulled what from it.

With pytest, the fixture ``localregistry`` is a registry that serves the disk of ``--localregistry-disk``::

    def test_node_pulls(localregistry):
        pull(f"{localregistry.endpoint}/test/hello:latest", ca=localregistry.ca_file)
        localregistry.assert_pulled("test/hello:latest")

Elsewhere, :func:`start` is a context manager::

    with pytest_localregistry.start("images.erofs") as registry:
        ...

The program ``localregistry`` is that of the option, else that of the environment variable ``LOCALREGISTRY`` (a program or the folder of
a release), else that in ``PATH``.
"""

from ._events import Event, FaultHit, Request, Warning
from ._program import LocalRegistryError
from ._registry import FaultRule, Faults, Registry, start

__all__ = ["Event", "FaultHit", "FaultRule", "Faults", "LocalRegistryError", "Registry", "Request", "Warning", "start"]
