"""Helm's own code, by its library for Python: helm.py pull REFERENCE VERSION FOLDER | push PACKAGE REMOTE | tags REFERENCE |
metadata PACKAGE…, which prints a line for each package: the metadata, or null if Helm does not load it."""

import json
import sys

from helm_python.chart import Chart
from helm_python.errors import HelmError
from helm_python.registry import RegistryClient


def metadata(package):
    try:
        return Chart.load(package).metadata
    except HelmError:
        return None


command, *arguments = sys.argv[1:]
if command == "metadata":
    for package in arguments:
        print(json.dumps(metadata(package)))
    sys.exit()
with RegistryClient(plain_http=True) as client:
    if command == "pull":
        reference, version, folder = arguments
        client.pull(reference, version=version, destination=folder, plain_http=True)
    elif command == "push":
        package, remote = arguments
        client.push(package, remote, plain_http=True)
    elif command == "tags":
        (reference,) = arguments
        print(json.dumps(client.tags(reference)))
    else:
        sys.exit(f"helm.py: unknown command {command}")
