"""What both ends of the service agree on."""

from fedpeft.wire.pb.v1 import trainer_pb2 as pb

__all__ = ["METHOD", "OPTIONS", "SERVICE"]

SERVICE: str = pb.DESCRIPTOR.services_by_name["Trainer"].full_name
METHOD = f"/{SERVICE}/Answer"
_MAX_MESSAGE = 8 << 20
"""Bytes of one part: a head holds a header and an experiment's text."""
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
)
"""Of a channel or a server: no proxy stands on the way to the same machine, and no two trainers on one port."""
