"""Runs the rules of clients/bazel/defs.bzl as Bazel would: bazel.py DEFS. Prints the arguments of the packing action, and the runner of a test.

The language is Starlark's own, by starlark-rust; the few functions of Bazel that the rules call are stood in for here.
"""
import json
import sys

import starlark

BEFORE = """
def rule(**attributes):
    return struct(**attributes)

def _any(*positional, **attributes):
    return attributes

attr = struct(label = _any, label_keyed_string_dict = _any, string = _any, string_list = _any)
DefaultInfo = struct

def depset(items):
    return items
"""
# A provider is the key of a target, and a function: the struct below is found by that function.
AFTER = """
def _file(path):
    return struct(path = path, short_path = path)

_runfiles = struct(merge = lambda other: other)

def _target(label, paths):
    return struct(label = label, key = paths)

def _context(name, **attributes):
    said = {}
    def run(**action):
        said["run"] = action
    def write(file, content, is_executable):
        said["write"] = content
    arguments = []
    args = struct(add_all = lambda values: arguments.extend([getattr(value, "path", value) for value in values]))
    actions = struct(declare_file = _file, args = lambda: args, run = run, write = write)
    return struct(label = struct(name = name), actions = actions, runfiles = lambda files: _runfiles, **attributes), said, arguments

def result():
    program = _file("bin/localregistry")
    image = {DefaultInfo: struct(files = struct(to_list = lambda: [_file("app/image")]))}
    ctx, said, packed = _context(
        "images",
        file = struct(localregistry = program),
        attr = struct(images = _Images(image), pack_options = ["--upstream", "docker.io"]),
    )
    localregistry_disk.implementation(ctx)
    test = {DefaultInfo: struct(default_runfiles = _runfiles)}
    ctx, wrote, _ = _context(
        "pull",
        file = struct(localregistry = program, disk = _file("images.erofs"), _registry = _file("ci/registry")),
        executable = struct(test = _file("pull")),
        attr = struct(mode = "serve", options = ["--san=registry.test"], test = test),
    )
    localregistry_test.implementation(ctx)
    return {"pack": packed, "runner": wrote["write"]}

def _Images(image):
    return struct(items = lambda: [(image, "test/app:1")])

result()
"""
with open(sys.argv[1], encoding="utf-8") as file:
    source = BEFORE + file.read() + AFTER
library = starlark.Globals.extended_by([starlark.LibraryExtension.StructType])
print(json.dumps(starlark.eval(starlark.Module(), starlark.parse(sys.argv[1], source), library)))
