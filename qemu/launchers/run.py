#!/usr/bin/env python3
"""A launcher in Python: `localregistry run --json --follow` prints one line when the registry is ready, then one for each event.

    qemu/launchers/run.py DISK REPOSITORY:TAG

It pulls the image's manifest over TLS, trusts only the registry's CA, and prints the request as the registry logged it. Standard library
only.
"""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import urllib.request

MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


@contextlib.contextmanager
def appliance(disk, *arguments):
    """Runs a registry. Yields the line that reports it as ready, and its events. Fails unless it shuts down cleanly."""
    program = os.environ.get("LOCALREGISTRY", "localregistry")
    # `run` ends when its standard input is closed, and so when this program ends in any way. Errors are on standard error.
    command = [program, "run", disk, "--end-with-stdin", "--quiet", "--json", "--follow", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        try:
            line = run.stdout.readline()
            if not line:
                raise SystemExit(run.wait())
            yield json.loads(line), map(json.loads, run.stdout)
        finally:
            run.stdin.close()
            run.stdout.read()
    if run.returncode != 0:
        raise SystemExit(run.returncode)


def manifest(endpoint, ca, image):
    """Returns the manifest of `image` and its digest."""
    repository, _, tag = image.rpartition(":")
    request = urllib.request.Request(f"{endpoint}/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFESTS})
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ca)) as response:
        return json.load(response), response.headers["Docker-Content-Digest"]


def main():
    if len(sys.argv) != 3:
        raise SystemExit("usage: run.py DISK REPOSITORY:TAG")
    _, disk, image = sys.argv
    with appliance(disk) as (ready, events):
        found, digest = manifest(ready["endpoint"], ready["ca"], image)
        print(f"pulled {image}, {len(found['layers'])} layers, {digest}")
        for event in events:
            if "request" in event:
                request = event["request"]
                print(f"{request['method']} {request['repository']} {request['reference']} -> {request['status']}")
                break


if __name__ == "__main__":
    main()
