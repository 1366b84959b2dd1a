"""Random lists of ranges, many at once over one HTTP/2 connection of the h2 package, with small and large windows.

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
# Requests that a client may send before it has the server's settings (RFC 9113, section 6.5.2).
AT_ONCE = 100
# Frames that an answer may take, so that an example ends soon.
FRAMES = 64


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
    """Sends all requests before anything is read, and gives each answer as status, headers and body."""
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


@st.composite
def request(draw):
    target, content = draw(st.sampled_from(CONTENTS))
    # Positions near the sizes of pages, frames and buffers, and anywhere, the end and behind it included.
    near = st.builds(lambda edge, off: max(edge + off, 0), st.sampled_from([0, 4096, 16384, 65536, 200000]), st.integers(-2, 2))
    position = st.one_of(near, st.integers(0, len(content) + 1))
    between = st.tuples(position, position).map(lambda ends: f"{min(ends)}-{max(ends)}")
    item = st.one_of(between, between, position.map(lambda first: f"{first}-"), st.integers(1, 70000).map(lambda n: f"-{n}"))
    items = draw(st.lists(item, max_size=8))
    return target, content, "bytes=" + ",".join(items) if items else None


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
@given(st.lists(request(), min_size=1, max_size=AT_ONCE), st.integers(1, 8), st.sampled_from([1, 100, 4096, 65535, 1 << 20]))
def ranges_equal_the_files(requests, copies, window):
    requests = (requests * copies)[:AT_ONCE]
    window = max(window, max(length(content, asked) for _, content, asked in requests) // FRAMES)
    answers = fetch(window, [(target, asked) for target, _, asked in requests])
    for (_, content, asked), answer in zip(requests, answers):
        check(content, asked, *answer)
    ranges_equal_the_files.requests += len(requests)


if __name__ == "__main__":
    ranges_equal_the_files.requests = 0
    ranges_equal_the_files()
    print(ranges_equal_the_files.requests)
