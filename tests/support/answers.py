"""Compares responses to GET byte by byte with the served file and the Range header (RFC 9110, section 14).

Python's email package parses multipart bodies. As a program, this checks the responses that curl wrote to files: standard
input is a JSON list of cases.
"""

import email
import json
import sys


def selected(size, asked):
    """Slices that a Range header selects, in its order. None stands for the whole content."""
    if asked is None or size == 0:
        return None
    slices = []
    for item in asked.removeprefix("bytes=").split(","):
        first, last = item.strip().split("-")
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start < end:
            slices.append((start, end))
    # For overlapping ranges that add up to more than the content, the registry sends the whole content.
    too_much = len(slices) > 1 and sum(end - start for start, end in slices) > size
    return None if too_much else slices


def same(what, actual, expected):
    """Compares bytes, and reports the first difference."""
    if actual != expected:
        at = next((at for at, (a, b) in enumerate(zip(actual, expected)) if a != b), min(len(actual), len(expected)))
        raise AssertionError(f"{what}: {len(actual)} bytes instead of {len(expected)}, different from byte {at}")


def check(content, asked, status, headers, body):
    """Checks one response. Header names are in lower case."""
    size, what = len(content), f"{asked} of {len(content)} bytes"
    slices = selected(size, asked)
    assert headers["content-length"] == str(len(body)), f"{what}: {headers} with {len(body)} bytes"
    expected_status = 200 if slices is None else 206 if slices else 416
    assert status == expected_status, f"{what}: status {status} instead of {expected_status}"
    ranges = [f"bytes {start}-{end - 1}/{size}" for start, end in slices or []]
    if slices is None:
        same(what, body, content)
    elif not slices:
        assert headers["content-range"] == f"bytes */{size}", f"{what}: {headers}"
    elif len(slices) == 1:
        assert headers["content-range"] == ranges[0], f"{what}: {headers}"
        same(what, body, content[slice(*slices[0])])
    else:
        message = email.message_from_bytes(f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body)
        assert message.is_multipart() and not message.defects, f"{what}: {message.defects}"
        parts = message.get_payload()
        assert [part["Content-Range"] for part in parts] == ranges, f"{what}: {[part.items() for part in parts]}"
        for part, (start, end) in zip(parts, slices):
            same(f"{what}, part {start}-{end - 1}", part.get_payload(decode=True), content[start:end])


def main():
    cases = json.load(sys.stdin)
    for case in cases:
        with open(case["head"], encoding="ascii") as head, open(case["body"], "rb") as body, open(case["file"], "rb") as file:
            # The last head counts, because interim responses have heads too.
            status_line, *fields = head.read().strip().split("\n\n")[-1].split("\n")
            body, content = body.read(), file.read()
        status, headers = int(status_line.split()[1]), {}
        for name, value in (field.split(":", 1) for field in fields):
            headers[name.strip().lower()] = value.strip()
        if case["method"] == "HEAD":
            expected = (200, str(len(content)), b"")
            assert (status, headers["content-length"], body) == expected, f"HEAD of {len(content)} bytes: {status} {headers}"
            continue
        # A resumed transfer has appended its bytes.
        resumed = case.get("resumed", 0)
        same("what was there before", body[:resumed], content[:resumed])
        check(content, case.get("range"), status, headers, body[resumed:])
    print(len(cases))


if __name__ == "__main__":
    main()
