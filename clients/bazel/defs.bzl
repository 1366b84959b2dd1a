"""Rules that pack a disk from images, and run a test that pulls from it.

See docs/ci.md.
"""

_PROGRAM = {
    "localregistry": attr.label(
        doc = "The program: bin/localregistry of a release.",
        allow_single_file = True,
        mandatory = True,
    ),
}

def _disk_impl(ctx):
    disk = ctx.actions.declare_file(ctx.label.name + ".erofs")
    args = ctx.actions.args()
    args.add_all(["--quiet", "pack", "--output", disk])
    layouts = []
    for image, reference in ctx.attr.images.items():
        files = image[DefaultInfo].files.to_list()
        if len(files) != 1:
            fail("%s: %s makes %d files, and one is expected: the folder of an image layout, or an archive" % (ctx.label, image.label, len(files)))

        # The folder itself: its files are the action's inputs all the same.
        args.add_all(["--name", "%s=%s" % (reference, files[0].path)])
        layouts += files
    args.add_all(ctx.attr.pack_options)
    ctx.actions.run(
        executable = ctx.file.localregistry,
        arguments = [args],
        inputs = layouts,
        outputs = [disk],
        mnemonic = "LocalregistryPack",
        progress_message = "Packing %{output}",
    )
    return [DefaultInfo(files = depset([disk]))]

localregistry_disk = rule(
    implementation = _disk_impl,
    doc = "Packs images, such as those of oci_image, into one disk, NAME.erofs.",
    attrs = _PROGRAM | {
        "images": attr.label_keyed_string_dict(
            doc = "Targets that make one image layout or docker save archive each, and the name of each, REPOSITORY:TAG.",
            allow_files = True,
            mandatory = True,
        ),
        "pack_options": attr.string_list(
            doc = "Further arguments of localregistry pack.",
        ),
    },
)

# The test gets its arguments, and where the registry is: LOCALREGISTRY_ENDPOINT, _ADDRESS, _CA, _EVENTS.
_RUNNER = """#!/bin/sh
set -eu
export LOCALREGISTRY="$PWD/{program}" LOCALREGISTRY_RELEASE= LOCALREGISTRY_IMAGES=
export LOCALREGISTRY_DISK='{disk}' LOCALREGISTRY_OPTIONS='{options}' LOCALREGISTRY_FOLDER="$TEST_TMPDIR/localregistry"
'./{registry}' {mode}
trap './{registry} stop' EXIT
trap 'exit 143' TERM
. "$LOCALREGISTRY_FOLDER/trust/env"
export LOCALREGISTRY_ENDPOINT LOCALREGISTRY_ADDRESS LOCALREGISTRY_CA="$LOCALREGISTRY_FOLDER/ca.crt"
export LOCALREGISTRY_EVENTS="$LOCALREGISTRY_FOLDER/events.jsonl"
'./{test}' "$@"
"""

def _test_impl(ctx):
    runner = ctx.actions.declare_file(ctx.label.name + ".sh")
    ctx.actions.write(runner, _RUNNER.format(
        program = ctx.file.localregistry.short_path,
        disk = ctx.file.disk.short_path,
        options = " ".join(ctx.attr.options),
        registry = ctx.file._registry.short_path,
        mode = ctx.attr.mode,
        test = ctx.executable.test.short_path,
    ), is_executable = True)
    runfiles = ctx.runfiles(files = [ctx.file.localregistry, ctx.file.disk, ctx.file._registry, ctx.executable.test])
    return [DefaultInfo(
        executable = runner,
        runfiles = runfiles.merge(ctx.attr.test[DefaultInfo].default_runfiles),
    )]

localregistry_test = rule(
    implementation = _test_impl,
    doc = "Runs a program as a test while a registry serves a disk. The log of the test ends with what it pulled.",
    test = True,
    attrs = _PROGRAM | {
        "test": attr.label(
            doc = "The program, such as a go_test or sh_test.",
            executable = True,
            cfg = "target",
            mandatory = True,
        ),
        "disk": attr.label(
            doc = "A target of localregistry_disk.",
            allow_single_file = True,
            mandatory = True,
        ),
        "mode": attr.string(
            doc = "serve: a process; run: a machine in QEMU, which must be installed.",
            default = "serve",
            values = ["serve", "run"],
        ),
        "options": attr.string_list(
            doc = "Further arguments of localregistry serve or run, without spaces and quotes.",
        ),
        "_registry": attr.label(
            default = "//ci:registry",
            allow_single_file = True,
        ),
    },
)
