"""Requests random lists of ranges, many at once over one HTTP/2 connection of the h2 package, with small and large windows.

Arguments: the registry's base URL, its CA, a JSON list of what it serves, the seed, and how many connections to make.
"""

import json
import socket
import ssl
import sys
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from answers import check, selected

BASE = urlsplit(sys.argv[1])
# Number of requests that a client may send before it has the server's settings (RFC 9113, section 6.5.2).
AT_ONCE = 100
# Limits that keep an example short: total bytes of responses per connection, and windows per response.
BYTES = 2 << 20
WINDOWS = 64


def read_contents():
    with open(sys.argv[3], encoding="ascii") as listed:
        for served in json.load(listed):
            with open(served["file"], "rb") as file:
                yield served["target"], file.read()


CONTENTS = list(read_contents())


def connect():
    stream = socket.create_connection((BASE.hostname, BASE.port), timeout=30)
    if BASE.scheme == "http":
        return stream
    context = ssl.create_default_context(cafile=sys.argv[2])
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(stream, server_hostname=BASE.hostname)


def fetch(window, requests):
    """Sends all requests before it reads, and returns status, headers and body of each response."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="ascii"))
    initial = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.ENABLE_PUSH: 0}
    connection.local_settings = h2.settings.Settings(client=True, initial_values=initial)
    connection.initiate_connection()
    answers = {}
    for target, asked in requests:
        head = [(":method", "GET"), (":scheme", BASE.scheme), (":authority", BASE.netloc), (":path", target)]
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, head + ([("range", asked)] if asked else []), end_stream=True)
        answers[stream] = [None, None, bytearray()]
    unfinished = set(answers)
    with connect() as stream:
        stream.sendall(connection.data_to_send())
        while unfinished:
            received = stream.recv(1 << 16)
            assert received, f"the connection ended before the streams {unfinished}"
            for event in connection.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = dict(event.headers)
                    answers[event.stream_id][:2] = int(headers[":status"]), headers
                elif isinstance(event, h2.events.DataReceived):
                    answers[event.stream_id][2] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    unfinished.remove(event.stream_id)
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    raise AssertionError(f"of {len(requests)} requests {len(unfinished)} are unanswered: {event}")
            stream.sendall(connection.data_to_send())
    return [(status, headers, bytes(body)) for status, headers, body in answers.values()]


def near(edge, off):
    return max(edge + off, 0)


# Numbers, some of them near the sizes of pages, frames and buffers.
NUMBER = st.one_of(st.builds(near, st.sampled_from([0, 4096, 16384, 65536]), st.integers(-2, 2)), st.integers(0, 70000))
FORM = st.sampled_from(["from the start", "from the end", "anywhere", "anywhere", "open end", "suffix"])
ITEM = st.tuples(FORM, NUMBER, NUMBER, st.integers(0, 1 << 22))
# Contents by index, because hypothesis formats every drawn value.
REQUEST = st.tuples(st.integers(0, len(CONTENTS) - 1), st.lists(ITEM, max_size=8))


def item(size, form, number, more, anywhere):
    """One item of a Range header for content of this size. It may be beyond the end."""
    if form == "suffix":
        return f"-{number}"
    first = {"from the start": number, "anywhere": anywhere % (size + 2)}.get(form, max(size - number, 0))
    return f"{first}-" if form == "open end" else f"{first}-{first + more}"


def asked_for(content, items):
    return "bytes=" + ",".join(item(len(content), *one) for one in items) if items else None


def length(content, asked):
    slices = selected(len(content), asked)
    return len(content) if slices is None else sum(end - start for start, end in slices)


@seed(int(sys.argv[4]))
@settings(
    max_examples=int(sys.argv[5]),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(REQUEST, min_size=1, max_size=20), st.integers(1, AT_ONCE), st.sampled_from([1, 100, 4096, 65535, 1 << 20]))
def ranges_equal_the_files(drawn, copies, window):
    requests = [(*CONTENTS[which], asked_for(CONTENTS[which][1], items)) for which, items in drawn]
    lengths = [length(content, asked) for _, content, asked in requests]
    requests = (requests * min(copies, 1 + BYTES // (sum(lengths) + 1)))[:AT_ONCE]
    answers = fetch(max(window, max(lengths) // WINDOWS), [(target, asked) for target, _, asked in requests])
    for (_, content, asked), answer in zip(requests, answers):
        check(content, asked, *answer)
    ranges_equal_the_files.requests += len(requests)


if __name__ == "__main__":
    ranges_equal_the_files.requests = 0
    ranges_equal_the_files()
    print(ranges_equal_the_files.requests)
