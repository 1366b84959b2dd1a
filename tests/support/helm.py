"""Helm's own code, by its library for Python: helm.py pull REFERENCE VERSION FOLDER | push PACKAGE REMOTE | tags REFERENCE."""

import json
import sys

from helm_python.registry import RegistryClient

command, *arguments = sys.argv[1:]
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
