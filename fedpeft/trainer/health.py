"""Ask a trainer whether it is ready."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpeft.errors import RunError
from fedpeft.trainer.address import parse

__all__ = ["require_ready"]


def require_ready(trainer: str, *, seconds: float = 3.0) -> None:
    """Return once the trainer at an address says that it serves.

    Raises:
        InputError: no address of a trainer, or others can reach its socket.
        RunError: it is not there, or not ready; says which.
    """
    address = parse(trainer)
    try:
        address.require_private()
        with grpc.insecure_channel(address.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            said = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
    except FileNotFoundError as error:
        raise RunError(f"trainer {address}: there is no such socket") from error
    except grpc.RpcError as error:
        raise RunError(f"trainer {address}: no answer within {seconds:.0f} s") from error
    if said.status != health_pb2.HealthCheckResponse.SERVING:
        raise RunError(f"trainer {address}: it answers, and is not ready yet; see its log")
