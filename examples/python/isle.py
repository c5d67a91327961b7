"""isle from Python, with nothing but gRPC reflection: no generated code, no .proto files.

    python isle.py http://127.0.0.1:7400
    python isle.py https://eu.example.com:7400 --ca ca.pem

The server describes its own services; messages are made from that. The comments in proto/isle/v1 are the manual.
"""

import argparse
import urllib.parse

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Service:
    """The methods of one gRPC service, each as a function that takes and returns messages."""

    def __init__(self, channel, pool, name):
        self._pool = pool
        for method in pool.FindServiceByName(name).methods:
            setattr(self, method.name, self._function(channel, name, method))

    @staticmethod
    def _function(channel, service, method):
        streams = method.client_streaming, method.server_streaming
        make = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }[streams]
        return make(
            f"/{service}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

    def message(self, name, **fields):
        """A message of the API: `message("PutRequest", key=b"k")`."""
        return GetMessageClass(self._pool.FindMessageTypeByName(f"isle.v1.{name}"))(**fields)


def connect(endpoint, ca=None):
    """A channel to a region: https checks the server by `ca` (PEM, bytes), or by the system's authorities."""
    url = urllib.parse.urlsplit(endpoint)
    if url.scheme == "https":
        return grpc.secure_channel(url.netloc, grpc.ssl_channel_credentials(ca))
    return grpc.insecure_channel(url.netloc)


def kv(channel):
    return Service(channel, DescriptorPool(ProtoReflectionDescriptorDatabase(channel)), "isle.v1.Kv")


def scan(store, keyspace, prefix):
    """Every entry whose key begins so, in key order, page by page."""
    token = b""
    while True:
        page = store.Scan(store.message("ScanRequest", keyspace=keyspace, prefix=prefix, page_size=60, page_token=token))
        yield from page.entries
        token = page.next_page_token
        if not token:
            return


def write_stream(store, keyspace, items, batch=50):
    """Writes items (key, text) in batches over one stream; yields the outcome of each, in order."""

    def requests():
        for at in range(0, len(items), batch):
            puts = [
                store.message("WriteOperation", put=store.message("PutRequest", key=key, value={"string_value": text}))
                for key, text in items[at : at + batch]
            ]
            yield store.message("WriteRequest", sequence=at + 1, keyspace=keyspace, operations=puts, omit_versions=True)

    for answer in store.Write(requests()):
        yield from answer.results


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("endpoint", nargs="?", default="http://127.0.0.1:7400")
    arguments.add_argument("--ca", help="PEM of the authority behind https", type=argparse.FileType("rb"))
    arguments.add_argument("--keyspace", default="default")
    asked = arguments.parse_args()

    with connect(asked.endpoint, asked.ca and asked.ca.read()) as channel:
        store = kv(channel)
        keyspace = asked.keyspace

        put = store.message("PutRequest", keyspace=keyspace, key=b"python/one", value={"string_value": "né"})
        version = store.Put(put, timeout=10).version
        got = store.Get(store.message("GetRequest", keyspace=keyspace, key=b"python/one"), timeout=10)
        assert got.found and got.entry.record.value.string_value == "né"
        print(f"put and get: {got.entry.record.value.string_value!r}, served by {got.header.served_by}")

        # A write that is meant for the version that was read, and one that comes too late.
        put.if_version = version
        store.Put(put, timeout=10)
        try:
            store.Put(put, timeout=10)
            raise AssertionError("a version that is gone was accepted")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED, error
            print(f"a stale version is refused: {error.details()}")

        items = [(f"python/stream/{n:04}".encode(), f"value {n}") for n in range(500)]
        outcomes = list(write_stream(store, keyspace, items))
        assert len(outcomes) == len(items) and all(outcome.HasField("applied") for outcome in outcomes)
        print(f"streamed write: {len(outcomes)} written")

        read = [(entry.key, entry.record.value.string_value) for entry in scan(store, keyspace, b"python/stream/")]
        assert read == items
        print(f"scan: {len(read)} read back, in key order")


if __name__ == "__main__":
    main()
