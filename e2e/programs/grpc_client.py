"""Calls every kind of method of grpc_server.py and checks all that comes back. Arguments: target."""
import sys
import time

import grpc

options = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]
channel = grpc.insecure_channel(sys.argv[1], options=options)
grpc.channel_ready_future(channel).result(timeout=20)
unary = channel.unary_unary("/test.Calls/Unary")
LIMIT = 20

for n in range(200):
    answer, call = unary.with_call(b"hello", timeout=LIMIT, metadata=(("x-tag", str(n)),))
    assert answer == f"hello|{n}".encode(), answer
    assert ("x-initial", "first") in call.initial_metadata(), call.initial_metadata()
    trailing = dict(call.trailing_metadata())
    assert trailing["x-trailing"] == "last" and trailing["x-raw-bin"] == b"\x00\x01\xff", trailing

large = b"x" * (16 << 20)
assert unary(large, timeout=LIMIT) == large + b"|", "16 MiB there and back"

count = channel.unary_stream("/test.Calls/Count")
assert [int(n) for n in count(b"1000", timeout=LIMIT)] == list(range(1000)), "server streaming"
total = channel.stream_unary("/test.Calls/Total")
assert total((str(n).encode() for n in range(1000)), timeout=LIMIT) == b"499500", "client streaming"


def slowly():
    for n in range(20):
        time.sleep(0.01)
        yield f"message {n}".encode()


both = channel.stream_stream("/test.Calls/Both")
answers = [answer.decode() for answer in both(slowly(), timeout=LIMIT)]
assert answers == [f"MESSAGE {n}" for n in range(20)], answers


def expect(code, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError(f"expected {code}")


error = expect(grpc.StatusCode.FAILED_PRECONDITION, channel.unary_unary("/test.Calls/Fail"), "über".encode(), timeout=LIMIT)
assert error.details() == "über" and ("x-why", "asked") in error.trailing_metadata(), error
expect(grpc.StatusCode.UNIMPLEMENTED, channel.unary_unary("/test.Calls/Nothing"), b"", timeout=LIMIT)
began = time.monotonic()
expect(grpc.StatusCode.DEADLINE_EXCEEDED, channel.unary_unary("/test.Calls/Slow"), b"", timeout=0.5)
assert time.monotonic() - began < 10, "the deadline was not kept"
call = channel.unary_unary("/test.Calls/Slow").future(b"", timeout=LIMIT)
time.sleep(0.1)
call.cancel()
assert call.code() == grpc.StatusCode.CANCELLED, call.code()
assert unary(b"still", timeout=LIMIT) == b"still|", "the channel after a cancelled call"
print("all calls as they should be")
