#!/usr/bin/env python3
"""A launcher in Python: `localregistry run --json` gives one line when the registry answers, then one for each event.

    qemu/launchers/run.py DISK REPOSITORY:TAG

Pulls the image's manifest over TLS, trusting the registry's CA alone, and prints what the registry saw. Standard library only.
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
    """A running registry: what it said when it was ready, and its events to come. It is ended in order, or an error says why not."""
    program = os.environ.get("LOCALREGISTRY", "localregistry")
    # `run` ends when its standard input does, and so with this program, however it ends. What goes wrong is on standard error, and no
    # file is left.
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
    """The manifest of `image`, and its digest."""
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
