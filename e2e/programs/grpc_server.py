"""A gRPC server of every kind of call, on grpcio; messages are plain bytes. Arguments: address."""
import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-raw-bin", b"\x00\x01\xff")))
    return request + b"|" + metadata.get("x-tag", "").encode()


def fail(request, context):
    # No message, no initial metadata: an answer of trailers only.
    context.set_trailing_metadata((("x-why", "asked"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())


def slow(request, context):
    end = time.monotonic() + 30
    while context.is_active() and time.monotonic() < end:
        time.sleep(0.05)
    return request


def count(request, context):
    for n in range(int(request)):
        yield str(n).encode()


def total(requests, context):
    return str(sum(int(request) for request in requests)).encode()


def both(requests, context):
    for request in requests:
        yield request.upper()


rpcs = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}
options = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]
server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", rpcs),))
if not server.add_insecure_port(sys.argv[1]):
    sys.exit(f"cannot listen on {sys.argv[1]}")
server.start()
server.wait_for_termination()
